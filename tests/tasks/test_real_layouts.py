"""Every column of the tables on real data has a task, whose reader opens the published layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torchvision

from maskclip_bench.data.readers import forget
from maskclip_bench.results.tables import load_table
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import (
    dataset_names,
    load_task_declaration,
    missing_data,
    task_names,
)
from maskclip_bench.tasks.protocols.base import open_split
from maskclip_bench.tasks.protocols.prompts import class_names_of, prompt_set, templates_of
from maskclip_bench.tasks.suite import load_suite
from tests.data.small_sets import SMALL

TABLES = ("zero_shot_suite", "icinw", "imagenet", "retrieval", "robustness")
DENSE = ("ade20k", "ade20k_frozen_upernet", "ade20k_linear", "coco_instances")
"""Tested in tests/data/readers/test_ade20k.py and test_coco_instances.py."""
PAIRS = ("winoground", "sugarcrepe")
"""Tested in tests/data/readers/test_winoground.py and test_sugar_crepe.py."""


@pytest.fixture(autouse=True)
def _no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small copy has other checksums than the published files."""
    forget()
    for module in ("cifar", "fer2013", "flowers102", "stl10", "svhn", "mnist", "pcam"):
        there = getattr(torchvision.datasets, module)
        monkeypatch.setattr(
            there, "check_integrity", lambda path, md5=None: Path(path).is_file(), raising=False
        )


@pytest.mark.parametrize("table", TABLES)
def test_every_column_has_a_task(table: str) -> None:
    columns = {column.task for column in load_table(table).columns if column.task}
    assert columns <= set(task_names())
    assert {column.partition("/")[2] for column in columns} <= set(SMALL)


def test_every_real_data_set_has_a_small_copy() -> None:
    real = {name for name in dataset_names() if load_task_declaration(name).world == "real"}
    assert real - {*DENSE, *PAIRS} <= set(SMALL)


@pytest.mark.parametrize("suite", ["slip26", "icinw", "robustness", "retrieval", "paper"])
def test_suites_measure_what_their_tables_show(suite: str) -> None:
    declared = load_suite(suite)
    assert declared.tasks != "*"
    named = {task for task in declared.tasks if not task.startswith("*")}
    starred = {task.partition("/")[2] for task in declared.tasks if task.startswith("*")}
    known = set(task_names())
    for table in declared.tables:
        for column in load_table(table).columns:
            dataset = (column.task or "").partition("/")[2]
            if column.task in known and dataset not in DENSE:
                assert column.task in named or dataset in starred, f"{suite} lacks {column.task}"


def test_sizes_of_the_published_suites() -> None:
    assert len(load_suite("slip26").tasks) == 26
    assert len(load_suite("icinw").tasks) == 20
    assert [c.average for c in load_table("icinw").columns][-1] == "all"


@pytest.mark.parametrize("name", sorted(SMALL))
def test_reader_opens_the_published_layout(name: str, tmp_path: Path) -> None:
    task = load_task_declaration(name)
    workspace = Workspace(root=tmp_path / "workspace", data=tmp_path)
    assert missing_data(task, workspace) is not None
    SMALL[name](tmp_path)
    assert missing_data(task, workspace) is None
    for split in task.splits:
        dataset = open_split(task, split, workspace)
        assert len(dataset) > 0
        assert dataset.image(0).mode == "RGB"
        assert len(dataset.fingerprint) == 16
        if "retrieval" in task.protocols:
            assert all(len(captions) >= 5 for captions in dataset.need_captions())
            continue
        if name == "voc2007":
            assert dataset.need_multi_labels().shape == (2, 20)
            continue
        classes = class_names_of(task, dataset)
        assert dataset.need_labels().max() < len(classes)
        assert templates_of(prompt_set(task, _prompts(name)))


def _prompts(name: str) -> str:
    return str(load_task_declaration(name).protocols["zero_shot_classification"]["prompts"])


@pytest.mark.parametrize(
    ("name", "label", "words"),
    [
        ("fer2013", 3, ["happy", "smiling"]),  # emotion 3 of the file
        ("fer2013", 6, ["neutral", "bored"]),
        ("gtsrb", 1, ["red and white circle 30 kph speed limit"]),
        ("country211", 1, ["United Arab Emirates"]),  # folder AE
        ("clevr_counts", 7, ["10"]),
        ("kitti_distance", 3, ["a photo i took with no car."]),
        ("hateful_memes", 1, ["hatespeech meme"]),
        ("ucf101", 1, ["Apply Lipstick"]),
        ("cub200", 1, ["Laysan Albatross"]),
        ("objectnet", 0, ["alarm clock"]),
        ("sun397", 1, ["airplane cabin"]),
    ],
)
def test_words_belong_to_the_labels(
    name: str, label: int, words: list[str], tmp_path: Path
) -> None:
    SMALL[name](tmp_path)
    task = load_task_declaration(name)
    dataset = open_split(task, "test", Workspace(root=tmp_path / "workspace", data=tmp_path))
    assert label in dataset.need_labels()
    assert class_names_of(task, dataset)[label] == words


@pytest.mark.parametrize(
    ("first", "second"),
    [("svhn", "svhn_6_prompts"), ("patch_camelyon", "patch_camelyon_2_prompts")],
)
def test_two_communities_have_two_presets(first: str, second: str) -> None:
    assert _prompts(first) != _prompts(second)
    assert load_task_declaration(first).reader == load_task_declaration(second).reader
