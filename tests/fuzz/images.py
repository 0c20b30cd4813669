"""Broken image files: each must give the right pixels, or one sentence that says what is wrong.

    python -m tests.fuzz.images --count 2000 --seed 1

prints counts by format and outcome, and each fault with what reproduces it. Every file goes through `image_size`,
`read_image` for grey and RGB, the transforms of evaluation and training, and `scan`, in a process whose death, time and
memory are watched.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

SECONDS, BYTES = 5, 2**30  # that a file may take, and by which the process may grow
HANGS = 60  # seconds after which the process is ended
FILES = 250  # that one process is given

ENDINGS = {
    "JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "PPM": ".ppm",
    "AVIF": ".avif", "JPEG2000": ".jp2", "ICO": ".ico", "SGI": ".sgi", "QOI": ".qoi", "TGA": ".tga",
}  # fmt: skip
OFTEN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MODES = {
    "JPEG": ("L", "RGB", "CMYK"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"), "BMP": ("1", "L", "P", "RGB"), "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "PPM": ("1", "L", "RGB"), "AVIF": ("RGB", "RGBA"), "JPEG2000": ("L", "RGB", "RGBA"), "ICO": ("RGBA",),
    "SGI": ("L", "RGB"), "QOI": ("RGB", "RGBA"), "TGA": ("L", "P", "RGB", "RGBA"),
}  # fmt: skip
SIZES = ((1, 1), (1, 40), (40, 1), (7, 5), (33, 21), (64, 64), (100, 75), (3, 2000))


@dataclass(frozen=True)
class Case:
    """A file, what was done to it, and the file before that."""

    name: str
    how: tuple[str, ...]
    whole: bytes
    broken: bytes


# -- files -------------------------------------------------------------------------------------------------------------


def picture(draw: random.Random, mode: str) -> Image.Image:
    """A picture of noise or of slopes."""
    width, height = draw.choice(SIZES)
    noise = np.random.default_rng(draw.getrandbits(32))
    if mode == "I;16":
        return Image.fromarray(noise.integers(0, 65536, (height, width)).astype(np.uint16))
    values = noise.integers(0, 256, (height, width, 3)).astype(np.uint8)
    if draw.random() < 0.5:
        y, x = np.mgrid[0:height, 0:width]
        values = np.stack([x, y, x + y], -1).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


def options(draw: random.Random, form: str, image: Image.Image) -> dict[str, object]:
    """What a writer may be asked for, garbage in its metadata included."""
    chosen: dict[str, object] = {}
    if form in ("JPEG", "PNG", "WEBP", "TIFF") and draw.random() < 0.4:  # Pillow's writer of AVIF dies of garbage
        exif = Image.Exif()
        exif[274] = draw.choice([1, 2, 3, 4, 5, 6, 7, 8])
        text = bytearray(exif.tobytes())
        for _ in range(draw.choice([0, 0, 1, 5])):
            text[draw.randrange(6, len(text))] = draw.randrange(256)
        chosen["exif"] = bytes(text) if form != "TIFF" else exif
    if form in ("JPEG", "PNG", "WEBP", "TIFF") and draw.random() < 0.3:
        chosen["icc_profile"] = draw.randbytes(draw.choice([0, 3, 128, 3000, 70_000]))
    if form == "JPEG":
        chosen |= {"progressive": draw.random() < 0.4, "quality": draw.choice([1, 30, 75, 100])}
        if image.mode == "RGB":
            chosen["subsampling"] = draw.randrange(3)
    if form == "PNG" and image.mode == "P" and draw.random() < 0.5:
        chosen["transparency"] = draw.randbytes(draw.choice([1, 256]))
    if form in ("GIF", "WEBP", "PNG", "TIFF", "AVIF") and image.mode not in ("I;16", "1") and draw.random() < 0.3:
        chosen |= {"save_all": True, "append_images": [image.rotate(180), image.rotate(180).resize(image.size)]}
    if form == "TIFF":
        chosen["compression"] = draw.choice([None, "tiff_lzw", "tiff_deflate", "packbits"])
    if form == "WEBP":
        chosen["lossless"] = draw.random() < 0.5
    return chosen


def written(draw: random.Random) -> tuple[str, bytes]:
    """A format and a sound file of it."""
    form = draw.choice(OFTEN if draw.random() < 0.7 else tuple(ENDINGS))
    while True:
        image = picture(draw, draw.choice(MODES[form]))
        file = io.BytesIO()
        with contextlib.suppress(OSError, ValueError, KeyError, struct.error, TypeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.save(file, form, **options(draw, form, image))
            return form, file.getvalue()


# -- damage ------------------------------------------------------------------------------------------------------------


def flip(draw: random.Random, data: bytearray) -> None:
    """Some bits, anywhere."""
    for _ in range(draw.choice([1, 1, 3, 20, 200])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def header(draw: random.Random, data: bytearray) -> None:
    """Some bytes near the beginning."""
    for _ in range(draw.choice([1, 2, 8])):
        data[draw.randrange(min(len(data), 80))] = draw.randrange(256)


def number(draw: random.Random, data: bytearray) -> None:
    """A number that is too large or none at all where one may stand."""
    value = draw.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 60_000, 2**24])
    kind = draw.choice(["<I", ">I", "<H", ">H"])
    raw = struct.pack(kind, value & (0xFFFF if kind[1] == "H" else 0xFFFFFFFF))
    at = draw.randrange(max(1, min(len(data), draw.choice([40, 200, 10**6])) - 4))
    data[at : at + len(raw)] = raw


def truncate(draw: random.Random, data: bytearray) -> None:
    """The end."""
    del data[draw.randrange(len(data)) :]


def cut(draw: random.Random, data: bytearray) -> None:
    """A piece in the middle."""
    at = draw.randrange(len(data))
    del data[at : at + draw.choice([1, 4, 50, 1000])]


def repeat(draw: random.Random, data: bytearray) -> None:
    """A piece twice, or a thousand times."""
    at = draw.randrange(len(data))
    data[at:at] = data[at : at + draw.choice([1, 12, 300])] * draw.choice([1, 1, 1000])


def fill(draw: random.Random, data: bytearray) -> None:
    """A piece of one byte or of noise."""
    at, length = draw.randrange(len(data)), draw.choice([4, 30, 500])
    length = min(length, len(data) - at)
    data[at : at + length] = draw.choice([bytes(length), b"\xff" * length, draw.randbytes(length)])


def append(draw: random.Random, data: bytearray) -> None:
    """Noise after the end."""
    data += draw.randbytes(draw.choice([1, 100, 10_000]))


def other(draw: random.Random, data: bytearray) -> None:
    """The second half of a file of another format."""
    del data[draw.randrange(len(data)) :]
    data += written(draw)[1][draw.choice([0, 8, 60]) :]


DAMAGE = (flip, flip, flip, header, header, number, number, truncate, truncate, cut, repeat, fill, append, other)


def case(seed: int, index: int) -> Case:
    """The case of a seed and an index, always the same."""
    draw = random.Random(f"{seed}/{index}")
    form, whole = written(draw)
    data = bytearray(whole)
    chosen = [draw.choice(DAMAGE) for _ in range(draw.choice([0, 1, 1, 1, 1, 2, 3]))]
    for damage in chosen:
        if data:
            damage(draw, data)
    ending = ENDINGS[form]
    how = [damage.__name__ for damage in chosen]
    if draw.random() < 0.1:
        ending = draw.choice(tuple(ENDINGS.values()))
        how.append(f"as {ending}")
    return Case(f"{index:06}{ending}", (form, *how), whole, bytes(data))


# -- the process that reads them ---------------------------------------------------------------------------------------


def examine(path: Path, whole: Path) -> dict[str, object]:
    """What came of one file: right, refused, or what is wrong with it."""
    import torch

    from residuum.data.augmentation import TrainingTransform
    from residuum.data.catalog import scan
    from residuum.data.decoding import image_size, read_image
    from residuum.data.preparing import evaluation_transform
    from residuum.data.settings import Augmentation
    from residuum.errors import LONGEST, DataError
    from residuum.preprocessing import Preprocessing

    found: list[str] = []
    faults: list[str] = []

    def attempt(what: str, do: object) -> object:
        try:
            value = do()  # type: ignore[operator]
        except DataError as error:
            found.append("refused")
            text = str(error)
            if not (0 < len(text) <= LONGEST and text.isprintable()):
                faults.append(f"{what}: no sentence: {text!r}")
            return None
        except BaseException:
            faults.append(f"{what}: {traceback.format_exc()}")
            return None
        found.append("right")
        return value

    size = attempt("image_size", lambda: image_size(str(path)))
    for channels in (1, 3):
        image = attempt(f"read_image {channels}", lambda channels=channels: read_image(str(path), channels))
        if image is None:
            continue
        if image.dtype != torch.uint8 or tuple(image.shape) != (channels, *(size or ())):
            faults.append(f"read_image {channels} gives {image.dtype} {tuple(image.shape)}, and image_size {size}")
        elif whole.is_file():  # nothing but its end is missing, or nothing at all
            reference = attempt("whole", lambda channels=channels: read_image(str(whole), channels))
            if reference is None or not torch.equal(image, reference):
                faults.append(f"read_image {channels} gives other pixels than of the whole file")
        look = Preprocessing(channels, (24, 32), (0.5,) * channels, (0.25,) * channels, 0.875)
        for transform in (
            evaluation_transform(look),
            TrainingTransform(look, Augmentation(crop_scale=(0.08, 1.0), flip="random")),
            TrainingTransform(look, Augmentation(pad=2)),
        ):
            made = attempt(type(transform).__name__, lambda image=image, transform=transform: transform(image))
            if made is not None and made.shape != (channels, 24, 32):
                faults.append(f"{type(transform).__name__} gives {tuple(made.shape)}")
    catalog = attempt("scan", lambda: scan(path.parents[1]))
    if catalog is not None and str(path) not in dict(catalog.files["train"]):
        faults.append("scan does not list the file")
    return {"outcome": "fault" if faults else "refused" if "refused" in found else "right", "says": "\n".join(faults)}


def serve(folder: Path) -> None:
    """Examine each file of a folder in turn; a line before and after each."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    for path in sorted((folder / "broken").iterdir()):
        dataset = folder / "data" / "train" / path.stem
        target = dataset / "a" / path.name
        target.parent.mkdir(parents=True)
        (dataset / "b").mkdir()
        Image.new("L", (4, 4)).save(dataset / "b" / "x.png")
        path.rename(target)
        print(json.dumps({"name": path.name}), flush=True)
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        signal.alarm(HANGS)
        result = examine(target, folder / "whole" / path.name)
        signal.alarm(0)
        grown, spent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - begin
        if spent > SECONDS or grown > BYTES / 1024:
            result = {"outcome": "fault", "says": f"{spent:.1f} s, {grown / 1024:.0f} MiB"}
        print(json.dumps({"name": path.name} | result), flush=True)


