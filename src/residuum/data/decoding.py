"""Image files: which endings count, and an image's size and pixels, by Pillow. Neither torch nor Pillow is loaded here.

Pillow decodes in place of torchvision.io, whose decoder ends the whole process at a damaged PNG and is deprecated. Both
use libjpeg-turbo and give the same pixels of a JPEG, full size, with the accurate transform.
"""

import os
import stat
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

from residuum.data.places import Place, Slice, SliceFile, read_slice, shown
from residuum.errors import DataError, first_line, quoted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

# Endings that count as images, and Pillow's name of the format. Those that are drawings or that Pillow hands to another
# program (EPS, WMF) are not among them, nor is PCX, of which a palette that is cut off goes unnoticed.
FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".apng": "PNG", ".webp": "WEBP",
    ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM",
    ".pnm": "PPM", ".avif": "AVIF", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".jpx": "JPEG2000", ".ico": "ICO",
    ".sgi": "SGI", ".qoi": "QOI", ".dib": "DIB", ".tga": "TGA",
}  # fmt: skip
# What a file is, its content says; but these have next to no signature, and count for files of their own ending alone.
_UNSIGNED = ("DIB", "TGA")
_SIGNED = tuple(dict.fromkeys(name for name in FORMATS.values() if name not in _UNSIGNED))
# Pixels of the largest image that is read, Pillow's own mark for a decompression bomb; it takes 7 bytes a pixel.
LARGEST_IMAGE = 89_478_485
_WHOLE = 1 << 20  # pixels up to which an image is converted at once
_STRIP = 1 << 18  # pixels of larger ones that are converted at a time, in the cache: it is not there thrice
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 274  # EXIF's tag


def is_image(name: str) -> bool:
    """Whether a file's name ends like that of an image."""
    return os.path.splitext(name)[1].lower() in FORMATS  # noqa: PTH122 (called for each of a million files)


def read_image(place: Place, channels: int) -> "Tensor":
    """An image as uint8 (channels, H, W), channels 1 (grey) or 3 (RGB); raises `DataError` that says where it lies.

    Turned as its EXIF says; of an animation the first frame; alpha is dropped, of 16 bits the upper 8 are kept, colour
    profiles are not applied. Grey is the luma of ITU-R 601. A file that ends early is refused, and so is an image of
    more than `LARGEST_IMAGE` pixels.
    """
    import torch

    if channels not in (1, 3):
        raise DataError(f"an image file gives 1 channel (grey) or 3 (RGB), but {channels} are asked for")
    if isinstance(place, Slice) and place.shape is not None:
        return torch.from_numpy(_raw(place, channels)).permute(2, 0, 1)
    with _opened(place) as image:
        if channels == 1 and image.format == "JPEG":
            image.draft("L", image.size)  # its own luma, without a way through RGB and back
        image.load()
        pixels = _turned(_pixels(image, channels), _orientation(image))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def image_size(place: Place) -> tuple[int, int]:
    """Height and width of an image as `read_image` gives them, from its header alone; raises `DataError`."""
    if isinstance(place, Slice) and place.shape is not None:
        return place.shape[:2]
    with _opened(place, header=True) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def mode_of(place: Place) -> str:
    """Pillow's mode of an image, from its header alone: RGB, L (grey), CMYK, P (palette), ...; raises `DataError`."""
    if isinstance(place, Slice) and place.shape is not None:
        return "RGB" if place.shape[2] == 3 else "L"
    with _opened(place, header=True) as image:
        return str(image.mode)


