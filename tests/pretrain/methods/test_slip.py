from __future__ import annotations

from pathlib import Path

import torch
from tiny_methods import batch, build


def test_slip__is_clip_and_simclr() -> None:
    method, whole = build("slip", Path(), ssl_weight=0.5), batch()
    terms = method(whole)
    clip, simclr = build("clip", Path()), build("simclr", Path())
    clip.model.load_state_dict(method.model.state_dict())
    simclr.model.load_state_dict(method.model.state_dict())
    simclr.ssl_head.load_state_dict(method.ssl_head.state_dict())
    torch.testing.assert_close(terms["contrastive_loss"], clip(batch())["contrastive_loss"])
    torch.testing.assert_close(terms["ssl_loss"], 0.5 * simclr(batch())["ssl_loss"])
