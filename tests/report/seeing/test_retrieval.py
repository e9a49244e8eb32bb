from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskclip_bench.backbones import load_backbone, load_backbone_declaration
from maskclip_bench.config import validate
from maskclip_bench.report.seeing import retrieval
from maskclip_bench.report.seeing.look import RowToSee
from maskclip_bench.report.seeing.retrieval import LIST, SHEET, answer, retrieve
from maskclip_bench.report.seen_view import retrieval_view
from maskclip_bench.runtime import Workspace
from maskclip_bench.storage import read_object
from maskclip_bench.tasks.declaration import TaskDeclaration


def test_answer__by_hand() -> None:
    query = torch.tensor([1.0, 0.0])
    candidates = torch.tensor([[0.2, 1], [0.9, 0.1], [0.5, 0.5]])
    found = answer(query, candidates, [2])
    assert found.found == [1, 2, 0]
    assert found.rank == 2
    assert answer(query, candidates, [0, 1]).rank == 1


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    folder = tmp_path / "data/captions/images"
    folder.mkdir(parents=True)
    entries = []
    for index in range(6):
        Image.new("RGB", (20, 20), (40 * index, 0, 200 - 40 * index)).save(folder / f"{index}.png")
        sentences = [{"raw": f"picture {index}"}, {"raw": f"the {index} colour"}]
        entries.append({"filename": f"{index}.png", "split": "test", "sentences": sentences})
    (tmp_path / "data/captions/list.json").write_text(json.dumps({"images": entries}))
    return Workspace.open(tmp_path)


@pytest.fixture
def task() -> TaskDeclaration:
    values = {
        "name": "captions",
        "display_name": "Captions",
        "world": "real",
        "reader": {"kind": "karpathy", "root": "captions", "file": "list.json", "images": "images"},
        "splits": {"test": "test"},
        "protocols": {"retrieval": {}},
        "obtain": "made by the test",
    }
    return validate(values, TaskDeclaration, where="test")


def test_retrieve__the_same_queries_to_every_model(
    workspace: Workspace, task: TaskDeclaration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declaration = load_backbone_declaration("random_init_vit-demo_demo")
    rows = [
        RowToSee(f"row{seed}", f"Row {seed}", str(seed), load)
        for seed in range(2)
        for load in [partial(load_backbone, declaration, workspace=workspace, seed=seed)]
    ]
    found = retrieve(rows, task, workspace, tmp_path / "out")
    assert found is not None
    assert json.loads((tmp_path / "out" / LIST).read_text()) == found
    assert (tmp_path / "out" / SHEET).is_file()
    assert set(found["answers"]) == {"row0", "row1"}
    assert found["asked_images"] == [0, 1, 3, 4]
    assert [found["owner"][str(text)] for text in found["asked_texts"]] == [0, 2, 3, 5]
    for one in found["answers"]["row0"]["images"]:
        assert len(one["found"]) == 5
        assert 1 <= one["rank"] <= 12
    view = retrieval_view(found, {"row0": "Zero"}, "Captions")
    assert view is not None
    assert [a["label"] for a in view["images"][0]["answers"]] == ["Zero", "row1"]
    right = [p["right"] for p in view["texts"][0]["answers"][0]["pictures"]]
    assert (sum(right) == 1) == view["texts"][0]["answers"][0]["hit"]
    monkeypatch.setattr(retrieval, "answer_all", None)
    assert retrieve(rows, task, workspace, tmp_path / "out") == found  # kept
    assert read_object(tmp_path / LIST) is None


def test_retrieve__no_model_answers(
    workspace: Workspace, task: TaskDeclaration, tmp_path: Path
) -> None:
    absent = load_backbone_declaration("clip_vit-demo_demo")
    load = partial(load_backbone, absent, workspace=workspace)
    rows = [RowToSee("absent", "Absent", "x", load)]
    assert retrieve(rows, task, workspace, tmp_path / "out") is None
    assert retrieval_view(None, {}, "") is None
