from __future__ import annotations

from pathlib import Path

from tiny_methods import batch, build, step


def test_mvp__cosine_of_features(clip_folder: Path) -> None:
    method = build("mvp", clip_folder, loss="cosine", mask_kind="block")
    losses, _ = step(method, batch())
    assert 0 < losses["code_loss"] < 2
    assert method.after_step(step=1, total_steps=2) == {}


def test_mvp__teacher_head_follows_by_its_own_momentum(clip_folder: Path) -> None:
    method = build("mvp", clip_folder, quantizer_momentum=0.0)
    step(method, batch())
    assert method.quantizer is not None
    method.quantizer.student.codewords.data.add_(1.0)
    method.after_step(step=1, total_steps=2)
    assert method.quantizer.teacher.codewords.equal(method.quantizer.student.codewords)
    assert method.quantizer.center.abs().sum() > 0
