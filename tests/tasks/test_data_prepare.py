from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.data import fetching
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.data_prepare import fetch, preparation
from maskclip_bench.tasks.declaration import load_task_declaration
from tests.data.small_sets import dtd


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path / "workspace", data=tmp_path)


def test_torchvision(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "size_of", lambda urls: 600_000_000)
    asked: list[object] = []

    def fetched(name: str, root: Path, arguments: object, **_: object) -> None:
        asked.append((name, arguments))
        dtd(workspace.data)

    monkeypatch.setattr(fetching, "fetch_torchvision", fetched)
    monkeypatch.setattr(fetching, "check_space", lambda root, size: None)
    task = load_task_declaration("dtd")
    plan = preparation(task, workspace)
    assert plan is not None
    assert (plan.source, plan.size) == ("torchvision (DTD)", 600_000_000)
    assert fetch(plan) == workspace.data / "dtd"
    splits = [{"split": s, "download": False} for s in ("train", "val", "test")]
    assert asked == [("DTD", splits)]
    assert preparation(task, workspace) is None


def test_hub(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "hub_size", lambda repository: None)
    asked: list[object] = []
    monkeypatch.setattr(fetching, "fetch_hub", lambda *args: asked.append(args))
    plan = preparation(load_task_declaration("clevr_counts"), workspace)
    assert plan is not None
    fetch(plan)
    assert asked == [("clip-benchmark/wds_vtab-clevr_count_all", workspace.data / "clevr_counts")]


@pytest.mark.parametrize("name", ["imagenet", "fer2013"])
def test_by_hand(workspace: Workspace, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} cannot be fetched by a library\. "):
        preparation(load_task_declaration(name), workspace)


def test_what_an_interrupted_download_left_is_fetched_on(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "size_of", lambda urls: None)
    monkeypatch.setattr(fetching, "hub_size", lambda repository: None)
    for name in ("dtd", "clevr_counts"):
        (workspace.data / name / "train").mkdir(parents=True)
        (workspace.data / name / "test").mkdir()
        assert preparation(load_task_declaration(name), workspace) is not None


def test_a_folder_without_images_is_not_here(workspace: Workspace) -> None:
    (workspace.data / "imagenet/train").mkdir(parents=True)
    (workspace.data / "imagenet/val").mkdir()
    with pytest.raises(DataError, match=r"the split 'train' in .* has no image"):
        preparation(load_task_declaration("imagenet"), workspace)
