from __future__ import annotations

import io
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from maskclip_bench.data.images import decode_crops, random_crop
from maskclip_bench.data.pairs.pair_sources import BadSampleError
from maskclip_bench.data.shapes import draw_photo, draw_shapes, jpeg_bytes

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
