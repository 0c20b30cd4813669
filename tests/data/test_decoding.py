"""Image files: torchvision's pixels in every mode, EXIF in every format, and damage that ends in a sentence."""

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

from residuum.data import decoding
from residuum.data.decoding import FORMATS, LARGEST_IMAGE, image_size, is_image, read_image
from residuum.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchvision")


def picture(mode="RGB", width=93, height=69):
    """A smooth picture with all colours, its halves unlike."""
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((x * 600 + y).astype(np.uint16))
    return Image.fromarray(values).convert(mode)


def saved(path, image, **options):
    image.save(path, FORMATS[path.suffix], **options)
    return str(path)


MODES = {
    ".jpg": ["L", "RGB", "CMYK"],
    ".png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    ".webp": ["RGB", "RGBA"],
    ".gif": ["L", "P"],
    ".bmp": ["1", "L", "P", "RGB"],
    ".tif": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
    ".ppm": ["1", "L", "RGB"],
    ".jp2": ["L", "RGB", "RGBA", "I;16"],
    ".avif": ["RGB", "RGBA"],
    ".ico": ["RGBA"],
    ".sgi": ["L", "RGB"],
    ".qoi": ["RGB", "RGBA"],
    ".tga": ["L", "RGB", "RGBA"],
    ".dib": ["RGB"],
}


LOSSLESS = (".png", ".bmp", ".tif", ".ppm", ".sgi", ".qoi", ".tga")


@pytest.mark.parametrize(("ending", "mode"), [(ending, mode) for ending, modes in MODES.items() for mode in modes])
def test_every_format_and_mode_becomes_grey_and_rgb(tmp_path, ending, mode):
    image = picture(mode, 64, 48)
    path = saved(tmp_path / f"x{ending}", image)
    grey, colour = read_image(path, 1), read_image(path, 3)
    assert (grey.shape[0], colour.shape[0]) == (1, 3)
    assert grey.shape[1:] == colour.shape[1:] == image_size(path)
    assert grey.dtype == colour.dtype == torch.uint8
    if mode in ("L", "RGB", "RGBA", "LA") and ending in LOSSLESS:
        expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(colour.permute(1, 2, 0).numpy(), expected)
    if mode == "I;16":
        assert torch.equal(colour, grey.expand(3, -1, -1))
        assert torch.equal(grey[0], torch.from_numpy((np.asarray(image) >> 8).astype(np.uint8)))


BY_TORCHVISION = [(e, channels) for e in (".jpg", ".png", ".gif", ".webp") for channels in (1, 3)]
BY_TORCHVISION = [one for one in BY_TORCHVISION if one not in ((".gif", 1), (".webp", 1))]  # it gives these in colour


@pytest.mark.parametrize(("ending", "channels", "mode"), [(e, c, mode) for e, c in BY_TORCHVISION for mode in MODES[e]])
def test_pixels_are_torchvisions(tmp_path, ending, channels, mode):
    path = saved(tmp_path / f"x{ending}", picture(mode))
    theirs = decode_image(path, ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB)
    theirs = theirs[0] if theirs.ndim == 4 else theirs
    theirs = theirs if theirs.dtype == torch.uint8 else (theirs.int() >> 8).to(torch.uint8)
    difference = (read_image(path, channels).int() - theirs.int()).abs().max()
    # libpng has other weights for grey than ITU-R 601 and than all other decoders.
    assert difference <= (ending == ".png" and channels == 1)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 5}])
def test_jpegs_of_any_kind_have_torchvisions_pixels(tmp_path, options):
    path = saved(tmp_path / "x.jpg", picture(width=101, height=67), **options)
    for channels, mode in ((1, ImageReadMode.GRAY), (3, ImageReadMode.RGB)):
        assert torch.equal(read_image(path, channels), decode_image(path, mode))


TURNED = [(ending, "RGB") for ending in (".jpg", ".png", ".webp", ".avif", ".tif")] + [(".tif", "L")]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("ending", "mode"), TURNED)
@pytest.mark.parametrize(("width", "height"), [(93, 69), (1, 9)])
def test_exif_orientation_is_followed_wherever_a_format_has_it(tmp_path, ending, mode, orientation, width, height):
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / f"x{ending}", picture(mode, width, height), exif=exif)
    with Image.open(io.BytesIO(Path(path).read_bytes())) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_image(path, 3).permute(1, 2, 0).numpy(), expected)
    assert image_size(path) == expected.shape[:2] == ((width, height) if orientation >= 5 else (height, width))


