"""The ten modifications: each contender's program is that network, and ours are the shortest."""

import re
from pathlib import Path

import pytest
import torch
from benchmarks.code_size import brute_force
from benchmarks.code_size.changes import CHANGES, CONTENDERS, changed_lines, lines_to_change, load_in_order, program
from tests.networks import relative, scramble

from residuum import ConfigError, ResNetConfig, load_weights
from residuum.memory import kept_bytes
from residuum.nn import resnet
from residuum.weights.layouts import LAYOUTS, to_ours

NAMES = [name for name, _ in CHANGES]
OTHERS = [contender for contender in CONTENDERS if contender != "residuum"]
CONFIGS = {
    "base": {},
    "half_width": {"width": 0.5},
    "resnet101": {"depths": (3, 4, 23, 3)},
    "cifar_stem": {"stem": "conv3", "stem_pool": "none"},
    "stochastic_depth": {"stochastic_depth": 0.1},
    "se": {"attention": "se"},
    "resnext": {"groups": 32, "width_per_group": 4},
    "d_shortcut": {"downsample": "avg"},
    "four_channels": {"in_channels": 4},
    "checkpointing": {},
    "preactivation": {"preact": True},
}
# Where other modules stand around the same layers, names are others, but not their order.
IN_ORDER = {("torchvision", change) for change in ("stochastic_depth", "se", "d_shortcut", "preactivation")}
# Parts that the library itself has no names for, or not in this place.
RENAMED = {
    ("transformers", "se"): [
        (r"resnet\.encoder\.stages\.(\d)\.layers\.(\d)\.layer\.3\.", r"stages.\1.blocks.\2.se."),
    ],
    ("transformers", "d_shortcut"): [(r"shortcut\.1\.", "shortcut.")],
    ("transformers", "preactivation"): [
        (r"convolutions\.(\d)", r"layer.\1.convolution"),
        (r"normalizations\.(\d)", r"layer.\1.normalization"),
        (r"shortcut\.", "shortcut.convolution."),
        (r"resnet\.pooler\.0\.", "norm."),
    ],
    ("timm", "half_width"): [
        (r"stem\.conv", "conv1"),
        (r"stem\.norm", "bn1"),
        (r"norm(\d)", r"bn\1"),
        (r"downsample\.conv", "downsample.0"),
        (r"downsample\.norm", "downsample.1"),
        (r"head\.fc", "fc"),
    ],
}


