"""Images as mmcv reads them here: stored pixels, by the rules of the other protocols."""

from __future__ import annotations

import io

import mmcv
import numpy as np
import pytest
from PIL import Image

from maskclip_bench.backbones.openmmlab import image_reading
from maskclip_bench.errors import DataError

image_reading.install()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture() -> Image.Image:
    values = np.zeros((4, 6, 3), np.uint8)
    values[:, :3] = (200, 100, 50)
    return Image.fromarray(values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("backend", ["cv2", "pillow"])
def test_color__orientation_turns_nothing(orientation: int, backend: str) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    content = encoded(picture(), "PNG", exif=exif)
    read = mmcv.imfrombytes(content, backend=backend)
    assert read.shape == (4, 6, 3)
    assert read[0, 0].tolist() == [50, 100, 200]
    assert mmcv.imfrombytes(content, channel_order="rgb", backend=backend)[0, 0].tolist() == [
        200,
        100,
        50,
    ]


def test_color__kinds_that_opencv_reads_otherwise() -> None:
    palette = encoded(picture().quantize(4), "PNG")
    assert mmcv.imfrombytes(palette)[0, 0].tolist() == [50, 100, 200]
    half = picture().convert("RGBA")
    half.putalpha(0)
    assert mmcv.imfrombytes(encoded(half, "PNG"))[0, 0].tolist() == [50, 100, 200]
    gif = encoded(picture().quantize(4), "GIF")
    assert mmcv.imfrombytes(gif)[0, 0].tolist() == [50, 100, 200]


def test_masks__are_left_as_stored() -> None:
    mask = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8))
    read = mmcv.imfrombytes(encoded(mask, "PNG"), flag="unchanged", backend="pillow")
    assert read.tolist() == [[0, 1], [2, 255]]


def test_broken() -> None:
    with pytest.raises(DataError, match="An image cannot be read"):
        mmcv.imfrombytes(b"no image")
