"""Checkpoints in shards, in one process; several are in tests/pretrain/test_shards_of_runs.py."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.errors import CheckpointError, StorageError
from maskclip_bench.training.checkpoint import Checkpoint, CheckpointStore, load_checkpoint
from maskclip_bench.training.shards import (
    METADATA_FILE,
    RUN_FILE,
    ShardWriter,
    as_states,
    as_tensors,
    load_shards,
    numbered,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

GROUPS = [
    {"params": ["w.weight"], "lr": 0.1, "betas": (0.9, 0.98)},
    {"params": ["b"], "lr": 1e-3, "betas": (0.9, 0.98)},
]


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        method={},
        optimizer={},
        counters={"num_nonfinite": 2},
        recipe={"name": "x", "optimizer": {"betas": [0.9, 0.98]}},
        world_size=3,
        data={"num_samples": 8},
    )


def tensors(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    module = {
        "w.weight": torch.randn(5, 3, generator=generator),
        "b": torch.randn((), generator=generator),
        "is_set": torch.tensor([True, False]),
        "low": torch.randn(4, generator=generator).bfloat16(),
    }
    state = {
        name: {"exp_avg": torch.randn(module[name].shape), "step": torch.tensor(float(step))}
        for name in ("w.weight", "b")
    }
    return as_tensors(module, {"state": state})


@pytest.fixture
def writer() -> Iterator[ShardWriter]:
    made = ShardWriter()
    yield made
    made.close()


def save(store: CheckpointStore, writer: ShardWriter, step: int) -> Path:
    store.save_in_shards(writer, checkpoint(step), tensors(step), GROUPS)
    writer.wait()
    return store.paths()[-1]


def test_round_trip(tmp_path: Path, writer: ShardWriter) -> None:
    """Every tensor with its type, bit for bit; the optimizer as torch has it; plain values."""
    given = tensors(7)
    store = CheckpointStore(tmp_path, keep=2)
    store.save_in_shards(writer, checkpoint(7), given, GROUPS)
    writer.wait()
    (path,) = store.paths()
    assert path.name == "step_00000007.dcp"
    found = load_checkpoint(path)
    assert found.shards is None
    assert (found.values(), found.step) == (checkpoint(7).values(), 7)
    module, state = as_states(given, GROUPS)
    torch.testing.assert_close(found.method, module, rtol=0, atol=0)
    assert found.method["low"].dtype == torch.bfloat16
    torch.testing.assert_close(found.optimizer, numbered(state), rtol=0, atol=0)
    assert found.optimizer["param_groups"][0] == {"params": [0], "lr": 0.1, "betas": (0.9, 0.98)}


def test_load__without_tensors(tmp_path: Path, writer: ShardWriter) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = save(store, writer, 3)
    found = store.load(3, whole=False)
    assert (found.shards, found.method) == (path, {})
    assert found.optimizer == {"param_groups": GROUPS}
    filled = {name: torch.zeros_like(tensor) for name, tensor in tensors(3).items()}
    load_shards(path, filled)
    assert filled["method.b"] == tensors(3)["method.b"]
    filled["method.w.weight"] = torch.zeros(5, 4)
    with pytest.raises(
        CheckpointError, match=r"2 of its tensors differ, the first is method\.more"
    ):
        load_shards(path, {**filled, "method.more": torch.zeros(1)})


def test_begin__what_changes_afterwards_is_not_written(tmp_path: Path, writer: ShardWriter) -> None:
    store, given = CheckpointStore(tmp_path, keep=2), tensors(1)
    store.save_in_shards(writer, checkpoint(1), given, GROUPS)
    for tensor in given.values():
        tensor.zero_()
    writer.wait()
    found = store.latest()
    assert found is not None
    assert torch.equal(found.method["w.weight"], tensors(1)["method.w.weight"])


def test_interrupted__the_one_before_is_untouched(
    tmp_path: Path, writer: ShardWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half written has another name, which the next run removes."""
    store = CheckpointStore(tmp_path, keep=1)
    save(store, writer, 1)
    begun, go_on, write = threading.Event(), threading.Event(), storage.write_checksums

    def slow(folder: Path) -> Path:
        begun.set()
        go_on.wait(timeout=30)
        return write(folder)

    monkeypatch.setattr(storage, "write_checksums", slow)
    store.save_in_shards(writer, checkpoint(2), tensors(2), GROUPS)
    assert begun.wait(timeout=30)  # the writer is a thread of its own
    found = store.latest()
    assert found is not None
    assert found.step == 1
    half = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    dead = tmp_path / half[0].name.replace(f"-{os.getpid()}-", "-999999999-")
    go_on.set()
    writer.wait()
    assert [path.name for path in store.paths()] == ["step_00000002.dcp"]
    dead.mkdir()
    assert storage.remove_leftovers(tmp_path) == [dead]


