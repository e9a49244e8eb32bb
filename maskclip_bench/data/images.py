"""The one decoder of all images: evaluation, pretraining and masks' images get the same pixels.

| stored as | becomes |
| --- | --- |
| 8 bits a channel, grey, colour or palette | RGB as stored |
| 1 bit | black (0) and white (255) |
| 16-bit grey | value / 257, rounded (12-bit TIFF: value * 255 / 4095) |
| 16-bit colour | the high byte of each value (as Pillow reads it) |
| 32-bit float grey with all values in 0..1 | value * 255, rounded |
| other 32-bit images | refused: nothing says which value is white |
| CMYK, YCbCr | Pillow's conversion to RGB, without colour profiles |
| any with transparency | the stored colours; the alpha channel is dropped, as open_clip does |
| several frames or pages | the first |

**Orientation.** Pixels are taken as they are stored, in every format: EXIF's orientation tag turns
nothing (Pillow turns TIFFs when it loads them; that is undone). Masks and boxes are drawn on stored
pixels, so image, mask and boxes agree, and open_clip, torchvision and SLIP's loader read the same.

**Size.** An image of more than `MAX_PIXELS` pixels is refused from its header.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from maskclip_bench.data.pairs.pair_sources import BROKEN_IMAGE, BadSampleError
from maskclip_bench.errors import DataError

MAX_PIXELS = 2 * (1 << 30) // 4 // 3
"""Largest image, in pixels: twice Pillow's limit for warnings, where Pillow itself refuses."""

ORIENTATION_TAG = 0x112

JPEG_START = b"\xff\xd8\xff"
"""First bytes by which Pillow knows a JPEG; no other of its plugins takes them."""

_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow recognises without decoding them, or decodes with another program."""

_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Orientation -> what turns an upright image back to the stored one."""

IMAGE_LIKE = frozenset(
    {".avif", ".avifs", ".cr2", ".dng", ".exr", ".hdr", ".heic", ".heif", ".jxl", ".jxr"}
    | {".nef", ".raw", ".svg", ".webp"}
)
"""Suffixes of images that Pillow may be unable to read; named as such where they are left out."""


class Header(NamedTuple):
    """What the first bytes of an image say.

    Attributes:
        width: Of the stored pixels.
        height: Of the stored pixels.
        format: Pillow's name, "JPEG".
    """

    width: int
    height: int
    format: str


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of all formats that the installed Pillow decodes, lower-case, with their dot."""
    Image.init()
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_DECODED
    )


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image that can be decoded here, in any case."""
    return Path(name).suffix.lower() in image_suffixes()


def read_header(source: Path | bytes, *, what: object = None) -> Header:
    """Size and format of an image; decodes no pixel.

    Args:
        source: A file or its bytes.
        what: Name for messages; the path where there is one.

    Raises:
        DataError: It is missing, empty, no image, or larger than `MAX_PIXELS`.
    """

    def read(image: Image.Image) -> Header:
        width, height = _stored_size(image)
        return Header(width, height, image.format or "")

    return _opened(source, read, what)


