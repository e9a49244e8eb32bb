from __future__ import annotations

import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from maskclip_bench.data import images
from maskclip_bench.data.images import decode_crops, random_crop
from maskclip_bench.data.pairs.pair_sources import BadSampleError
from maskclip_bench.data.shapes import draw_photo, draw_shapes, jpeg_bytes
from maskclip_bench.errors import DataError

RATIO = (3 / 4, 4 / 3)


def decode(data: bytes, *, size: int = 16, scale: tuple[float, float] = (1, 1)) -> np.ndarray:
    output = np.empty((size, size, 3), dtype=np.uint8)
    decode_crops(data, [output], scales=[scale], ratio=(1, 1), rng=random.Random(0))
    return output


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def test_crop__statistics_equal_torchvisions() -> None:
    rng = random.Random(0)
    ours = np.array(
        [random_crop(80, 60, scale=(0.08, 1), ratio=RATIO, rng=rng) for _ in range(4000)]
    )
    torch.manual_seed(0)
    image = torch.zeros(3, 60, 80)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], list(RATIO)) for _ in range(4000)]
    )[:, [1, 0, 3, 2]]
    assert (ours[:, 0] + ours[:, 2]).max() <= 80 and (ours[:, 1] + ours[:, 3]).max() <= 60
    assert np.abs(ours.mean(axis=0) - theirs.mean(axis=0)).max() < 1.0
    assert np.abs(ours.std(axis=0) - theirs.std(axis=0)).max() < 1.0


def test_crop__long_images_get_the_middle() -> None:
    crop = random_crop(1000, 10, scale=(0.9, 1), ratio=RATIO, rng=random.Random(0))
    assert crop == (493, 0, 13, 10)
    crop = random_crop(10, 1000, scale=(0.9, 1), ratio=RATIO, rng=random.Random(0))
    assert crop == (0, 493, 10, 13)


def test_whole_image__equals_pillow() -> None:
    image = draw_shapes(0, size=24)[0]
    data = saved(image, "PNG")
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(decode(data), expected)


