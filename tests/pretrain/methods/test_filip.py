from __future__ import annotations

from pathlib import Path

from tiny_methods import batch, build


def test_filip__without_clips_own_loss(clip_folder: Path) -> None:
    method = build("filip", clip_folder, global_weight=0)
    assert method(batch()).keys() == {"late_interaction_loss", "loss"}
