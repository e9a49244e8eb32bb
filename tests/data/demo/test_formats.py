from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.data.demo.formats import (
    bounding_box,
    jpeg_bytes,
    json_bytes,
    png_bytes,
    run_lengths,
    tar_bytes,
)
from maskclip_bench.data.demo.sheet import mask_of

MASKS = {
    "mixed": [[0, 1, 1], [1, 1, 0]],
    "begins with one": [[1, 0], [0, 0]],
    "ends with one": [[0, 0], [0, 1]],
    "all": [[1, 1], [1, 1]],
    "none": [[0, 0, 0]],
}


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("name", MASKS)
def test_run_lengths__are_those_of_pycocotools(name: str) -> None:
    mask_module = pytest.importorskip("pycocotools.mask")
    mask = np.array(MASKS[name], dtype=bool)
    encoded = run_lengths(mask)
    assert sum(encoded["counts"]) == mask.size
    compressed = mask_module.frPyObjects(encoded, *mask.shape)
    np.testing.assert_array_equal(mask_module.decode(compressed), mask)
    assert compressed == mask_module.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(mask_of(encoded), mask)


def test_run_lengths__worked_example() -> None:
    assert run_lengths(np.array([[0, 1], [1, 1]], bool)) == {"counts": [1, 3], "size": [2, 2]}
    assert run_lengths(np.array([[1, 0], [1, 0]], bool)) == {"counts": [0, 2, 2], "size": [2, 2]}


def test_bounding_box__left_top_width_height() -> None:
    mask = np.zeros((5, 8), bool)
    mask[1:4, 2:7] = True
    assert bounding_box(mask) == [2.0, 1.0, 5.0, 3.0]


def test_png__is_lossless() -> None:
    labels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(labels)))), labels)


def test_jpeg__is_close() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = (200, 30, 30)
    decoded = np.asarray(Image.open(io.BytesIO(jpeg_bytes(Image.fromarray(pixels)))))
    assert np.abs(decoded.astype(int) - pixels).mean() < 6


def test_tar__bytes_depend_on_contents_only() -> None:
    members = [("a.txt", b"one"), ("b.json", json_bytes({"x": 1}))]
    assert tar_bytes(members) == tar_bytes(members)
    with tarfile.open(fileobj=io.BytesIO(tar_bytes(members))) as archive:
        assert archive.getnames() == ["a.txt", "b.json"]
        assert {member.mtime for member in archive} == {0}
