"""Odd configs, recipes and command lines: each must give the right result, or one sentence that says what is wrong.

    python -m tests.fuzz.lines --count 5000 --seed 1

prints counts by outcome, and each fault with what reproduces it. No line trains or measures: those of commands that
would are given something at their end that must be refused before.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from residuum import ResiduumError, ResNetConfig
from residuum.cli.line import options_of
from residuum.cli.main import COMMANDS, main
from residuum.errors import LONGEST, quoted
from residuum.presets import PRESETS
from residuum.train.recipe import Recipe

SECONDS, BYTES = 5, 2**30  # that a case may take of the processor, and by which the process may grow
HANGS = 30  # seconds after which a case is ended
ENCODINGS = ("utf-8", "ascii", "latin-1", "cp1252")
# Ends of lines that would train or measure: each is refused before that begins.
REFUSED = {
    "train": ["--out", "taken"],
    "bench": ["--contenders", "nobody"],
    "plan": ["--draw", "net.pdf"],
    "ablate": ["--only", "nobody"],
}

NUMBERS = (
    0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 100, 128, 255, 512, 1000, 1024, 4097, 65536, 2**20, 2**20 + 1, 10**6,
    2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**100, 10**400, 10**5000,
)  # fmt: skip
REALS = (
    0.0, -0.0, 0.1, 0.25, 0.5, 0.9, 0.999999999, 1.0, 1.0000001, 1.5, 2.0, 64.0, 1e-9, 1e-320, 1e9, 1e30, 1e308,
    math.inf, -math.inf, math.nan,
)  # fmt: skip
TEXTS = (
    "", " ", "None", "True", "auto", "cpu", "cuda:99", "gpu", "[red]", "[/]", ":smile:", "\x1b[31m", "a\nb", "\t", "\0",
    "é", "日本", "💥", "\u202e", "\udcff\udc80", "$x^{", "%s%n", "{0}", "-", "--", "-1", "--x", "=", "a=b", "..", "/",
    ".", "~", "~/x", "~nobody/x", "x" * 300, "x/" * 2500, "x" * 5000, "taken", "folder", "net.svg", "net.png",
    "no/net.svg", "net.pdf", "/dev/null", "/dev/full", "/proc/self/mem", "8GB", "1e9TB", "-3GB", "99999999999TiB",
    "0.0000001k", "digits", "cifar10", "run", "hf:", "timm:", "torchvision:resnet18.nope", "recipe.toml", "odd.toml",
)  # fmt: skip


# -- values ------------------------------------------------------------------------------------------------------------


def number(rng: random.Random) -> int:
    return rng.choice(NUMBERS) * rng.choice((1, 1, 1, 1, -1))


def odd(rng: random.Random, depth: int = 0) -> Any:
    """A value of any kind."""
    kinds: list[Callable[[], Any]] = [
        lambda: number(rng),
        lambda: rng.choice(REALS),
        lambda: rng.choice(TEXTS),
        lambda: rng.choice((True, False)),
    ]
    if depth < 3:
        kinds += [
            lambda: [odd(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 4, 50)))],
            lambda: {rng.choice((*TEXTS, "a", "model", "width")): odd(rng, depth + 1)},
            lambda: [[]] * rng.choice((1, 10**4)),
        ]
    return rng.choice(kinds)()


def fitting(rng: random.Random, kind: Any) -> Any:
    """A value of a type, not always one that is allowed."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fitting(rng, inner[0])
    if origin in (Union, types.UnionType):
        return fitting(rng, rng.choice(inner))
    if origin is Literal:
        return rng.choice(inner)
    if origin is tuple:
        many = rng.choice((1, 1, 2, 3, 3, 4, 4, 4, 5, 33, 1000)) if inner[-1] is Ellipsis else len(inner)
        return [fitting(rng, inner[0] if inner[-1] is Ellipsis else inner[i]) for i in range(many)]
    if dataclasses.is_dataclass(kind):
        return table(rng, kind)
    if kind is int:
        return rng.choice(NUMBERS[:20]) if rng.random() < 0.8 else number(rng)
    if kind is float:
        return rng.choice(REALS)
    if kind is bool:
        return rng.random() < 0.5
    return rng.choice(TEXTS) if kind in (str, Path) else None


def table(rng: random.Random, kind: Any) -> dict[str, Any]:
    """Some fields of a config class, most of them with values of their type, now and then one that it has not."""
    hints = get_type_hints(kind, include_extras=True)
    names = rng.sample(sorted(hints), k=min(len(hints), rng.choice((0, 1, 1, 2, 2, 3, 4, 8))))
    share = rng.choice((0.0, 0.05, 0.3))
    values = {name: odd(rng) if rng.random() < share else fitting(rng, hints[name]) for name in names}
    if rng.random() < 0.05:
        values[rng.choice(("widht", "", "[red]", "x" * 5000, "__class__"))] = odd(rng)
    if "depths" in values and "widths" not in values and isinstance(values["depths"], list) and rng.random() < 0.7:
        values["widths"] = [rng.choice(NUMBERS[:16]) for _ in values["depths"]]
    return values


