"""Write the tables that are made: pages of docs/reference, and the costs of presets that the package holds.

    python -m scripts.reference

Commands come from their dataclasses in `residuum.cli`, presets and recipes from their tables, costs from
`residuum.cost`. A test makes each anew and compares it with what is committed. It needs the extras `docs` and `bench`.
"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
from scripts.field_comments import cell, comment_at, linked, prose

from residuum.cli.line import Line, Option, options_of
from residuum.cli.main import COMMANDS
from residuum.config import ResNetConfig
from residuum.presets import COSTS, PRESETS, preset_costs, usual_image_size
from residuum.train.execution import Execution
from residuum.train.recipe import Recipe
from residuum.train.recipes import RECIPES, NamedRecipe
from residuum.validation import Field, wanted

DOCS = Path(__file__).parents[1] / "docs"
MADE = "<!-- Made by `python -m scripts.reference`; a test compares it with the sources. -->"
SHARED = {  # dataclasses that several commands have, and the section that shows their fields
    Recipe: "fields-of-a-recipe",
    ResNetConfig: "fields-of-a-config",
    Execution: "fields-of-an-execution",
}
ABOUT = {  # pages that have another name than the command
    "train": "training", "evaluate": "evaluation", "ablate": "ablation", "summary": "config", "presets": "config",
    "plan": "memory", "convert": "weights", "inspect": "weights",
}  # fmt: skip


# -- commands ----------------------------------------------------------------------------------------------------------


def commands() -> str:
    """The page of all commands and their flags."""
    lines = [
        "# Commands",
        "",
        MADE,
        "",
        "`residuum COMMAND --help` says the same in a terminal. A flag may be written with `-` or `_` between its",
        "words; a switch is turned off by `--no-` before its name. Mistakes end as one paragraph and exit code 2.",
        "",
        "| command | what it does |",
        "| --- | --- |",
    ]
    for name, command in COMMANDS.items():
        first = (inspect.getdoc(command.kind) or "").splitlines()[0].split(". ")[0].rstrip(".")
        lines.append(f"| [`{name}`](#residuum-{name.replace(' ', '-')}) | {cell(first)} |")
    for name, command in COMMANDS.items():
        lines += ["", *_command(name, command.kind, command.defaults(Line({}, asks_help=True)))]
    lines += [
        "",
        "## Fields of a recipe",
        "",
        "`train` and `ablate` have them. The defaults are those of the class; what goes with the data stands in their",
        "place, and `residuum train --data DATA --dry-run` shows it.",
    ]
    plain = [f for f in dataclasses.fields(Recipe) if not dataclasses.is_dataclass(_hint(Recipe, f.name)[0])]
    lines += ["", *_table(_rows(Recipe, Recipe(), only={f.name for f in plain}))]
    for f in dataclasses.fields(Recipe):
        kind = _hint(Recipe, f.name)[0]
        if kind is ResNetConfig:
            lines += ["", "### model", "", "`--model.FIELD` for each of the [fields of a config](#fields-of-a-config)."]
        elif dataclasses.is_dataclass(kind):
            lines += ["", f"### {f.name}", "", _doc(kind), "", *_table(_rows(kind, kind(), f.name))]
    lines += ["", "## Fields of a config", "", "`summary` and `plan` have them under these names, with the preset's"]
    lines += ["values as defaults; `train` and `ablate` under `--model.`, as in `--model.width 0.5`. The defaults here"]
    lines += ["are those of ResNet-50.", "", *_table(_rows(ResNetConfig, ResNetConfig()))]
    lines += ["", "## Fields of an execution", "", "`train` has them. They change nothing of the outcome."]
    lines += ["", *_table(_rows(Execution, Execution()))]
    return "\n".join(lines) + "\n"


def _command(name: str, kind: type, defaults: Any) -> Iterator[str]:
    page = f"{ABOUT.get(name, name.partition(' ')[0])}.md"
    yield f"## residuum {name}"
    yield ""
    yield _doc(kind)
    yield ""
    positionals = [
        f"[{o.name.upper()}]" if not o.required else o.name.upper() for o in options_of(kind) if o.positional
    ]
    usage = " ".join(["residuum", name, *positionals, "[FLAGS]"])
    yield f"`{usage}`" + (
        f"; more about it: [{page.removesuffix('.md')}](../{page})." if (DOCS / page).exists() else ""
    )
    own = [f.name for f in dataclasses.fields(kind) if _hint(kind, f.name)[0] not in SHARED]
    shared = [_hint(kind, f.name)[0] for f in dataclasses.fields(kind) if f.name not in own]
    if shared:
        links = " and the ".join(f"[{SHARED[k].replace('-', ' ')}](#{SHARED[k]})" for k in shared)
        yield f"The {links} are flags too."
    yield ""
    yield from _table(_rows(kind, defaults, only=set(own)))


def _doc(kind: type) -> str:
    return linked(inspect.getdoc(kind) or "")


def _rows(kind: type, values: Any, prefix: str = "", only: set[str] | None = None) -> Iterator[tuple[str, ...]]:
    """Flag, value, default and meaning of each field that is not a dataclass itself."""
    comments = _comments(kind)
    options = {option.name: option for option in options_of(kind, prefix)}
    for f in dataclasses.fields(kind):
        _, extras = _hint(kind, f.name)
        if tyro.conf.Fixed in extras or (only is not None and f.name not in only):
            continue
        argument = next((extra for extra in extras if hasattr(extra, "help_behavior_hint")), None)
        word = getattr(argument, "name", None) or f.name.replace("_", "-")
        option = options[f"{prefix}.{word}" if prefix else word]
        value = getattr(values, f.name)
        needed = ", needed" if value is tyro.MISSING else ""
        yield _flag(option, argument), _value(option) + needed, _default(value, argument), comments[f.name]


def _flag(option: Option, argument: Any) -> str:
    metavar = getattr(argument, "metavar", None)
    if option.positional:
        return f"`{metavar or option.name.upper()}`"
    beside = f" {metavar.replace('|', ' or ')}" if metavar else ""
    return ", ".join(f"`{name}{beside}`" for name in (f"--{option.name}", *option.aliases))


def _value(option: Option) -> str:
    if option.kind is bool:
        return "switch"
    return re.sub(r"\ba Path\b", "a path", wanted(Field(option.name, option.kind, option.constraints)))


def _default(value: Any, argument: Any) -> str:
    said = getattr(argument, "help_behavior_hint", None)
    if isinstance(said, str):
        return said.strip("()").removeprefix("default: ")
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value is tyro.MISSING or value in ("", ()):
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _hint(kind: type, name: str) -> tuple[Any, tuple[Any, ...]]:
    """A field's type, and what is declared beside it."""
    hint = get_type_hints(kind, include_extras=True)[name]
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        return hint, tuple(extras)
    return hint, ()


