"""Winoground: two samples an example, tags as classes, both published layouts, what is broken."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import DataError

OpenSplit = Callable[..., Dataset]
TAGS = ("Relation", "Object")


def example(index: int, tag: str) -> dict[str, Any]:
    """The columns of the published files, in their order."""
    row: dict[str, Any] = {"id": index}
    row |= {f"image_{side}": f"ex_{index}_img_{side}" for side in (0, 1)}
    row |= {f"caption_{side}": f"caption {index} {side}" for side in (0, 1)}
    return row | {"tag": "x", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": tag}


def as_list(root: Path, put_image: Callable[..., Path]) -> None:
    """`examples.jsonl` and `images/`."""
    rows = [example(index, tag) for index, tag in enumerate(TAGS)]
    for row in rows:
        for side in (0, 1):
            name = f"{row[f'image_{side}']}.png"
            put_image(root / "images" / name, value=10 * row["id"] + side)
    (root / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")


def encoded(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def as_tables(root: Path, *, shards: int = 1) -> None:
    """`test-*.parquet` with the images inside."""
    root.mkdir(parents=True)
    for shard in range(shards):
        rows = []
        for index, tag in list(enumerate(TAGS))[shard::shards]:
            row = example(index, tag)
            for side in (0, 1):
                content = encoded(10 * index + side)
                row[f"image_{side}"] = {"bytes": content, "path": f"ex_{index}_img_{side}.png"}
            rows.append(row)
        path = root / f"test-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)


@pytest.fixture
def folder(tmp_path: Path, put_image: Callable[..., Path]) -> Path:
    as_list(tmp_path / "set", put_image)
    return tmp_path / "set"


def check(dataset: Dataset) -> None:
    assert dataset.sample_ids == ["0/0", "0/1", "1/0", "1/1"]
    assert dataset.groups == ["0", "0", "1", "1"]
    assert dataset.need_captions() == [[f"caption {i} {s}"] for i in (0, 1) for s in (0, 1)]
    assert dataset.class_names == ["Object", "Relation"]
    assert dataset.need_labels().tolist() == [1, 1, 0, 0]
    dataset.check_images()
    found = [dataset.image(index).getpixel((0, 0))[0] for index in (3, 0, 2, 1)]
    assert found == [11, 0, 10, 1]
    assert pickle.loads(pickle.dumps(dataset.read))(3).size == dataset.image(3).size
    assert len(dataset.fingerprint) == 16


def test_open__two_samples_an_example(folder: Path, open_split: OpenSplit) -> None:
    check(open_split("test", kind="winoground"))


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("inside", ["", "data"])
def test_open__tables_that_hold_the_images(
    tmp_path: Path, open_split: OpenSplit, shards: int, inside: str
) -> None:
    as_tables(tmp_path / "set" / inside, shards=shards)
    check(open_split("test", kind="winoground"))


def test_open__the_list_inside_data(
    tmp_path: Path, put_image: Callable[..., Path], open_split: OpenSplit
) -> None:
    as_list(tmp_path / "set/data", put_image)
    check(open_split("test", kind="winoground"))


def test_open__what_is_broken(folder: Path, open_split: OpenSplit) -> None:
    (folder / "images" / "ex_1_img_0.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images of examples\.jsonl are not in"):
        open_split("test", kind="winoground")
    (folder / "examples.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(DataError, match=r"line 1 of .* is no example"):
        open_split("test", kind="winoground")
    (folder / "examples.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no example"):
        open_split("test", kind="winoground")
    (folder / "examples.jsonl").unlink()
    with pytest.raises(DataError, match=r"examples\.jsonl"):
        open_split("test", kind="winoground")


@pytest.mark.parametrize(
    "changes", [{"caption_0": None}, {"caption_1": " "}, {"id": None}, {"collapsed_tag": 3}]
)
def test_open__an_example_that_says_nothing(
    folder: Path, tmp_path: Path, open_split: OpenSplit, changes: dict[str, Any]
) -> None:
    row = example(0, "Both") | changes
    (folder / "examples.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"line 1 of .* is no example\. .* none of them empty"):
        open_split("test", kind="winoground")
    rows = [example(1, "Both") | {name: type(value)() for name, value in row.items() if value}, row]
    pq.write_table(pa.Table.from_pylist([row, rows[0]]), folder / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"lacks one of caption_0, .* in row 0"):
        open_split("test", kind="winoground")


def test_open__broken_tables(tmp_path: Path, open_split: OpenSplit) -> None:
    path = tmp_path / "set/test-00000-of-00001.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match="is no Parquet table that can be read"):
        open_split("test", kind="winoground")
    rows = [example(0, "Both")]
    pq.write_table(pa.Table.from_pylist(rows).drop_columns(["image_1"]), path)
    with pytest.raises(DataError, match="has no column image_1"):
        open_split("test", kind="winoground")
    pq.write_table(pa.Table.from_pylist(rows).slice(0, 0), path)
    with pytest.raises(DataError, match="has no example"):
        open_split("test", kind="winoground")