def test_large_jpeg__reduced_decoding_is_close() -> None:
    image = draw_photo(0, width=640, height=640)
    decoded = Image.open(io.BytesIO(jpeg_bytes(image, quality=95)))
    expected = np.asarray(decoded.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    reduced = decode(jpeg_bytes(image, quality=95), size=64).astype(int)
    assert np.abs(reduced - expected).mean() < 2.0


def test_views__differ_and_come_from_one_image() -> None:
    data = jpeg_bytes(draw_photo(1, width=96, height=64))
    views = np.zeros((3, 16, 16, 3), dtype=np.uint8)
    decode_crops(
        data,
        list(views),
        scales=[(0.5, 1), (0.08, 1), (0.08, 1)],
        ratio=RATIO,
        rng=random.Random(0),
    )
    assert len({view.tobytes() for view in views}) == 3


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_modes__become_rgb(mode: str) -> None:
    image = draw_shapes(0, size=24)[0]
    gray = image.convert("L")
    if mode == "I;16":
        data = saved(Image.fromarray(np.asarray(gray).astype(np.uint16)), "PNG")
    else:
        data = saved(image.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data).shape == (16, 16, 3)


def test_palette_with_transparency__no_warning() -> None:
    image = draw_shapes(0, size=24)[0].convert("P")
    data = saved(image, "PNG", transparency=bytes(range(256)))
    assert decode(data).shape == (16, 16, 3)


JPEG = jpeg_bytes(draw_shapes(0, size=64)[0])


@pytest.mark.parametrize(
    "data",
    [b"", b"text", JPEG[: len(JPEG) // 2], JPEG[:30], b"\x89PNG\r\n\x1a\n" + b"\0" * 50],
    ids=["empty", "text", "half", "header", "png"],
)
def test_broken__is_a_bad_sample(data: bytes) -> None:
    with pytest.raises(BadSampleError, match="broken image"):
        decode(data)


# --- one decoder ---------------------------------------------------------------------------------


RAMP = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
"""From black to white; its mean is 127.5 of 255."""


def both(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels as evaluation reads them, and as pretraining does (the whole image, not resized)."""
    read = np.asarray(images.decode(data))
    output = np.empty((32, 32, 3), dtype=np.uint8)
    decode_crops(data, [output], scales=[(1, 1)], ratio=(1, 1), rng=random.Random(0))
    return read, output


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_grey__is_value_over_257(image_format: str) -> None:
    data = saved(Image.fromarray(RAMP.astype(np.uint16)), image_format)
    expected = np.rint(RAMP.astype(np.uint16) / 257).astype(np.uint8)
    for pixels in both(data):
        assert np.array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


def test_16_bit_ppm__is_value_over_257() -> None:
    data = b"P5 32 32 65535\n" + RAMP.astype(">u2").tobytes()
    for pixels in both(data):
        assert abs(pixels.mean() - 127.5) < 0.5


def test_float_grey__is_255_times_the_value() -> None:
    data = saved(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF")
    expected = np.rint((RAMP / 65535).astype(np.float32).astype(np.float64) * 255)
    for pixels in both(data):
        assert np.array_equal(pixels[..., 0], expected)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RAMP.astype(np.float32), "float values from 0 to 65535"),
        (np.full((32, 32), np.nan, np.float32), "float values from nan to nan"),
        (-RAMP.astype(np.float32), "float values from -65535"),
        (RAMP.astype(np.int32), "nothing says which value is white"),
    ],
)
def test_values_without_a_meaning__are_refused(pixels: np.ndarray, message: str) -> None:
    data = saved(Image.fromarray(pixels), "TIFF")
    with pytest.raises(DataError, match=message):
        images.decode(data, what="scan.tif")
    with pytest.raises(BadSampleError, match=message):
        decode(data)


COLOURS = np.zeros((32, 32, 3), np.uint8) + np.array([200, 30, 90], np.uint8)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("1", [255, 255, 255]),
        ("L", [88, 88, 88]),
        ("LA", [88, 88, 88]),
        ("P", [200, 30, 90]),
        ("RGBA", [200, 30, 90]),
    ],
)
def test_modes__have_one_rule(mode: str, expected: list[int]) -> None:
    image = Image.fromarray(COLOURS)
    if mode == "1":
        image = Image.new("1", (32, 32), 1)
    elif mode == "P":
        image = image.quantize(4)
    elif mode == "RGBA":
        image.putalpha(0)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    for pixels in both(saved(image, "PNG")):
        assert pixels[5, 5].tolist() == expected


def test_palette__keeps_the_colours_under_its_transparency() -> None:
    data = saved(Image.fromarray(COLOURS).quantize(4), "PNG", transparency=b"\0" * 4)
    for pixels in both(data):
        assert pixels[0, 0].tolist() == [200, 30, 90]


@pytest.mark.parametrize("image_format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_several_frames__the_first(image_format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((255, 255, 255), (0, 0, 0))]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = saved(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    for pixels in both(data):
        assert pixels.min() == 255


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation__pixels_are_as_stored(image_format: str, orientation: int) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:4, :8] = 255
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = saved(Image.fromarray(stored), image_format, exif=exif, **options)
    header = images.read_header(data)
    assert (header.width, header.height, header.format) == (32, 16, image_format)
    pixels = np.asarray(images.decode(data)).astype(int)
    assert pixels.shape == stored.shape
    assert np.abs(pixels - stored).mean() < 6
    output = np.empty((16, 16, 3), dtype=np.uint8)
    decode_crops(data, [output], scales=[(1, 1)], ratio=(2, 2), rng=random.Random(0))
    assert output[1, 1].mean() > 200 > output[-2, -2].mean()


def test_header__size_limit_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("RGB", (40, 30)), "PNG")
    monkeypatch.setattr(images, "MAX_PIXELS", 1199)
    with pytest.raises(DataError, match=r"big\.png is too large \(40 x 30 pixels\); the limit"):
        images.read_header(data, what="big.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 1200)
    assert images.read_header(data).width == 40


def test_header__bomb_is_refused_before_it_is_decoded() -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    small = saved(Image.new("RGB", (1, 1)), "PNG")
    data = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    with pytest.raises(DataError, match=r"too large .* Store a smaller copy in its place"):
        images.read_header(data)


@pytest.mark.parametrize("content", [b"", b"text", JPEG[:2]])
def test_header__of_what_is_no_image(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"Cannot read .*a\.jpg .*It is missing or damaged"):
        images.read_header(path)


def test_pipe__does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="no regular file"):
        images.decode(tmp_path / "a.jpg")


def test_suffixes__are_what_pillow_decodes() -> None:
    known = images.image_suffixes()
    assert {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".bmp", ".ppm", ".tif"} <= known
    assert not {".eps", ".ps", ".wmf", ".pdf", ".txt", ".mpg", ""} & known
    assert images.is_image_name("A.JPeG") and not images.is_image_name("jpg")


def test_mode_without_a_way_to_rgb() -> None:
    with pytest.raises(DataError, match="colour mode La cannot be turned into RGB"):
        images.to_rgb(Image.new("La", (2, 2)))
