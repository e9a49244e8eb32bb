from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from maskclip_bench.errors import ConfigError, DamagedFileError, StorageError
from maskclip_bench.pretrain.run_folder import RunFolder
from maskclip_bench.pretrain.trainer import train


@pytest.fixture(scope="module")
def finished(tiny: ModuleType, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(tiny.tiny_recipe("maskclip", num_pairs=32), output=folder, data_root=data_root)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def recipe(tiny: ModuleType, **changes: Any) -> Any:
    return tiny.tiny_recipe("maskclip", **{"num_pairs": 32, **changes})


def test_claim__an_empty_folder(tiny: ModuleType, tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").claim(recipe(tiny))
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_claim__what_does_not_change_the_numbers_may_change(tiny: ModuleType, run: Path) -> None:
    RunFolder(run).claim(recipe(tiny, log={"every_steps": 7}))
    assert "every_steps: 7" in (run / "recipe.yaml").read_text()


def test_claim__another_run(tiny: ModuleType, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a run of another recipe; it differs in: seed\."):
        RunFolder(run).claim(recipe(tiny, seed=1))


def test_claim__nothing_but_a_recipe_is_replaced(tiny: ModuleType, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(recipe(tiny, seed=1))
    folder.claim(recipe(tiny, seed=2))
    assert "seed: 2" in (tmp_path / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff", b"a: [", b"- 1", b"method: 3", b"a: &x [*x]", b"{" * 5000]
)
def test_claim__a_damaged_recipe_is_written_again(
    tiny: ModuleType, run: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    before = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_bytes(content)
    RunFolder(run).claim(recipe(tiny))
    assert "recipe.yaml cannot be read and is written again" in caplog.text
    assert (run / "recipe.yaml").read_text() == before


def test_claim__a_model_without_its_recipe_is_not_replaced(tiny: ModuleType, run: Path) -> None:
    (run / "recipe.yaml").unlink()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ConfigError, match=r"model was made by another recipe, and recipe.yaml bes"):
        RunFolder(run).claim(recipe(tiny, seed=1))
    RunFolder(run).claim(recipe(tiny))


def test_claim__a_folder_in_the_place_of_the_recipe(tiny: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").mkdir()
    with pytest.raises(StorageError, match=r"recipe\.yaml"):
        RunFolder(tmp_path).claim(recipe(tiny))


def test_is_finished(tiny: ModuleType, run: Path) -> None:
    folder = RunFolder(run)
    assert folder.is_finished(recipe(tiny))
    assert not folder.is_finished(recipe(tiny, seed=1))
    (run / "model" / "SHA256SUMS").unlink()  # written before there were checksums
    assert folder.is_finished(recipe(tiny))


def test_is_finished__made_before_a_field_was_added(tiny: ModuleType, run: Path) -> None:
    """The hash in provenance.json is of all fields that there were then."""
    (run / "model" / "SHA256SUMS").unlink()
    origin = json.loads((run / "model" / "provenance.json").read_text())
    origin["recipe_fingerprint"] = "of other fields"
    (run / "model" / "provenance.json").write_text(json.dumps(origin))
    assert RunFolder(run).is_finished(recipe(tiny))
    (run / "model" / "recipe.yaml").unlink()
    assert not RunFolder(run).is_finished(recipe(tiny))


@pytest.mark.parametrize("part", ["model", "teacher"])
def test_is_finished__a_damaged_model_is_written_again(
    tiny: ModuleType, run: Path, data_root: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = run / part / "open_clip_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    train(recipe(tiny), output=run, data_root=data_root)
    assert f"{part} is damaged: open_clip_model.safetensors differs from its hash" in caplog.text
    assert file.read_bytes() == content


def test_is_finished__damaged_without_a_checkpoint(tiny: ModuleType, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "model" / "open_clip_config.json").unlink()
    with pytest.raises(DamagedFileError, match=r"There is no checkpoint to write it again from"):
        RunFolder(run).is_finished(recipe(tiny))


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"recipe_fingerprint": 1})])
def test_is_finished__unreadable_provenance(tiny: ModuleType, run: Path, content: str) -> None:
    (run / "model" / "provenance.json").write_text(content)
    assert not RunFolder(run).is_finished(recipe(tiny))


def test_locked__removes_what_dead_processes_left(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    dead = tmp_path / "checkpoints" / ".step_00000002.pt.999999999-0123abcd.tmp"
    dead.write_bytes(b"half")
    old = dead.stat().st_mtime - 2 * 24 * 3600
    import os

    os.utime(dead, (old, old))
    (tmp_path / "notes.tmp").touch()  # not ours
    with RunFolder(tmp_path).locked():
        assert not dead.exists()
        assert (tmp_path / "notes.tmp").exists()


def test_locked__another_process_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import threading

    caplog.set_level(logging.INFO)
    entered = threading.Event()

    def enter() -> None:
        with RunFolder(tmp_path).locked():
            entered.set()

    with RunFolder(tmp_path).locked():
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.6)
    thread.join(timeout=10)
    assert entered.is_set()
    assert "Another process trains in" in caplog.text
