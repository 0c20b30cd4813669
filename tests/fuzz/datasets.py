"""Broken lists, tars, arrays, packed and Arrow files: each must be a dataset whose images are read, or one sentence.

    python -m tests.fuzz.datasets --count 2000 --seed 1

prints counts by kind and outcome, and each fault with what reproduces it.
"""

import argparse
import faulthandler
import importlib.util
import random
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from residuum.data.catalog import scan, split_files
from residuum.data.decoding import image_size, read_image
from residuum.errors import LONGEST, DataError
from tests.data.kinds import as_kind

KINDS = ("list.csv", "list.jsonl", "images.tar", "beside.tar", "images.packed", "plain.npz", "compressed.npz", "arrow")


@dataclass(frozen=True)
class Outcome:
    """How a dataset ended: right, refused or fault, and what it said."""

    kind: str
    number: int
    ending: str
    says: str


def sound(folder: Path) -> dict[str, tuple[Path, list[Path]]]:
    """A dataset of each kind: its path, and the files that are broken."""
    root = folder / "data"
    for split, count in (("train", 5), ("test", 2)):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 255, (9, 9, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    arrays = {
        "images": np.arange(8 * 81, dtype=np.uint16).astype(np.uint8).reshape(8, 9, 9),
        "labels": np.arange(8) % 2,
    }
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "compressed.npz", **arrays)
    made = {}
    for kind in KINDS:
        if kind == "arrow" and importlib.util.find_spec("datasets") is None:
            continue
        path = folder / kind if kind.endswith(".npz") else as_kind(root, kind, folder)
        made[kind] = (path, sorted(path.rglob("*.arrow")) if path.is_dir() else [path])
    return made


def broken(draw: random.Random, whole: bytes) -> bytes:
    """Some damage, anywhere or near the beginning."""
    data = bytearray(whole)
    for _ in range(draw.choice([1, 1, 2, 5, 30])):
        if not data:
            break
        at = draw.randrange(len(data) if draw.random() < 0.7 else min(len(data), 2000))
        what = draw.randrange(6)
        if what == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            data[at] = draw.randrange(256)
        elif what == 2:
            del data[at : at + draw.choice([1, 10, 512, 2000])]
        elif what == 3:
            data[at:at] = bytes(draw.choice([1, 3, 512]))
        elif what == 4:
            data[at : at + 4] = draw.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"9999", b"-1-1", b"\x1b[0m"])
        elif draw.random() < 0.3:
            del data[at:]
    return bytes(data)


def examine(path: Path) -> tuple[str, str]:
    """What came of a dataset."""
    try:
        catalog = scan(path)
        split_files(catalog, 0.2)
        for files in catalog.files.values():
            for place, _ in files:
                try:
                    if read_image(place, 3).shape[1:] != image_size(place):
                        return "fault", f"{place} has another size than it says"
                except DataError as error:
                    check(error)
    except DataError as error:
        check(error)
        return "refused", str(error)
    except BaseException:
        return "fault", traceback.format_exc()
    return "right", ""


def check(error: DataError) -> None:
    """A refusal is one sentence that a terminal can show."""
    text = str(error)
    assert 0 < len(text) <= LONGEST
    assert text.isprintable()


def outcomes(count: int, seed: int) -> Iterator[Outcome]:
    """What comes of the first `count` cases of a seed."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-datasets-") as place:
        made = sound(Path(place))
        for number in range(count):
            kind = draw.choice(list(made))
            path, files = made[kind]
            file = draw.choice(files)
            whole = file.read_bytes()
            file.write_bytes(broken(draw, whole))
            try:
                yield Outcome(kind, number, *examine(path))
            finally:
                file.write_bytes(whole)


def main() -> None:
    """Try so many datasets of a seed; exits 1 if one is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    faulthandler.enable()  # an Arrow file may end the process
    counts: Counter[str] = Counter()
    for outcome in outcomes(args.count, args.seed):
        counts[f"{outcome.kind:16} {outcome.ending}"] += 1
        if outcome.ending == "fault":
            print(f"seed {args.seed}, case {outcome.number}, {outcome.kind}: {outcome.says}")
    for what, number in sorted(counts.items()):
        print(f"{what:26} {number:6,}")
    raise SystemExit(any(what.endswith("fault") for what in counts))


if __name__ == "__main__":
    main()