def test_keep__files_and_folders_in_one_order(tmp_path: Path, writer: ShardWriter) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, writer, 1)
    store.save(checkpoint(2))
    save(store, writer, 3)
    assert [path.name for path in store.paths()] == ["step_00000002.pt", "step_00000003.dcp"]
    store.save(checkpoint(4))
    store.save(checkpoint(5))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004.pt", "step_00000005.pt"]


def damages(folder: Path) -> Iterator[str]:
    """Damage a folder in every way that is tried, and repair it."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[position] ^= 4
            path.write_bytes(changed)
            yield f"{path.name}, a bit"
        path.write_bytes(content[:-1])
        yield f"{path.name}, cut"
        path.unlink()
        yield f"{path.name}, missing"
        path.write_bytes(content)
    (folder / "more").touch()
    yield "one more"


@pytest.mark.parametrize("whole", [True, False])
def test_load__any_damage_is_noticed(tmp_path: Path, writer: ShardWriter, whole: bool) -> None:
    path = save(CheckpointStore(tmp_path, keep=2), writer, 1)
    names = set()
    for damage in damages(path):
        names.add(damage.split(",")[0])
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(path, whole=whole)
    assert {METADATA_FILE, RUN_FILE, "SHA256SUMS", "__0_0.distcp"} <= names


def test_latest__damaged_ones_are_set_aside(
    tmp_path: Path, writer: ShardWriter, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(checkpoint(1))
    save(store, writer, 2)
    (save(store, writer, 3) / "__0_0.distcp").write_bytes(b"no")
    with caplog.at_level(logging.WARNING):
        found = store.latest(set_aside=True, whole=False)
    assert found is not None
    assert found.step == 2
    assert "step_00000003.dcp cannot be read: it was damaged: __0_0.distcp differs" in caplog.text
    assert (tmp_path / "step_00000003.dcp.damaged").is_dir()
    assert [path.name for path in store.paths()] == ["step_00000001.pt", "step_00000002.dcp"]
    (tmp_path / "step_00000002.dcp" / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="its SHA256SUMS is missing"):
        load_checkpoint(tmp_path / "step_00000002.dcp")


def test_load__a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "step_1.dcp").touch()
    with pytest.raises(CheckpointError, match=r"No checkpoint .*\(or a folder step_\*\.dcp"):
        load_checkpoint(tmp_path / "step_1.dcp")


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("hostile", [_Malicious(), 3, {"a": 1}])
def test_load__never_unpickles_code(
    tmp_path: Path, writer: ShardWriter, monkeypatch: pytest.MonkeyPatch, hostile: Any
) -> None:
    """Even where the checksums were made for it."""
    monkeypatch.chdir(tmp_path)
    path = save(CheckpointStore(tmp_path, keep=1), writer, 1)
    (path / METADATA_FILE).write_bytes(pickle.dumps(hostile))
    storage.write_checksums(path)
    match = r"\.metadata (names .*, which is not loaded|describes something else than tensors)"
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(path)
    assert not Path("executed").exists()


def test_load__bytes_among_the_tensors(tmp_path: Path, writer: ShardWriter) -> None:
    """torch unpickles them."""
    path = save(CheckpointStore(tmp_path, keep=1), writer, 1)
    dcp.save({"method.b": {1, 2}}, storage_writer=dcp.FileSystemWriter(tmp_path / "other"))
    (path / METADATA_FILE).write_bytes((tmp_path / "other" / METADATA_FILE).read_bytes())
    storage.write_checksums(path)
    with pytest.raises(CheckpointError, match="something else than tensors"):
        load_checkpoint(path)


@pytest.mark.parametrize("where", ["shards", "sums"])
def test_begin__no_space(
    tmp_path: Path, writer: ShardWriter, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It is told when the next one begins, or at the end; nothing is left of it."""
    store = CheckpointStore(tmp_path, keep=1)
    save(store, writer, 1)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "shards":
        monkeypatch.setattr(dcp.FileSystemWriter, "write_data", full)
    else:
        monkeypatch.setattr(storage, "write_checksums", full)
    store.save_in_shards(writer, checkpoint(2), tensors(2), GROUPS)
    with pytest.raises(StorageError, match=r"No space left on the device: .*step_00000002\.dcp"):
        store.save_in_shards(writer, checkpoint(3), tensors(3), GROUPS)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.dcp"]
    save(store, writer, 4)


def test_begin__another_error_is_not_hidden(
    tmp_path: Path, writer: ShardWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("of ours")

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", broken)
    writer.begin(tmp_path / "step_1.dcp", tensors(1), {})
    with pytest.raises(dcp.CheckpointException):
        writer.wait()
    writer.wait()
