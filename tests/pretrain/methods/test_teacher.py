"""Momentum, frozen CLIP models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from tiny_methods import MODEL

from maskclip_bench.data.pair_config import IMAGENET_MEAN, IMAGENET_STD
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling import build_model
from maskclip_bench.pretrain.methods.teacher import (
    EMAConfig,
    EMASchedule,
    FrozenCLIP,
    TextAndProjections,
    cosine_momentum,
    ema_update,
    frozen_copy,
)


def test_ema_update() -> None:
    student = torch.nn.Linear(2, 3)
    teacher = frozen_copy(student)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    with torch.no_grad():
        student.weight.add_(1.0)
    ema_update(teacher, student, 0.75)
    torch.testing.assert_close(teacher.weight, before["weight"] + 0.25)
    torch.testing.assert_close(teacher.bias, before["bias"])
    assert not any(p.requires_grad for p in teacher.parameters())


def test_ema_schedule__memory_is_the_mean_age() -> None:
    schedule = EMASchedule(EMAConfig(ema_memory=0.05))
    assert schedule.momentum(1, 1000) == schedule.momentum(1000, 1000) == 50 / 51
    assert schedule.mean_age(1000, 1000) == pytest.approx(50, rel=1e-6)


def test_ema_schedule__memory_in_pairs() -> None:
    """640 pairs are 10 steps of 64, in a run of any length."""
    schedule = EMASchedule(EMAConfig(ema_memory_pairs=640, pairs_per_step=64))
    assert schedule.momentum(1, 100) == schedule.momentum(9, 1000) == 10 / 11
    assert schedule.mean_age(1000, 1000) == pytest.approx(10)
    with pytest.raises(ConfigError, match=r"ema_memory_pairs needs method\.pairs_per_step"):
        EMASchedule(EMAConfig(ema_memory_pairs=640))


def test_text_and_projections__follows_and_is_put_into_a_model() -> None:
    torch.manual_seed(0)
    student, other = build_model(MODEL), build_model(MODEL)
    rest = TextAndProjections(student)
    before = {name: value.clone() for name, value in rest.state_dict().items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    rest.follow(student, 0.75)
    for name, parameter in rest.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.25, msg=name)
        assert not parameter.requires_grad
    trunk = {name: value.clone() for name, value in other.visual.trunk.state_dict().items()}
    rest.put_into(other)
    for name, value in other.state_dict().items():
        if name.startswith("visual.trunk."):
            assert torch.equal(value, trunk[name.removeprefix("visual.trunk.")])
        elif name != "text.attn_mask":
            assert torch.equal(value, rest.state_dict()[name.removeprefix("visual.")]), name


def test_ema_schedule__fixed_and_cosine() -> None:
    fixed = EMASchedule(EMAConfig(ema_momentum=0.9))
    assert fixed.momentum(1, 10) == fixed.momentum(10, 10) == 0.9
    cosine = EMASchedule(EMAConfig(ema_momentum=0.9, ema_momentum_end=1.0))
    assert cosine.momentum(5, 10) == cosine_momentum(0.9, 1.0, 0.5)


def test_ema_schedule__mean_age_is_that_of_the_weights() -> None:
    """Follow the share of each step's student in the teacher; a resumed run knows it as well."""
    schedule = EMASchedule(EMAConfig(ema_momentum=0.8, ema_momentum_end=1.0))
    shares = {0: 1.0}
    for step in range(1, 21):
        momentum = schedule.momentum(step, 20)
        shares = {made: momentum * share for made, share in shares.items()}
        shares[step] = 1 - momentum
        age = sum(share * (step - made) for made, share in shares.items())
        assert schedule.mean_age(step, 20) == pytest.approx(age)
        resumed = EMASchedule(EMAConfig(ema_momentum=0.8, ema_momentum_end=1.0))
        assert resumed.mean_age(step, 20) == schedule.mean_age(step, 20)


def test_cosine_momentum() -> None:
    assert cosine_momentum(0.996, 1.0, 0.0) == pytest.approx(0.996)
    assert cosine_momentum(0.996, 1.0, 0.5) == pytest.approx(0.998)
    assert cosine_momentum(0.996, 1.0, 1.0) == pytest.approx(1.0)


def test_frozen_clip__sees_its_own_normalization(clip_folder: Path) -> None:
    teacher = FrozenCLIP(
        f"local-dir:{clip_folder}", None, mean=IMAGENET_MEAN, std=IMAGENET_STD
    ).train()
    assert not teacher.training
    model = open_clip.create_model(f"local-dir:{clip_folder}").eval()
    pixels = torch.rand(2, 3, 48, 48)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    own_mean, own_std = (torch.tensor(x).view(3, 1, 1) for x in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    expected = model.visual.trunk.forward_features((pixels - own_mean) / own_std)[:, 1:]
    torch.testing.assert_close(teacher((pixels - mean) / std), expected, rtol=1e-4, atol=1e-5)
    assert teacher((torch.rand(1, 3, 96, 96) - mean) / std).shape == (1, 36, 96)
    assert teacher.width(48, num_patches=36) == 96
    with pytest.raises(ConfigError, match=r"divides an image into 36 patches, the student into 9"):
        teacher.width(48, num_patches=9)


@pytest.mark.parametrize(("pretrained", "quick"), [("openai", True), ("laion2b_s34b_b88k", False)])
def test_frozen_clip__activation_is_that_of_its_weights(
    monkeypatch: pytest.MonkeyPatch, pretrained: str, quick: bool
) -> None:
    """OpenAI's weights go with QuickGELU, whatever the name of the architecture says."""
    create = open_clip.create_model

    def without_weights(name: str, **arguments: Any) -> Any:
        assert arguments.pop("pretrained") == pretrained
        return create(name, pretrained=None, **{**arguments, "device": "meta"})

    monkeypatch.setattr(open_clip, "create_model", without_weights)
    teacher = FrozenCLIP("ViT-B-16", pretrained, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    activations = {type(block.mlp.gelu) for block in teacher.visual.transformer.resblocks}
    assert activations == {open_clip.transformer.QuickGELU if quick else torch.nn.GELU}


def test_frozen_clip__unknown_model() -> None:
    with pytest.raises(ConfigError, match=r"open_clip cannot make the teacher 'ViT-Z'"):
        FrozenCLIP("ViT-Z", None, mean=IMAGENET_MEAN, std=IMAGENET_STD)
