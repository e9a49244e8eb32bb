from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from maskclip_bench import storage
from maskclip_bench.cli import verify as module
from maskclip_bench.cli.app import app
from maskclip_bench.errors import ConfigError, StorageError
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.records import Cell, RecordStore, measured_record
from maskclip_bench.runtime import Workspace


def make_record(root: Path, backbone: str = "clip") -> Path:
    outcomes = pd.DataFrame({"sample_id": ["a", "b"], "group": ["a", "b"], "m": [1.0, 0.0]})
    cell = Cell(
        backbone=backbone, protocol="knn", dataset="birds", world="real", cell_fingerprint="f"
    )
    store = RecordStore(root)
    store.save(measured_record(cell, Measurement({"m": Metric(0.5)}, "m", outcomes, "p")), outcomes)
    return store.path(backbone, "knn", "birds")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    opened = Workspace(root=tmp_path / "w", data=tmp_path / "w" / "data")
    make_record(opened.records)
    features = opened.features / "ab" / "abcd.safetensors"
    features.parent.mkdir(parents=True)
    features.write_bytes(b"tensors")
    storage.write_json(features.with_suffix(".json"), {"sha256": storage.sha256_file(features)})
    for name in ("model", "teacher"):
        model = opened.pretraining("clip", 0) / name
        model.mkdir(parents=True)
        (model / "open_clip_model.safetensors").write_bytes(b"weights")
        storage.write_checksums(model)
    job = opened.jobs / "segmentation__x"
    job.mkdir(parents=True)
    (job / "outcomes").write_bytes(b"outcomes")
    storage.write_checksums(job)
    return opened


def states(workspace: Workspace, *, fix: bool = False) -> dict[str, str]:
    return {
        f"{item.kind}: {item.path.name}": module.examine(item, fix=fix)[0]
        for item in module.items_of(workspace)
    }


WHOLE = {
    "records: knn__birds.json": "whole",
    "features: abcd.safetensors": "whole",
    "models: model": "whole",
    "models: teacher": "whole",
    "jobs: segmentation__x": "whole",
}


def test_items__all_whole(workspace: Workspace) -> None:
    assert states(workspace) == WHOLE


DAMAGE: dict[str, tuple[str, Callable[[Workspace], Path]]] = {
    "record": ("records: knn__birds.json", lambda w: w.records / "clip" / "knn__birds.json"),
    "outcomes": (
        "records: knn__birds.json",
        lambda w: next(w.records.glob("clip/*.parquet")),
    ),
    "features": ("features: abcd.safetensors", lambda w: w.features / "ab" / "abcd.safetensors"),
    "their note": ("features: abcd.safetensors", lambda w: w.features / "ab" / "abcd.json"),
    "job": ("jobs: segmentation__x", lambda w: w.jobs / "segmentation__x" / "outcomes"),
    "checksums": ("jobs: segmentation__x", lambda w: w.jobs / "segmentation__x" / "SHA256SUMS"),
}


@pytest.mark.parametrize("how", ["one bit", "cut", "empty"])
@pytest.mark.parametrize("what", DAMAGE)
def test_damage__is_found_and_repaired(workspace: Workspace, what: str, how: str) -> None:
    name, place = DAMAGE[what]
    path = place(workspace)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"one bit": content, "cut": content[:-3], "empty": b""}[how])
    assert states(workspace) == {**WHOLE, name: "damaged"}
    assert states(workspace, fix=True)[name] == "repaired"
    assert "damaged" not in states(workspace, fix=True).values()
    rest = states(workspace)
    assert set(rest.values()) == {"whole"}
    assert name not in rest


def test_damage__a_model_is_set_aside_only_if_it_can_be_written_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workspace.pretraining("clip", 0)
    (run / "model" / "open_clip_model.safetensors").write_bytes(b"WEIGHTS")
    assert states(workspace, fix=True)["models: model"] == "damaged"
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step_00000001.pt").write_bytes(b"no checkpoint")
    monkeypatch.setattr(module, "_check_checkpoint", lambda path: [])
    assert states(workspace, fix=True)["models: model"] == "repaired"
    assert (run / "model.damaged-1").is_dir()


def test_damage__a_checkpoint(workspace: Workspace) -> None:
    path = workspace.pretraining("clip", 0) / "checkpoints" / "step_00000001.pt"
    path.parent.mkdir()
    path.write_bytes(b"no checkpoint")
    assert states(workspace)["checkpoints: step_00000001.pt"] == "damaged"
    assert states(workspace, fix=True)["checkpoints: step_00000001.pt"] == "repaired"
    assert path.with_name("step_00000001.pt.damaged-1").exists()


def test_made_before_checksums__is_accepted(workspace: Workspace) -> None:
    (workspace.pretraining("clip", 0) / "model" / "SHA256SUMS").unlink()
    path = workspace.records / "clip" / "knn__birds.json"
    values = json.loads(path.read_text())
    del values["seal"]
    path.write_text(json.dumps(values))
    found = states(workspace)
    assert found["models: model"] == found["records: knn__birds.json"] == "unsealed"


def test_leftovers_and_orphans__are_found_and_removed(workspace: Workspace) -> None:
    left = workspace.features / "ab" / ".x.0123abcd-5-0123abcd.tmp"
    left.touch()
    os.utime(left, (0, 0))
    orphan = workspace.records / "clip" / "few_shot__birds.0123abcd.parquet"
    uncommitted = workspace.features / "ab" / "ffff.safetensors"
    for path in (orphan, uncommitted):
        path.touch()
    found = states(workspace)
    assert [
        found[f"{kind}: {path.name}"]
        for kind, path in (("leftovers", left), ("outcomes", orphan), ("features", uncommitted))
    ] == ["damaged"] * 3
    states(workspace, fix=True)
    assert states(workspace) == WHOLE


def test_records_of_trials__are_checked_too(workspace: Workspace) -> None:
    make_record(workspace.root / "records_limit_20", "slip").write_text("{")
    assert list(states(workspace).values()).count("damaged") == 1


def test_verify__cannot_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(storage, "sha256_file", refuse)
    with pytest.raises(StorageError, match="No permission to read"):
        states(workspace)


def test_verify__no_workspace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no workspace .*nowhere"):
        module.verify(tmp_path / "nowhere")


def invoke(workspace: Workspace, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        app, ["verify", str(workspace.root), *options], env={"COLUMNS": "200"}
    )
    return result.exit_code, result.output


def test_command__tells_and_exits(workspace: Workspace) -> None:
    code, output = invoke(workspace)
    assert code == 0
    assert "All is as it was written" in output
    (workspace.records / "clip" / "knn__birds.json").write_text("{")
    code, output = invoke(workspace)
    assert code == 3
    assert "knn__birds.json is damaged" in output
    assert "maskclip-bench verify --fix" in output
    code, output = invoke(workspace, "--fix")
    assert code == 0
    assert "set aside as knn__birds.json.damaged-1" in output
    assert invoke(workspace)[0] == 0


def test_command__in_a_process_of_its_own(workspace: Workspace) -> None:
    (workspace.records / "clip" / "knn__birds.json").write_bytes(b"\xff")
    result = subprocess.run(
        [sys.executable, "-m", "maskclip_bench", "verify", str(workspace.root)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
