"""SugarCrepe: one sample an entry, the right caption first, subsets as classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.data.readers import Dataset, forget
from maskclip_bench.errors import DataError

OpenSplit = Callable[..., Dataset]


@pytest.fixture
def folder(tmp_path: Path, put_image: Callable[..., Path]) -> Path:
    root = tmp_path / "set"
    (root / "data").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        put_image(root / "val2017" / name)
    for subset, images in (("swap_obj", ["a.jpg"]), ("add_att", ["b.jpg", "a.jpg"])):
        entries = {
            str(index): {
                "filename": name,
                "caption": f"{subset} {index}",
                "negative_caption": f"not {subset} {index}",
            }
            for index, name in enumerate(images)
        }
        (root / "data" / f"{subset}.json").write_text(json.dumps(entries))
    return root


def test_open__all_subsets_are_one_split(folder: Path, open_split: OpenSplit) -> None:
    dataset = open_split("test", kind="sugar_crepe")
    assert dataset.sample_ids == ["add_att/0", "add_att/1", "swap_obj/0"]
    assert dataset.groups == ["b.jpg", "a.jpg", "a.jpg"]
    assert dataset.class_names == ["add_att", "swap_obj"]
    assert dataset.need_labels().tolist() == [0, 0, 1]
    assert dataset.need_captions()[2] == ["swap_obj 0", "not swap_obj 0"]


def test_open__what_is_broken(folder: Path, open_split: OpenSplit) -> None:
    (folder / "val2017" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"1 images are not in .*val2017, e\.g\. b\.jpg"):
        open_split("test", kind="sugar_crepe")
    (folder / "data" / "add_att.json").write_text('{"0": {"filename": "a.jpg"}}')
    with pytest.raises(DataError, match=r"add_att\.json is no list of SugarCrepe"):
        open_split("test", kind="sugar_crepe")
    entry = {"filename": "a.jpg", "caption": "x", "negative_caption": ""}
    (folder / "data" / "add_att.json").write_text(json.dumps({"0": entry}))
    with pytest.raises(DataError, match=r"negative_caption, none of them empty"):
        open_split("test", kind="sugar_crepe")
    for path in (folder / "data").iterdir():
        path.unlink()
    forget()
    with pytest.raises(DataError, match=r"holds no \.json file"):
        open_split("test", kind="sugar_crepe")