def decode(source: Path | bytes, *, what: object = None) -> Image.Image:
    """Decode an image as RGB by the rules of this module.

    Args:
        source: A file or its bytes.
        what: Name for messages; the path where there is one.

    Raises:
        DataError: It is missing, damaged, too large, or of a mode without a rule.
    """
    return _opened(source, to_rgb, what)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image opened by Pillow as RGB by the rules of this module; the result is loaded.

    Raises:
        DataError: There is no rule for its mode or its values.
    """
    turned = _orientation(image)
    image.load()
    if turned in _UNDO:
        image = image.transpose(_UNDO[turned])
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_integers(image)
    if image.mode == "F":
        return _from_floats(image)
    if "transparency" in image.info:  # Pillow warns of a palette's transparency otherwise
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError:
        raise DataError(
            f"its colour mode {image.mode} cannot be turned into RGB. Store it as RGB."
        ) from None


def _opened(source: Path | bytes, use: Callable[[Image.Image], object], what: object) -> Any:
    """Open `source`, check its size, and give it to `use`."""
    name = what if what is not None else source if isinstance(source, Path) else "the image"
    try:
        with _open(source) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            return use(image)
    except DataError as error:
        raise DataError(f"Cannot read {name}: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{name} is too large ({error}); the limit is {MAX_PIXELS:,} pixels. Store a smaller "
            "copy in its place, or remove it from the data set."
        ) from None
    except Exception as error:
        # Decoders fed with arbitrary bytes raise almost anything (OSError, SyntaxError,
        # struct.error, IndexError...); every one of them means a broken image.
        raise DataError(
            f"Cannot read {name} ({type(error).__name__}: {error}). It is missing or damaged; "
            "copy it again, or make or unpack the data set again."
        ) from None


def _open(source: Path | bytes) -> Image.Image:
    if isinstance(source, bytes):
        # Pillow would ask its other plugins first: half of the time that opening takes.
        formats = ("JPEG",) if source.startswith(JPEG_START) else None
        return Image.open(io.BytesIO(source), formats=formats)
    if not source.is_file():  # a pipe would block
        raise FileNotFoundError("no such file" if not source.exists() else "no regular file")
    return Image.open(source)


def _orientation(image: Image.Image) -> int:
    """The orientation by which Pillow turns an image when it is loaded; 1 = it does not."""
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    value = tags.get(ORIENTATION_TAG, 1) if tags is not None else 1
    return value if isinstance(value, int) else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is not None and 256 in tags and 257 in tags:
        return int(tags[256]), int(tags[257])
    return image.size


def _from_integers(image: Image.Image) -> Image.Image:
    """16-bit grey; mode "I" is 16-bit where PNG and PPM need more than 8 bits."""
    white = 65535
    bits = getattr(image, "tag_v2", {}).get(258) if image.format == "TIFF" else None
    if bits is not None:
        bits = bits[0] if isinstance(bits, tuple) else bits
        white = 4095 if bits == 12 else white
    if image.mode == "I" and (image.format not in ("PNG", "PPM") or bits == 32):
        raise DataError(
            "it has signed or 32-bit integers, and nothing says which value is white. Store it "
            "with 8 or 16 bits a pixel."
        )
    values = np.asarray(image).astype(np.float64)
    if values.min(initial=0) < 0 or values.max(initial=0) > white:
        raise DataError(
            f"its grey values go from {values.min():.0f} to {values.max():.0f}, outside of 0 to "
            f"{white}. Store it with 8 or 16 bits a pixel."
        )
    return _grey(values * (255 / white))


def _from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 1:
        raise DataError(
            f"it has float values from {values.min():g} to {values.max():g}, and only 0 (black) to "
            "1 (white) has a meaning. Store it with 8 or 16 bits a pixel."
        )
    return _grey(values * 255)


def _grey(values: npt.NDArray[np.float64]) -> Image.Image:
    """Values 0 to 255, [H, W], as grey RGB."""
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


NUM_CROP_TRIES = 10
"""As in torchvision's `RandomResizedCrop`."""

JPEG_FACTORS = (8, 4, 2)
"""A JPEG can be decoded at 1/8, 1/4 and 1/2 of its size for a part of the work."""


class Crop(NamedTuple):
    """A rectangle in pixels of the original image."""

    left: int
    top: int
    width: int
    height: int


