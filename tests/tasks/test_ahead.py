"""A suite's texts go through the text tower once, in as few calls as there can be; so do images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskclip_bench.backbones import Backbone
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, execution, features
from maskclip_bench.tasks.ahead import ReadAhead, encode_texts_ahead
from maskclip_bench.tasks.cell import Column, PlannedCell, Row
from maskclip_bench.tasks.execution import Execution
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.plan import Plan

from .conftest import ColourEncoder, captions_task, make_backbone, squares_task
from .test_execution import Quiet


class Counting(ColourEncoder):
    """Counts the calls of both towers, and the longest caption of each text call."""

    def __init__(self) -> None:
        super().__init__()
        self.text_calls: list[list[str]] = []

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        self.text_calls.append(list(texts))
        return super().encode_text(texts)


def suite() -> list[Column]:
    """Three data sets (two of them the same files) under five protocols."""
    squares = squares_task()
    again = squares_task(name="squares_again")
    names = ("zero_shot_classification", "knn", "few_shot")
    columns = [Column(PROTOCOLS[name], task) for task in (squares, again) for name in names]
    return [*columns, Column(PROTOCOLS["retrieval"], captions_task())]


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Counting:
    encoder = Counting()
    monkeypatch.setattr(features, "TEXT_BATCH", 8)
    monkeypatch.setattr(features, "IMAGE_BATCH", 10)
    return encoder


def run(workspace: Workspace, encoder: Counting, monkeypatch: pytest.MonkeyPatch) -> Execution:
    backbone = make_backbone(encoder)

    def load(*_: object, **__: object) -> Backbone:
        return backbone

    monkeypatch.setattr(execution, "load_backbone", load)
    row = Row(backbone.name, backbone.declaration)
    plan = Plan(cells=[PlannedCell(row, column, None) for column in suite()])
    made = Execution(plan, workspace, device=torch.device("cpu"), num_jobs=1, listener=Quiet())
    result = made.run()
    assert [record.error for record in result.failed] == []
    assert len(result.measured) == len(plan.cells)
    return made


def test_texts_of_a_suite_are_encoded_once(
    workspace: Workspace, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(workspace, encoder, monkeypatch)
    seen = [text for call in encoder.text_calls for text in call]
    assert len(seen) == len(set(seen))
    assert len(encoder.text_calls) <= math.ceil(len(set(seen)) / 8)
    lengths = [len(text) for text in seen]
    assert lengths == sorted(lengths)


def test_one_pass_for_each_row_data_set_and_split(
    workspace: Workspace, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(workspace, encoder, monkeypatch)
    # squares: train 48 and val 24 images, for three protocols and two tasks; captions: 6 images
    assert encoder.images_seen == 48 + 24 + 6
    seen = encoder.images_seen
    again = Counting()
    run(Workspace(root=workspace.root, data=workspace.data), again, monkeypatch)
    assert (again.images_seen, again.text_calls) == (0, [])
    assert seen == 78


def test_the_same_numbers_as_task_by_task(workspace: Workspace, tmp_path: Path) -> None:
    together, alone = (FeatureStore(tmp_path / name) for name in ("together", "alone"))
    texts = [["a red square", "a blue one"], ["a blue one", "something green and long"]]
    backbone = make_backbone(Counting())
    together.encode_ahead(backbone, texts)
    for of_task in texts:
        assert torch.equal(together.texts(backbone, of_task), alone.texts(backbone, of_task))
    stored = {path.name for path in (tmp_path / "together").rglob("*.safetensors")}
    assert stored == {path.name for path in (tmp_path / "alone").rglob("*.safetensors")}


def test_what_is_stored_or_alone_is_not_encoded_ahead(tmp_path: Path) -> None:
    for store in (FeatureStore(tmp_path / "store"), FeatureStore()):
        encoder = Counting()
        backbone = make_backbone(encoder)
        store.encode_ahead(backbone, [["red"]])
        store.encode_ahead(backbone, [])
        assert encoder.text_calls == []
        store.texts(backbone, ["red"])
        store.encode_ahead(backbone, [["red"], ["green", "blue"]])
        assert encoder.text_calls == [["red"]]


def test_a_task_whose_texts_cannot_be_found_is_left_to_its_cell(workspace: Workspace) -> None:
    encoder = Counting()
    zero_shot = PROTOCOLS["zero_shot_classification"]
    broken = squares_task(name="broken", class_names={"names": ["one"]})
    columns = [Column(zero_shot, task) for task in (squares_task(), broken)]
    columns.append(Column(PROTOCOLS["retrieval"], captions_task()))
    store = FeatureStore(workspace.features)
    encode_texts_ahead(columns, make_backbone(encoder), workspace=workspace, features=store)
    assert len(encoder.text_calls) == 1


def test_files_of_the_next_data_set_are_read_ahead(workspace: Workspace) -> None:
    columns = suite()
    ahead = ReadAhead(workspace)
    ahead.start(columns, 0)
    ahead.wait()
    assert ahead.next_of(columns, 0) is not None
    assert ahead.next_of(columns, 0).declaration.name == captions_task().name  # type: ignore[union-attr]
    missing = squares_task(name="absent", reader={"kind": "image_folder", "root": "absent"})
    ahead.start([columns[0], Column(PROTOCOLS["knn"], missing)], 0)
    ahead.wait()  # what is wrong is said when it is measured
    ahead.start(columns, len(columns) - 1)
    ahead.wait()