def run(contender, change):
    """The program's names, its network's tensors without values yet: filling them as libraries do takes long."""
    if contender in ("timm", "transformers"):
        pytest.importorskip(contender)
    namespace = {"__name__": f"{contender}_{change}"}
    with torch.device("meta"):
        exec(compile(program(contender, change), f"{contender}/{change}.py", "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def noise():
    """Normal values, drawn once: drawing them for each network would take most of the time."""
    return torch.randn(5_000_000, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def build(noise):
    """Make a contender's network with values in its tensors."""

    def make(contender, change):
        torch.manual_seed(0)
        model = run(contender, change)["model"].to_empty(device="cpu")
        start = 0
        for parameter in model.parameters():
            if parameter.ndim > 1:
                count = parameter.numel()
                values = noise[start : start + count].view_as(parameter)
                parameter.data = values * parameter[0].numel() ** -0.5
                start = (start + 7919) % (len(noise) - 2_400_000)  # no two layers have the same values
        scramble(model)
        return model

    return make


def images(change):
    side = 16 if change == "cifar_stem" else 32
    return torch.randn(2, 4 if change == "four_channels" else 3, side, side)


def logits(model, x):
    out = model(x)
    return out if isinstance(out, torch.Tensor) else out.logits


def carry(contender, change, theirs, ours):
    """Bring the weights of a contender's network into ours."""
    state = theirs.state_dict()
    if contender == "brute_force" or (contender, change) in IN_ORDER:
        load_in_order(ours, state)
        return
    rules = RENAMED.get((contender, change))
    if rules is None:
        load_weights(ours, state)
        return
    named = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        name = (to_ours(name, LAYOUTS["hf"]) or [name])[0]  # noqa: PLW2901
        name = re.sub(r"stages\.(\d)\.blocks", lambda stage: f"layer{int(stage[1]) + 1}", name)  # noqa: PLW2901
        if (contender, change) == ("transformers", "d_shortcut"):  # ours has the pool before these
            name = re.sub(r"downsample\.(\d)", lambda i: f"downsample.{int(i[1]) + 1}", name)  # noqa: PLW2901
        named[name] = tensor
    load_weights(ours, named)


@pytest.mark.parametrize("change", ["base", *NAMES])
def test_our_program_makes_the_network_of_its_config(change):
    assert run("residuum", change)["model"].config == ResNetConfig(**CONFIGS[change])


@pytest.mark.slow
@pytest.mark.parametrize("change", ["base", *NAMES])
@pytest.mark.parametrize("contender", OTHERS)
def test_the_program_of_each_contender_makes_the_same_network(contender, change, build):
    theirs = build(contender, change).eval()
    ours = run("residuum", change)["model"].to_empty(device="cpu").eval()
    carry(contender, change, theirs, ours)
    x = images(change)
    with torch.inference_mode():
        expected = logits(theirs, x)
        assert expected.shape == (2, 1000)
        assert relative(ours(x), expected) <= 1e-5


@pytest.mark.parametrize("contender", CONTENDERS)
def test_stochastic_depth_drops_at_random_in_training(contender, build):
    x = images("stochastic_depth")
    with torch.no_grad():
        for change, same in (("base", True), ("stochastic_depth", False)):
            model = build(contender, change).train()
            assert torch.equal(logits(model, x), logits(model, x)) == same


@pytest.mark.parametrize("contender", CONTENDERS)
def test_the_rate_of_stochastic_depth_grows_linearly(contender):
    namespace = run(contender, "stochastic_depth")
    if contender == "brute_force":
        rates = []
        namespace["stochastic_depth"] = lambda out, rate, mode, training: rates.append(rate) or out
        namespace["model"](torch.zeros(2, 3, 64, 64, device="meta"))
    else:
        found = [
            next(
                (getattr(m, name) for name in ("rate", "drop_prob", "p") if isinstance(getattr(m, name, None), float)),
                0,
            )
            for m in namespace["model"].modules()
        ]
        rates = [rate for rate in found if rate > 0]
    assert rates == pytest.approx([0.1 * i / 15 for i in range(1, 16)])


@pytest.mark.slow
@pytest.mark.parametrize("contender", CONTENDERS)
def test_checkpointing_keeps_less_and_changes_no_gradient(contender, build):
    x = images("checkpointing")
    plain, checkpointed = (build(contender, change).train() for change in ("base", "checkpointing"))
    plain.load_state_dict(checkpointed.state_dict())
    for model in (plain, checkpointed):
        logits(model, x).square().mean().backward()
    for (name, mine), their in zip(checkpointed.named_parameters(), plain.parameters(), strict=True):
        assert relative(mine.grad, their.grad) <= 1e-6, name
    assert kept_bytes(checkpointed, x) < kept_bytes(plain, x) / 2


@pytest.mark.parametrize("change", NAMES)
def test_ours_is_the_shortest(change):
    counts = {contender: lines_to_change(contender)[change] for contender in CONTENDERS}
    assert 0 < counts["residuum"] <= min(counts.values()), counts


def test_a_replaced_line_counts_once_and_what_is_no_code_not_at_all():
    before = "a = 1\nb = 2\nc = 3\n"
    assert changed_lines(before, before) == 0
    assert changed_lines(before, "a = 1\nb = 5\nc = 3\n") == 1
    assert changed_lines(before, "a = 1\nx = 0\ny = 0\nc = 3\n") == 2
    assert changed_lines(before, "a = 1\nc = 3\nd = 4\n") == 2
    assert changed_lines(before, '"""What it is."""\n\na = 1\n# why\nb = 2\nc = 3\n') == 0


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="no contender 'keras'"):
        program("keras", "se")
    with pytest.raises(ConfigError, match="no change 'wider'"):
        program("timm", "wider")


PAGE = Path(__file__).parents[2] / "docs" / "brute_force.md"


def test_the_page_shows_these_counts():
    rows = re.findall(r"^\| (.+?) \| ((?:\d+ \| ){4}\d+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    shown = {title: [int(n) for n in figures.split(" | ")] for title, figures in rows}
    for name, title in CHANGES:
        assert shown[title] == [lines_to_change(contender)[name] for contender in CONTENDERS], title


def test_the_page_shows_the_sources_as_they_are():
    sources = [Path(module.__file__).read_text(encoding="utf-8") for module in (brute_force, resnet)]
    excerpts = re.findall(r"^```\n( {8}.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(excerpts) == 4
    for excerpt in excerpts:
        assert any(excerpt in source for source in sources), excerpt