def plain(value: Any) -> Any:
    """A value as TOML can hold it."""
    if isinstance(value, dict):
        return {key.encode("utf-8", "replace").decode(): plain(v) for key, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value if v is not None]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and abs(value) > 10**4000:
        return 10**400
    return value


def mutated(rng: random.Random, text: str) -> str:
    """A text with some letters changed, left out or doubled; now and then something else altogether."""
    if rng.random() < 0.1:
        return rng.choice(
            (*TEXTS, "[" * 10**5, "a = " + "[" * 3000, "{" * 500, "[[a]]", "a.b.c = 1", '"' * 3, "1" * 10**5)
        )
    for _ in range(rng.choice((0, 0, 0, 1, 2, 5))):
        place = rng.randrange(len(text) + 1)
        text = (
            text[:place]
            + rng.choice(("", "=", '"', "[", "]", "\n", "#", "0", "9" * 400, "\x7f", "é"))
            + text[place + 1 :]
        )
    return text


# -- cases -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `right`, `refused`, or `fault` with what was wrong."""

    case: str
    kind: str
    says: str
    seconds: float


def right_config(rng: random.Random, make: Callable[[], ResNetConfig]) -> str:
    """A config that was accepted keeps what it says, has a plan, and is a network."""
    config = make()
    assert ResNetConfig.from_dict(config.to_dict()) == config
    assert ResNetConfig.from_toml(config.to_toml()) == ResNetConfig.from_json(config.to_json()) == config
    assert config.num_features >= 1
    assert len(config.stages) == len(config.depths)
    if sum(config.depths) <= 6 and rng.random() < 0.1:
        import torch

        from residuum.nn.resnet import ResNet

        with torch.device("meta"):
            ResNet(config)
    if rng.random() < 0.01:
        from residuum.draw import draw

        draw(config, Path("drawn.svg"), name="odd", figures="")
    return ""


def config_case(rng: random.Random) -> tuple[str, Callable[[], str]]:
    values = table(rng, ResNetConfig)
    form = rng.choice(("dict", "dict", "json", "toml", "replace"))
    if form == "dict":
        return f"ResNetConfig.from_dict({quoted(values, 300)})", lambda: right_config(
            rng, lambda: ResNetConfig.from_dict(values)
        )
    if form == "replace":
        base = PRESETS[rng.choice(list(PRESETS))]
        return f"replace({quoted(values, 300)})", lambda: right_config(rng, lambda: base.replace(**values))
    if form == "json":
        text = mutated(rng, json.dumps(plain(values)))
        return f"from_json({quoted(text, 300)})", lambda: right_config(rng, lambda: ResNetConfig.from_json(text))
    text = mutated(rng, tomli_w.dumps(plain(values)))
    return f"from_toml({quoted(text, 300)})", lambda: right_config(rng, lambda: ResNetConfig.from_toml(text))


def recipe_case(rng: random.Random) -> tuple[str, Callable[[], str]]:
    text = mutated(rng, tomli_w.dumps(plain(table(rng, Recipe))))

    def right() -> str:
        recipe = Recipe.from_toml(text)
        assert Recipe.from_toml(recipe.to_toml()) == recipe
        return ""

    return f"Recipe.from_toml({quoted(text, 300)})", right


def words(rng: random.Random, value: Any) -> list[str]:
    """A value as the words of a line."""
    if isinstance(value, list | tuple):
        return [word for part in value[:6] for word in words(rng, part)]
    if isinstance(value, int) and abs(value) > 10**4000:
        return ["-" * (value < 0) + "9" * 5000]
    return [str(value).replace("\0", "") if not isinstance(value, dict) else "{}"]


def line(rng: random.Random, name: str) -> list[str]:
    """A command line: some flags of the command, most with values of their type, in any order."""
    options = options_of(COMMANDS[name].kind)
    share = rng.choice((0.0, 0.1, 0.5))
    groups = []
    for option in rng.sample(options, k=min(len(options), rng.choice((0, 1, 1, 2, 3, 5)))):
        value = odd(rng) if rng.random() < share else fitting(rng, option.kind)
        if option.positional:
            continue
        flag = rng.choice(option.flags)
        if rng.random() < 0.05:
            flag = flag.replace("-", rng.choice(("", "_", "-x", "--")), 3)
        given = words(rng, value) if option.words else []
        groups.append([f"{flag}={given[0]}"] if len(given) == 1 and rng.random() < 0.3 else [flag, *given])
    for option in options:
        if option.positional and rng.random() < 0.9:
            preset = name in ("summary", "plan") and rng.random() < 0.8
            groups.append([rng.choice(list(PRESETS)) if preset else rng.choice(TEXTS[1:]).replace("\0", "")])
    rng.shuffle(groups)
    if rng.random() < 0.05:
        groups.insert(rng.randrange(len(groups) + 1), [rng.choice(("-h", "--help", "--", "-x", "extra", " "))])
    return [*name.split(), *(word for group in groups for word in group), *REFUSED.get(name, [])]


