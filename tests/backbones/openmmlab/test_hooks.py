"""What the hook `RunReport` notices by itself; the report is tested with the scripts."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import nn

from maskclip_bench.backbones.openmmlab.dense_checkpoints import seal_new, seal_of, seal_problem
from maskclip_bench.backbones.openmmlab.hooks import RunReport
from maskclip_bench.errors import DataError


def runner(folder: Path, classes: tuple[str, ...] | None) -> Any:
    metainfo = {} if classes is None else {"classes": classes}
    return SimpleNamespace(
        work_dir=str(folder),
        model=nn.Linear(1, 1),
        world_size=1,
        logger=logging.getLogger("runner"),
        test_dataloader=SimpleNamespace(dataset=SimpleNamespace(metainfo=metainfo)),
        iter=0,
        max_iters=1,
    )


def check_classes(
    folder: Path, trained: tuple[str, ...] | None, classes: tuple[str, ...] | None
) -> None:
    hook, run = RunReport(), runner(folder, classes)
    meta = {} if trained is None else {"dataset_meta": {"classes": trained}}
    hook.after_load_checkpoint(run, {"meta": meta})
    hook.before_test(run)


def test_classes__in_another_order_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for trained, classes in ((("a", "b"), ("a", "b")), (None, ("a",)), (("a",), None)):
        check_classes(tmp_path, trained, classes)
    assert caplog.text == ""
    message = r"lists its classes as b, a.* trained with a, b.*classes="
    with pytest.raises(DataError, match=message):
        check_classes(tmp_path, ("a", "b"), ("b", "a"))
    check_classes(tmp_path, ("a", "b"), ("x", "y"))
    assert "other classes than the checkpoint was trained on" in caplog.text


def test_checkpoints__are_sealed_when_mmengine_wrote_one(tmp_path: Path) -> None:
    hook, run = RunReport(), runner(tmp_path, None)
    hook.after_train_iter(run, 0)
    file = tmp_path / "iter_1.pth"
    torch.save({}, file)
    hook.after_train_iter(run, 0)
    assert not seal_of(file).exists()
    (tmp_path / "last_checkpoint").write_text(str(file))
    hook.after_train_epoch(run)
    assert seal_of(file).is_file()


def test_checkpoints__written_again_after_a_validation_are_sealed_again(tmp_path: Path) -> None:
    """mmengine does so with `save_best`; one that another run left is never sealed again."""
    run, file, older = runner(tmp_path, None), tmp_path / "iter_2.pth", tmp_path / "iter_1.pth"
    run.cfg, run.optim_wrapper = Config({}), None
    run.train_dataloader = SimpleNamespace(batch_size=1)
    torch.save({}, older)
    (tmp_path / "last_checkpoint").write_text(str(older))
    seal_new(tmp_path)
    older.write_bytes(b"damaged")
    hook = RunReport()
    hook.before_train(run)
    hook.after_train_iter(run, 0)
    for content in ({}, {"best": 1}):
        torch.save(content, file)
        (tmp_path / "last_checkpoint").write_text(f"{file}\n")
        os.utime(tmp_path / "last_checkpoint", ns=(0, len(content)))
        (hook.after_val_epoch if content else hook.after_train_epoch)(run)
        assert seal_problem(file) is None
    assert "not as it was written" in str(seal_problem(older))