# -- all together ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a file ended: right, refused or fault, and what it said."""

    case: Case
    kind: str
    says: str


def outcomes(count: int, seed: int) -> Iterator[Outcome]:
    """What comes of the first `count` cases of a seed, some hundred in a process."""
    for begin in range(0, count, FILES):
        cases = {one.name: one for one in (case(seed, i) for i in range(begin, min(begin + FILES, count)))}
        with tempfile.TemporaryDirectory(prefix="fuzz-images-") as place:
            folder = Path(place)
            (folder / "broken").mkdir()
            (folder / "whole").mkdir()
            for one in cases.values():
                (folder / "broken" / one.name).write_bytes(one.broken)
                if one.whole.startswith(one.broken):
                    (folder / "whole" / one.name).write_bytes(one.whole)
            while any((folder / "broken").iterdir()):  # again after a file that has ended the process
                yield from _served(folder, cases)


def _served(folder: Path, cases: dict[str, Case]) -> Iterator[Outcome]:
    line = [sys.executable, "-W", "ignore::Warning", "-m", "tests.fuzz.images", "--serve", str(folder)]
    ended = subprocess.run(line, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    under_way = None
    for text in ended.stdout.splitlines():
        said = json.loads(text)
        if "outcome" in said:
            yield Outcome(cases[said["name"]], said["outcome"], said["says"])
            under_way = None
        else:
            under_way = said["name"]
    if under_way is not None:
        yield Outcome(cases[under_way], "fault", f"the process ended with {ended.returncode}: {ended.stderr[-500:]}")
    elif ended.returncode:
        raise RuntimeError(ended.stderr)


def main() -> None:
    """Try so many files of a seed; exits 1 if one is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the files that are faults")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return
    counts: Counter[tuple[str, str]] = Counter()
    for outcome in outcomes(args.count, args.seed):
        counts[outcome.case.how[0], outcome.kind] += 1
        if outcome.kind == "fault":
            print(f"{outcome.case.name}: {' '.join(outcome.case.how)}\n{outcome.says}", flush=True)
            if args.keep is not None:
                args.keep.mkdir(parents=True, exist_ok=True)
                (args.keep / outcome.case.name).write_bytes(outcome.case.broken)
    kinds = ("right", "refused", "fault")
    print(f"{'':10}" + "".join(f"{kind:>9}" for kind in kinds))
    for form in ENDINGS:
        print(f"{form:10}" + "".join(f"{counts[form, kind]:9,}" for kind in kinds))
    total = {kind: sum(n for (_, k), n in counts.items() if k == kind) for kind in kinds}
    print(f"{'all':10}" + "".join(f"{total[kind]:9,}" for kind in kinds))
    sys.exit(1 if total["fault"] else 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