def odd_line(rng: random.Random) -> list[str]:
    if rng.random() < 0.03:
        return [rng.choice(TEXTS).replace("\0", "") for _ in range(rng.randrange(3))]
    return line(rng, rng.choice((*COMMANDS, "summary", "train")))


def line_case(rng: random.Random) -> tuple[str, Callable[[], str]]:
    args, encoding = odd_line(rng), rng.choice(ENCODINGS)
    return f"{encoding}: residuum {args!a:.400}", lambda: run_line(args, encoding)


def run_line(args: list[str], encoding: str) -> str:
    """Run a line in this process, on a console of that encoding; what it said where it was refused."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    before = sys.argv
    sys.argv = ["residuum", *args]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = before
    err.flush()
    out.flush()
    said = err.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    shown = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    return judged(args, code, shown, said)


def judged(args: list[str], code: Any, shown: str, said: str) -> str:
    """What a command said where it was refused, "" where it was right; `AssertionError` for a wrong end."""
    # What it finds wrong with a machine is the machine's.
    assert code in (0, 1, 2) if args[:1] == ["doctor"] else code in (0, 2), f"exit code {code}"
    assert "Traceback" not in shown + said, said[-300:]
    asks_help = any(word in ("-h", "--help") for word in args)
    if code in (0, 1):
        dry = any("dry" in word for word in args)  # an estimate, which writes nothing
        assert asks_help or dry or not args or args[0] not in REFUSED, "it should have been refused"
        return ""
    paragraph = said.strip().rpartition("error: ")[2]
    assert "error: " in said, f"no error was said: {said!a:.300}"
    assert said.strip().count("\n") <= 3, f"{said.count(chr(10))} lines: {said!a:.300}"
    assert 10 <= len(paragraph) <= 5 * LONGEST, f"{len(paragraph)} letters"
    assert paragraph.isprintable(), f"{paragraph!a:.300}"
    assert "__tyro" not in said
    return paragraph


CASES = (config_case, config_case, config_case, recipe_case, line_case, line_case)


def tried(case: str, attempt: Callable[[], str]) -> Outcome:
    """Run a case and judge how it ended."""
    begin, held = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def ended(signum: int, frame: Any) -> None:
        raise TimeoutError(f"no end after {HANGS} s")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(HANGS)
    kind, says = "right", ""
    try:
        says = attempt()
        kind = "refused" if says else "right"
    except ResiduumError as error:
        kind, says = "refused", str(error)
        if not (10 <= len(says) <= LONGEST and says.isprintable()):
            kind = "fault"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind, says = "fault", f"{type(error).__name__}: {str(error)!a:.300} at {where.filename}:{where.lineno}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    seconds = time.process_time() - begin  # of this process: a busy machine is no fault
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held
    if seconds > SECONDS:
        kind, says = "fault", f"{seconds:.1f} s; {says}"
    if grown > BYTES:
        kind, says = "fault", f"grew by {grown:,} bytes; {says}"
    return Outcome(case, kind, says, seconds)


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """A folder of its own to work in, with a file that is taken, a folder, and recipes good and bad."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("taken").write_text("taken", encoding="utf-8")
            Path("folder").mkdir()
            Path("recipe.toml").write_text("epochs = 2\n", encoding="utf-8")
            Path("odd.toml").write_bytes(b"\xff = [1, \0")
            yield
        finally:
            os.chdir(before)


def outcomes(count: int, seed: int) -> Iterator[Outcome]:
    """Try `count` cases; the same seed gives the same ones."""
    from torch.utils import flop_counter  # noqa: F401

    import residuum.draw
    import residuum.memory.planner  # noqa: F401

    with workplace():
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            case, attempt = rng.choice(CASES)(rng)
            yield tried(f"seed {seed}, number {number}: {case}", attempt)


def in_child(args: list[bytes], encoding: str) -> str:
    """Run a line in a process of its own, on a console of that encoding."""
    program = [sys.executable, "-c", "from residuum.cli import main; main()"]
    done = subprocess.run(
        [*program, *args],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 2), done.stderr[-400:]
    shown, said = done.stdout.decode(encoding), done.stderr.decode(encoding)
    return judged([os.fsdecode(word) for word in args], done.returncode, shown, said)


def report(count: int, seed: int) -> Counter[str]:
    """Try cases, print each fault, then the counts."""
    counts: Counter[str] = Counter()
    slowest = 0.0
    for outcome in outcomes(count, seed):
        counts[outcome.kind] += 1
        slowest = max(slowest, outcome.seconds)
        if outcome.kind == "fault":
            print(f"{outcome.case}\n    {outcome.says}", flush=True)
    print(f"{count} cases of seed {seed}: {dict(sorted(counts.items()))}; the slowest took {slowest:.1f} s")
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    asked = parser.parse_args()
    sys.exit(report(asked.count, asked.seed)["fault"] > 0)
