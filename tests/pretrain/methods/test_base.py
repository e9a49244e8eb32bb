"""What all methods share."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_methods import batch, build

from maskclip_bench.pretrain.methods.base import MAX_LOGIT_SCALE, packed_text, read_values, vit_of


def test_read_values__numbers_and_scalars_in_their_order() -> None:
    values = read_values({"a": 1.5, "b": torch.tensor(2.5), "c": torch.tensor(3.5).double()})
    assert list(values.items()) == [("a", 1.5), ("b", 2.5), ("c", 3.5)]
    assert read_values({}) == {}


def test_after_step__clamps_the_logit_scale() -> None:
    method = build("clip", Path())
    with torch.no_grad():
        method.model.logit_scale.fill_(9.0)
    logged = method.after_step(step=1, total_steps=2)
    assert float(method.model.logit_scale.detach()) == pytest.approx(MAX_LOGIT_SCALE)
    assert logged == {"logit_scale": pytest.approx(math.exp(MAX_LOGIT_SCALE), rel=1e-6)}


def test_image_only_method__logs_nothing_and_keeps_the_scale() -> None:
    method = build("simclr", Path())
    with torch.no_grad():
        method.model.logit_scale.fill_(9.0)
    assert method.after_step(step=1, total_steps=2) == {}
    assert float(method.model.logit_scale.detach()) == 9.0


def test_vit_of_and_packed_text__are_the_students() -> None:
    method = build("clip", Path())
    assert vit_of(method).trunk is method.model.visual.trunk
    text = packed_text(method, batch())
    assert text.tower is method.model.text
    assert text.layout.num_texts == 8