class _opened:  # noqa: N801 (a context manager, used like a function)
    """An image whose header has been read; whatever a decoder says within the block becomes a `DataError`."""

    def __init__(self, place: Place, *, header: bool = False) -> None:
        self.place, self.header = place, header
        self.image: Any = None

    def __enter__(self) -> Any:
        from PIL import Image

        self.file = self._file()
        own = FORMATS.get(os.path.splitext(self._name)[1].lower())  # noqa: PTH122
        try:
            self.image = Image.open(self.file, formats=(*_SIGNED, own) if own in _UNSIGNED else _SIGNED)
        except Exception as error:
            self.file.close()
            raise self._refusal(error) from None
        width, height = self.image.size
        if width * height > LARGEST_IMAGE:
            self._close()
            raise DataError(
                f"{shown(self.place)} has {width} x {height} pixels and is not read: more than {LARGEST_IMAGE:,} "
                "may be a decompression bomb; scale it down"
            )
        return self.image

    def _file(self) -> BinaryIO:
        if isinstance(self.place, Slice):
            if not self.header:
                return BytesIO(read_slice(self.place))
            try:
                return BufferedReader(SliceFile(self.place))
            except OSError as error:
                raise self._refusal(error) from None
        try:
            kind = os.stat(self.place).st_mode  # noqa: PTH116 (called for each of a million files)
        except (OSError, ValueError):
            raise DataError(f"there is no image file {quoted(self.place, 200)}") from None
        if not stat.S_ISREG(kind):  # a pipe would be waited for
            raise DataError(f"{quoted(self.place, 200)} is no regular file and is not read as an image")
        try:
            # Given a path, Pillow maps some files into memory, which mixes up a turned TIFF's pixels, and ends the
            # process where a file becomes shorter meanwhile.
            return open(self.place, "rb")  # noqa: PTH123 (__exit__ closes it)
        except OSError as error:
            raise self._refusal(error) from None

    @property
    def _name(self) -> str:
        return self.place.name if isinstance(self.place, Slice) else self.place

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._close()
        # Decoders meet damage with errors of any kind: OSError, SyntaxError, struct.error, zlib.error, IndexError, ...
        if isinstance(error, Exception) and not isinstance(error, DataError):
            raise self._refusal(error) from None

    def _close(self) -> None:
        self.image.close()
        self.file.close()

    def _refusal(self, error: Exception) -> DataError:
        from PIL import Image, UnidentifiedImageError

        if isinstance(error, PermissionError):
            return DataError(f"{shown(self.place)} may not be read; give yourself the right to")
        if isinstance(error, UnidentifiedImageError):
            reason = "it begins like none of the formats that are read"
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"it has more than {LARGEST_IMAGE:,} pixels, perhaps a decompression bomb"
        else:
            reason = first_line(error).replace(self._name or "\0", "it")
        return DataError(f"{shown(self.place)} cannot be decoded as an image ({reason})")


def _raw(place: Slice, channels: int) -> "NDArray[np.uint8]":
    """uint8 (H, W, channels) of pixels that lie there as they are."""
    import numpy as np

    assert place.shape is not None
    pixels = np.frombuffer(read_slice(place), np.uint8).reshape(place.shape)
    if place.shape[2] == channels:
        return pixels
    if channels == 3:
        return pixels.repeat(3, axis=2)
    from PIL import Image

    return np.array(Image.fromarray(pixels).convert("L"))[..., None]


def _pixels(image: Any, channels: int) -> "NDArray[np.uint8]":
    """uint8 (H, W, channels) of a loaded image of any of Pillow's modes."""
    import numpy as np

    width, height = image.size
    # Pillow gives a grey image of 16 bits in 32 where the format's reader is older.
    sixteen = image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not sixteen:
        raise ValueError("its values have 32 bits and no known range; save it with 8 or 16")
    image.info.pop("transparency", None)  # else Pillow wants to keep it, and warns that it cannot
    mode = image.mode if sixteen else "L" if channels == 1 else "RGB"
    if height * width <= _WHOLE and not sixteen:
        whole = image if image.mode == mode else image.convert(mode)
        return np.frombuffer(bytearray(whole.tobytes()), np.uint8).reshape(height, width, channels)
    pixels = np.empty((height, width, channels), np.uint8)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        values = np.asarray(strip if strip.mode == mode else strip.convert(mode))
        if sixteen:
            values = (values.clip(0, 65535) >> 8).astype(np.uint8)
        pixels[top : top + rows] = values if values.ndim == 3 else values[..., None]
    return pixels


def _orientation(image: Any) -> int:
    """EXIF's number for how an image is to be turned, 1 to 8; 1 (not at all) where it says nothing that can be read."""
    if image.format == "TIFF":
        return 1  # Pillow turns it by itself, and says its size as it is then
    if image.format in ("JPEG", "MPO") and not image.info.keys() & {"exif", "xmp"}:
        return 1  # most photographs; asking takes 2 % of the time of decoding one
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF makes no image unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(pixels: "NDArray[np.uint8]", orientation: int) -> "NDArray[np.uint8]":
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels if orientation == 1 else pixels.copy()  # torch takes no negative strides
