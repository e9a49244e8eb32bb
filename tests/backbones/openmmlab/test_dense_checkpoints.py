"""The newest checkpoint that is as it was written; damaged ones are set aside."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from maskclip_bench.backbones.openmmlab.dense_checkpoints import (
    checkpoint_to_test,
    last_checkpoint,
    seal_new,
    seal_of,
)
from maskclip_bench.backbones.openmmlab.safe_loading import load_from_local
from maskclip_bench.errors import CheckpointError


def write(folder: Path, *steps: int) -> list[Path]:
    files = [folder / f"iter_{step}.pth" for step in steps]
    for file in files:
        torch.save(nn.Linear(8, 8).state_dict(), file)
    return files


def test_last__by_number(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    files = write(tmp_path, 9, 10, 100)
    torch.save({}, tmp_path / "best_mIoU.pth")
    assert last_checkpoint(tmp_path) == files[-1]


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("damage", ["cut at 0", "cut at half", "cut by one", "one bit"])
def test_last__damaged_is_set_aside(
    tmp_path: Path, sealed: bool, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, last = write(tmp_path, 5, 10)
    if sealed:
        seal_new(tmp_path)
    content = bytearray(last.read_bytes())
    if damage == "one bit":
        content[content.index(last_weights(last))] ^= 4
    else:
        content = content[: {"0": 0, "half": len(content) // 2, "one": -1}[damage.split()[-1]]]
    last.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) == first
    assert "it is set aside, and the one before it is used" in caplog.text
    assert (tmp_path / "iter_10.pth.damaged").is_file() and not seal_of(last).exists()
    assert last_checkpoint(tmp_path) == first


def last_weights(file: Path) -> bytes:
    """Some bytes of the weights, as they are in the file."""
    weights = torch.load(file, weights_only=True)["weight"]
    return bytes(weights.numpy().tobytes()[:32])


@pytest.mark.parametrize("position", range(0, 2000, 97))
def test_last__any_bit_of_a_sealed_file(tmp_path: Path, position: int) -> None:
    (file,) = write(tmp_path, 5)
    seal_new(tmp_path)
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 1 << (position % 8)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not as it was written .*SHA-256.*train again"):
        load_from_local(str(file))
    assert last_checkpoint(tmp_path) is None


def test_seal__as_sha256sum_writes_it_and_gone_with_the_file(tmp_path: Path) -> None:
    first, last = write(tmp_path, 5, 10)
    seal_new(tmp_path)
    digest, name = seal_of(first).read_text().split()
    assert len(digest) == 64 and name == "iter_5.pth"
    first.unlink()
    seal_new(tmp_path)
    assert not seal_of(first).exists() and seal_of(last).is_file()


def test_to_test__none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no checkpoint to test\. Delete the folder"):
        checkpoint_to_test(tmp_path)