def random_crop(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: random.Random,
) -> Crop:
    """Draw a crop as torchvision's `RandomResizedCrop` does.

    Args:
        width: Of the image, pixels.
        height: Of the image, pixels.
        scale: Smallest and largest area of the crop, as a share of the image.
        ratio: Smallest and largest width over height.
        rng: What to draw from.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(NUM_CROP_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.random() * (width - crop_width + 1))
            top = int(rng.random() * (height - crop_height + 1))
            return Crop(left, top, crop_width, crop_height)
    return _central_crop(width, height, ratio=ratio)


def _central_crop(width: int, height: int, *, ratio: tuple[float, float]) -> Crop:
    """The largest crop in the middle whose shape `ratio` allows."""
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = min(width, max(1, round(height * aspect)))
    crop_height = min(height, max(1, round(width / aspect)))
    return Crop((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)


def decode_crops(
    data: bytes,
    outputs: Sequence[npt.NDArray[np.uint8]],
    *,
    scales: Sequence[tuple[float, float]],
    ratio: tuple[float, float],
    rng: random.Random,
) -> None:
    """Decode an image once and write a random crop of it into each of `outputs`.

    Crops are resized bilinearly with antialiasing. A large JPEG is decoded at a reduced size as
    long as every crop keeps at least the pixels it is resized to. Modes and orientation follow the
    rules of this module.

    Args:
        data: The encoded image.
        outputs: For each view, where it goes: uint8 [S, S, 3].
        scales: For each view, the range of its crop's area.
        ratio: Range of width over height.
        rng: What to draw from.

    Raises:
        BadSampleError: The bytes are no image, or a broken one.
    """
    size = outputs[0].shape[0]
    try:
        image: Image.Image = _open(data)
        width, height = _stored_size(image)
        crops = [random_crop(width, height, scale=s, ratio=ratio, rng=rng) for s in scales]
        if image.format == "JPEG":
            smallest = min(min(crop.width, crop.height) for crop in crops)
            _reduce(image, next((f for f in JPEG_FACTORS if smallest >= f * size), 1))
        image = to_rgb(image)
        across, down = image.size[0] / width, image.size[1] / height
        for output, crop in zip(outputs, crops, strict=True):
            box = (
                crop.left * across,
                crop.top * down,
                min((crop.left + crop.width) * across, image.size[0]),
                min((crop.top + crop.height) * down, image.size[1]),
            )
            output[...] = np.asarray(
                image.resize((size, size), resample=Image.Resampling.BILINEAR, box=box)
            )
    except Exception as error:
        # Decoders fed with arbitrary bytes raise almost anything (OSError, SyntaxError,
        # struct.error, DecompressionBombError...); every one of them means a broken image.
        raise _broken(error) from None


class Decoded(NamedTuple):
    """All pixels that crops of an image may be made of.

    Attributes:
        width: Of the stored image.
        height: Of the stored image.
        reductions: uint8 [H, W, 3] each: the whole image, then, of a JPEG, at 1/2, 1/4 and 1/8 of
            its size, as far as `decode_crops` may decode it so.
    """

    width: int
    height: int
    reductions: list[npt.NDArray[np.uint8]]


def factors_of_reductions(width: int, height: int, kind: str | None, *, size: int) -> list[int]:
    """By what `decode_crops` may reduce an image of some format when it decodes it: 2, 4, 8."""
    if kind != "JPEG":
        return []
    return [factor for factor in reversed(JPEG_FACTORS) if min(width, height) >= factor * size]


def decode_reductions(data: bytes, *, size: int) -> Decoded:
    """Decode an image in every size at which `decode_crops` may decode it.

    Args:
        data: The encoded image.
        size: Pixels that crops are resized to.

    Raises:
        BadSampleError: The bytes are no image, or a broken one.
    """
    try:
        image = _open(data)
        width, height = _stored_size(image)
        found = [np.asarray(to_rgb(image))]
        for factor in factors_of_reductions(width, height, image.format, size=size):
            reduced = _open(data)
            _reduce(reduced, factor)
            found.append(np.asarray(to_rgb(reduced)))
        return Decoded(width, height, found)
    except Exception as error:  # as above
        raise _broken(error) from None


def _broken(error: Exception) -> BadSampleError:
    if isinstance(error, UnidentifiedImageError):  # its text is an address in memory
        return BadSampleError(BROKEN_IMAGE, "of no format that Pillow reads")
    return BadSampleError(BROKEN_IMAGE, f"{type(error).__name__}: {error}")


def _reduce(image: Image.Image, factor: int) -> None:
    """Tell libjpeg to decode at 1 / `factor` of the size."""
    if factor > 1:
        image.draft("RGB", (image.size[0] // factor, image.size[1] // factor))
