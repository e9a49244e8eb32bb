from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from maskclip_bench.data.shapes import draw_photo, draw_shapes, jpeg_bytes, write_shape_shards


def test_shapes__deterministic_and_different() -> None:
    first, captions = draw_shapes(3, size=40)
    again, same_captions = draw_shapes(3, size=40)
    other, _ = draw_shapes(4, size=40)
    assert first.size == (40, 40) and first.mode == "RGB"
    assert np.array_equal(first, again) and captions == same_captions
    assert not np.array_equal(first, other)
    assert len(captions) == 3 and all(captions)


def test_photo__has_the_weight_of_one() -> None:
    data = jpeg_bytes(draw_photo(0))
    assert 30_000 < len(data) < 90_000
    assert Image.open(io.BytesIO(data)).size == (500, 375)


def test_shards__pattern_names_them(tmp_path: Path) -> None:
    pattern = write_shape_shards(tmp_path / "s", num_samples=3, num_shards=2, size=16)
    assert pattern == str(tmp_path / "s" / "shapes-{000000..000001}.tar")
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "shapes-000000.tar",
        "shapes-000001.tar",
    ]