@pytest.mark.parametrize("ending", [".gif", ".webp", ".png", ".tif", ".avif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_gives_its_first_frame(tmp_path, ending, channels):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    path = saved(tmp_path / f"x{ending}", frames[0], save_all=True, append_images=frames[1:])
    pixels = read_image(path, channels)
    assert pixels.shape == (channels, 16, 16)
    wanted = np.asarray(frames[0].convert("L" if channels == 1 else "RGB")).reshape(16, 16, channels)
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 3


def test_what_a_file_is_its_content_says(tmp_path):
    saved(tmp_path / "x.png", picture())
    path = (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert read_image(str(path), 3).shape == (3, 69, 93)


def test_a_transparent_palette_is_read_without_a_warning(tmp_path, recwarn):
    path = saved(tmp_path / "x.png", picture("P"), transparency=bytes(range(256)))
    read_image(path, 3)
    read_image(path, 1)
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_of_no_known_range_are_refused(tmp_path, mode):
    path = saved(tmp_path / "x.tif", picture("L").convert(mode))
    with pytest.raises(DataError, match="32 bits and no known range"):
        read_image(path, 3)


NO_IMAGES = (b"", b"junk", b"\x89PNG\r\n\x1a\nbroken", b"\xff\xd8\xff\xe0broken", b"%!PS-Adobe-3.0 EPSF-3.0")


@pytest.mark.parametrize("content", NO_IMAGES)
@pytest.mark.parametrize("ending", [".png", ".eps", ".tga"])
def test_what_is_no_image_is_refused(tmp_path, content, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(content)
    for read in (image_size, lambda path: read_image(path, 3)):
        with pytest.raises(DataError, match=r"x\.\w+' cannot be decoded as an image \(.+\)$") as refusal:
            read(str(path))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("ending", [e for e in MODES if e not in (".avif",)])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_ends_early_is_refused_and_not_half_grey(tmp_path, ending, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    path = tmp_path / f"x{ending}"
    saved(path, Image.fromarray(noise).convert(MODES[ending][-1] if ending != ".tif" else "RGB"))
    whole = read_image(str(path), 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    try:
        assert torch.equal(read_image(str(path), 3), whole)
    except DataError as refusal:
        assert "cannot be decoded" in str(refusal)


@pytest.mark.slow
def test_flipped_bytes_in_a_png_end_in_a_sentence_and_no_process(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG")
    for i in range(70):
        raw = bytearray(data.getvalue())
        raw[raw.find(b"IDAT") + 14 + 31 * i] ^= 1 << i % 8
        (tmp_path / f"{i}.png").write_bytes(raw)
    code = (
        "import sys\nfrom residuum.data.decoding import read_image\nfrom residuum.errors import DataError\n"
        "refused = 0\nfor i in range(70):\n    try: read_image(f'{sys.argv[1]}/{i}.png', 3)\n"
        "    except DataError: refused += 1\n"
        "print(refused)"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(ended.stdout) == 70


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_decompression_bomb_is_refused_before_it_unfolds(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    path = tmp_path / "x.png"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="decompression bomb"):
        read_image(str(path), 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_beyond_the_limit_says_how_large_it_is(tmp_path):
    header = struct.pack(">IIBBBBB", LARGEST_IMAGE // 8000 + 1, 8000, 8, 0, 0, 0, 0)
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"has 11185 x 8000 pixels and is not read: more than 89,478,485"):
        read_image(str(path), 3)


def test_large_images_are_converted_in_strips_to_the_same_pixels(tmp_path, monkeypatch):
    for ending, mode in ((".png", "P"), (".png", "I;16"), (".jpg", "RGB"), (".png", "RGBA")):
        path = saved(tmp_path / f"x{ending}", picture(mode))
        for channels in (1, 3):
            whole = read_image(path, channels)
            with monkeypatch.context() as small:
                small.setattr(decoding, "_WHOLE", 0)
                small.setattr(decoding, "_STRIP", 1000)
                assert torch.equal(read_image(path, channels), whole)


def test_a_missing_image_is_said_to_be_missing(tmp_path):
    for path in (str(tmp_path / "x.jpg"), "a\0b.jpg", "x" * 5000):
        with pytest.raises(DataError, match="no image file"):
            read_image(path, 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(DataError, match="no regular file"):
        read_image(str(tmp_path / "x.png"), 3)


def test_other_channels_than_one_and_three_are_refused(tmp_path):
    with pytest.raises(DataError, match="1 channel .* or 3 .*, but 4"):
        read_image(saved(tmp_path / "x.png", picture()), 4)


def test_endings_count_in_any_case():
    assert all(is_image(name) for name in ("a.JPG", "b.tif", "c.d.Webp", ".x.png"))
    assert not any(is_image(name) for name in ("a.txt", "png", "b.png.part", ".png", ""))
