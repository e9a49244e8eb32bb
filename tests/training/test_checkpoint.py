from __future__ import annotations

import errno
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskclip_bench.errors import CheckpointError, StorageError
from maskclip_bench.training.checkpoint import (
    Checkpoint,
    CheckpointStore,
    load_checkpoint,
    restore_module,
    restore_optimizer,
)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        method={"weight": torch.full((50, 50), float(step))},
        optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        counters={"num_nonfinite": 2},
        recipe={"name": "x", "optimizer": {"betas": [0.9, 0.98]}},
        world_size=3,
        data={"num_samples": 8, "files": [["a.tar", "0" * 64]], "images": ""},
    )


def test_save__round_trip(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, keep=2).save(checkpoint(7))
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.counters, loaded.world_size) == (7, {"num_nonfinite": 2}, 3)
    assert (loaded.recipe, loaded.data) == (checkpoint(7).recipe, checkpoint(7).data)
    assert torch.equal(loaded.method["weight"], torch.full((50, 50), 7.0))


def test_save__keeps_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (2, 10, 4):
        store.save(checkpoint(step))
    assert [path.name for path in store.paths()] == ["step_00000004.pt", "step_00000010.pt"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_latest__none_at_first(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "nothing", keep=2).latest() is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_latest__broken_newest_is_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2, 3):
        newest = store.save(checkpoint(step))
    content = newest.read_bytes()
    newest.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 999}[damage]
    )
    with caplog.at_level(logging.WARNING):
        found = store.latest()
    assert found is not None
    assert found.step == 2
    assert "step_00000003.pt cannot be read" in caplog.text
    assert f"The one before it, {store.paths()[1]}, is used instead." in caplog.text


def test_latest__damaged_ones_are_set_aside(tmp_path: Path) -> None:
    """They do not count among those that are kept."""
    store = CheckpointStore(tmp_path, keep=2)
    store.save(checkpoint(1))
    store.save(checkpoint(9)).write_bytes(b"no")
    store.latest()
    assert [path.name for path in store.paths()] == ["step_00000001.pt", "step_00000009.pt"]
    store.latest(set_aside=True)
    assert [path.name for path in store.paths()] == ["step_00000001.pt"]
    assert (tmp_path / "step_00000009.pt.damaged").is_file()
    store.save(checkpoint(2))
    assert [path.name for path in store.paths()] == ["step_00000001.pt", "step_00000002.pt"]


def test_load__cut_at_any_length_is_noticed(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, keep=1).save(checkpoint(1))
    content = path.read_bytes()
    lengths = [*range(0, len(content), len(content) // 24), *range(len(content) - 80, len(content))]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(path)


def test_load__any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, keep=1).save(checkpoint(1))
    content = path.read_bytes()
    positions = [
        *range(0, len(content), len(content) // 24),
        *range(len(content) - 74, len(content)),
    ]
    for number, position in enumerate(positions):
        damaged = bytearray(content)
        damaged[position] ^= 1 << number % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(path)
    path.write_bytes(content + b"x")
    with pytest.raises(CheckpointError, match="its checksum is missing"):
        load_checkpoint(path)


def test_load__written_before_there_were_checksums(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, keep=1).save(checkpoint(1))
    payload = torch.load(path, weights_only=True)
    del payload["data"]
    torch.save({**payload, "format": 1}, path)
    assert load_checkpoint(path).data == {}
    torch.save({**payload, "format": 2}, path)
    with pytest.raises(CheckpointError, match="its checksum is missing"):
        load_checkpoint(path)


@pytest.mark.parametrize("change", [{"step": "many"}, {"method": 3}, {"recipe": None}])
def test_load__parts_of_another_kind(tmp_path: Path, change: dict[str, Any]) -> None:
    path = CheckpointStore(tmp_path, keep=1).save(checkpoint(1))
    torch.save({**torch.load(path, weights_only=True), "format": 1, **change}, path)
    with pytest.raises(CheckpointError, match="a part is missing or of another kind"):
        load_checkpoint(path)


def test_load__a_folder_in_its_place(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(checkpoint(1))
    (tmp_path / "step_00000002.pt").mkdir()
    found = store.latest(set_aside=True)
    assert found is not None
    assert found.step == 1


def test_store__load(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(checkpoint(3))
    assert store.load(3).step == 3
    with pytest.raises(CheckpointError, match=r"No checkpoint .*step_00000004\.pt"):
        store.load(4)


def test_latest__none_readable(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2):
        store.save(checkpoint(step)).write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"None of the checkpoints in .* can be read"):
        store.latest()


def test_load__missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No checkpoint .*step_1.pt. Give a file"):
        load_checkpoint(tmp_path / "step_1.pt")


def test_load__other_format(tmp_path: Path) -> None:
    torch.save({"format": 0}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"not a checkpoint of this version \(format 0"):
        load_checkpoint(tmp_path / "a.pt")


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_load__never_unpickles_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "step": _Malicious()}, "evil.pt")
    Path("evil.pkl.pt").write_bytes(pickle.dumps(_Malicious()))
    for name in ("evil.pt", "evil.pkl.pt"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(Path(name))
    assert not Path("executed").exists()


def test_save__no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(checkpoint(1))
    original = Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *exception: object) -> None:
            self._file.close()

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None: ...

    def open_full(path: Path, *args: Any, **kwargs: Any) -> Any:
        file = original(path, *args, **kwargs)
        return Full(file) if ".tmp" in path.name else file

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(StorageError, match="No space left on the device"):
        store.save(checkpoint(2))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.pt"]
    found = store.latest()
    assert found is not None
    assert found.step == 1


def test_restore_optimizer__other_model() -> None:
    optimizers = [torch.optim.AdamW(nn.Linear(2, 2).parameters()) for _ in range(2)]
    optimizers[0].add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(
        CheckpointError, match=r"The state in X is of another model.*start in anoth"
    ):
        restore_optimizer(optimizers[1], optimizers[0].state_dict(), where="X")


def test_restore_module__other_model() -> None:
    match = (
        r"The state in X is of another model than the recipe builds: of its tensors are 1 missing "
        r"\(bias\); 1 unknown \(scale\); 1 of another shape \(weight\)\. Resume with"
    )
    state = {"weight": torch.zeros(3, 2), "scale": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=match):
        restore_module(nn.Linear(2, 2), state, where="X")