def _comments(kind: type) -> dict[str, str]:
    """The comment at each field."""
    source = inspect.getsource(kind)
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    fields = [node for node in body.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    lines = source.splitlines()
    return {
        node.target.id: prose(comment_at(lines, node.lineno)) for node in fields if isinstance(node.target, ast.Name)
    }


def _table(rows: Iterator[tuple[str, ...]]) -> list[str]:
    head = ["| flag | value | default | |", "| --- | --- | --- | --- |"]
    return [*head, *(f"| {' | '.join(cell(text) for text in row)} |" for row in rows)]


# -- presets and recipes -----------------------------------------------------------------------------------------------


def costs() -> str:
    """Parameters and MAC of all presets; takes some seconds."""
    from residuum.cost import totals

    figures = {name: totals(config, usual_image_size(name)) for name, config in PRESETS.items()}
    return "preset,parameters,macs\n" + "".join(f"{name},{count},{macs}\n" for name, (count, macs) in figures.items())


def presets() -> str:
    """The page of all presets with their costs and sources."""
    import timm
    import torchvision

    from residuum.cli.tables import gigas

    libraries = {"torchvision": set(torchvision.models.list_models()), "timm": set(timm.list_models())}
    lines = [
        "# Presets",
        "",
        MADE,
        "",
        f"The {len(PRESETS)} published networks that `residuum.create(NAME)` and `--model NAME` take.",
        "`residuum presets` lists them in a terminal, `residuum summary NAME` shows one part by part. A GMAC is 10^9",
        "multiply-adds, two FLOP each, for one image of the size that the preset is meant for; *image* is its side in",
        "pixels. *Fields* are those in which the [config](../config.md) differs from that of ResNet-50, but for the",
        "numbers of blocks. *Also in* names libraries that have the network by the same name: their weights load, and",
        "[give the same numbers](../weights.md#how-exact-it-is).",
    ]
    families: dict[str, list[str]] = {}
    for name, config in PRESETS.items():
        size = usual_image_size(name)
        parameters, macs = preset_costs()[name]
        apart = ", ".join(_differing(config))
        also = ", ".join(library for library, names in libraries.items() if name in names)
        figures = f"{config.depth} | {parameters:,} | {gigas(macs)} | {size[0]}"
        sources = ", ".join(f"[{paper}](https://arxiv.org/abs/{number})" for paper, number in papers(config).items())
        row = f"| `{name}` | {figures} | {apart} | {sources} | {also} |"
        families.setdefault(_family(config, size), []).append(row)
    for family, rows in families.items():
        lines += ["", f"## {family}", "", "| preset | depth | parameters | GMAC | image | fields | papers | also in |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | --- | --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def _family(config: ResNetConfig, image_size: tuple[int, int]) -> str:
    """The heading under which a preset stands."""
    found = {
        "Small images": max(image_size) < 224,
        "Pre-activation": config.preact,
        "ResNet-RS": config.stem_pool == "conv",
        "Anti-aliased": config.antialias != "none",
        "Squeeze-and-excitation": config.attention == "se",
        "Efficient channel attention": config.attention == "eca",
        "ResNeXt and Wide ResNet": config.groups > 1 or config.width_per_group > 64,
    }
    return next((family for family, there in found.items() if there), "ResNet")


def _differing(config: ResNetConfig) -> Iterator[str]:
    """The fields in which a preset is not ResNet-50, but for the numbers of blocks, which its depth says."""
    for field, usual in ResNetConfig().to_dict().items():
        value = config.to_dict()[field]
        if value != usual and field != "depths":
            yield f"`{field}={' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def papers(config: ResNetConfig) -> dict[str, str]:
    """What a network has, and the arXiv number of the paper that it comes from; the family's own first."""
    found = {
        "ResNet": ("1512.03385", True),
        "pre-activation": ("1603.05027", config.preact),
        "ResNeXt": ("1611.05431", config.groups > 1),
        "Wide ResNet": ("1605.07146", config.groups == 1 and config.width_per_group > 64),
        "ResNet-D": ("1812.01187", config.stem in ("deep", "tiered") or config.downsample == "avg"),
        "SE": ("1709.01507", config.attention == "se"),
        "ECA": ("1910.03151", config.attention == "eca"),
        "anti-aliasing": ("1904.11486", config.antialias == "blur"),
        "group norm": ("1803.08494", config.norm == "group"),
        "weight standardization": ("1903.10520", config.weight_standardization),
        "BiT": ("1912.11370", config.weight_standardization and config.stem_pool == "max0"),
        "ResNet-RS": ("2103.07579", config.stem_pool == "conv"),
    }
    return {name: number for name, (number, there) in found.items() if there}


def recipes() -> str:
    """The page of all named recipes: what each is, where it is written, and the file that it makes."""
    lines = [
        "# Named recipes",
        "",
        MADE,
        "",
        '`residuum train --recipe NAME` trains by one, and a recipe file goes over one by `recipe = "NAME"` in its',
        "first line. `residuum recipes NAME` shows one in a terminal, and [recipes](../recipes.md#published-recipes)",
        "has the fields of all side by side. What a recipe leaves out, the data decides.",
        "",
        "| recipe | what | network | data | epochs | batch | top-1 |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for name, found in RECIPES.items():
        network = found.fields.get("model.preset", "any")
        top1 = f"{found.top1[network]:.2f} %" if network in found.top1 else ""
        length = f"{found.fields['epochs']} | {found.fields['batch_size']:,}"
        lines.append(f"| [`{name}`](#{name}) | {found.title} | {network} | {found.data} | {length} | {top1} |")
    lines += ["", "Top-1 is what was published, for the network in the table."]
    for name, found in RECIPES.items():
        lines += ["", f"## {name}", "", f"{found.title}.", "", *_facts(found)]
        lines += ["", "```toml", *found.to_toml().rstrip("\n").splitlines(), "```"]
    return "\n".join(lines) + "\n"


def _facts(found: NamedRecipe) -> Iterator[str]:
    yield f"- Source: {linked(found.source)}."
    if found.top1:
        yield f"- Published top-1 on {found.data}: {', '.join(f'{n} {top1:.2f} %' for n, top1 in found.top1.items())}."
    for sentence in found.differs:
        yield f"- What differs: {linked(sentence)}."
    if found.from_weights:
        yield "- It starts from `--weights`, which bring their network."
    if found.sized is not None:
        yield "- Epochs, batch size and what goes with them change with the number of images."
    yield f"- Reproduced: {found.reproduced or 'no'}."


REFERENCE = DOCS / "reference"
MADE_OF = {  # costs first: the page of presets shows them
    COSTS: costs,
    REFERENCE / "commands.md": commands,
    REFERENCE / "presets.md": presets,
    REFERENCE / "recipes.md": recipes,
}

if __name__ == "__main__":
    for path, make in MADE_OF.items():
        path.write_text(make(), encoding="utf-8")
