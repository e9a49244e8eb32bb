"""Every field of every Config changes something: the losses of a few steps, or the weights.

A field that does nothing is worse than none: an ablation over it would compare equal runs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from tiny_methods import MODEL, batch, fields
from torch import Tensor

from maskclip_bench import distributed
from maskclip_bench.config import validate
from maskclip_bench.modeling import ModelConfig, TextConfig, VisionConfig, build_model
from maskclip_bench.pretrain.methods import METHODS

NUM_STEPS = 4

Changes = dict[str, Any]

CONTRASTIVE: dict[str, Changes] = {"gather": {"gather": "paper"}}
DECODER: dict[str, Changes] = {
    "mask_ratio": {"mask_ratio": 0.5},
    "decoder_depth": {"decoder_depth": 3},
    "decoder_dim": {"decoder_dim": 12},
    "decoder_num_heads": {"decoder_num_heads": 1},
}
VIEWS: dict[str, Changes] = {
    "ssl_temperature": {"ssl_temperature": 0.2},
    "ssl_hidden_dim": {"ssl_hidden_dim": 16},
    "ssl_output_dim": {"ssl_output_dim": 8},
}
QUANTIZER: dict[str, Changes] = {
    "num_codewords": {"num_codewords": 8},
    "codeword_hidden_dim": {"codeword_hidden_dim": 12},
    "codeword_dim": {"codeword_dim": 4},
    "codeword_depth": {"codeword_depth": 2},
    "codeword_init": {"codeword_init": "normal"},
    "student_temp": {"student_temp": 0.2},
    "teacher_temp": {"teacher_temp": 0.1},
    "teacher_temp_start": {"teacher_temp_start": 0.02},
    "teacher_temp_warmup": {"teacher_temp_warmup": 0.0},
    "center_momentum": {"center_momentum": 0.5},
}
PIXELS: dict[str, Changes] = {**DECODER, "normalize_pixels": {"normalize_pixels": False}}
OTHER_IMAGES: dict[str, Changes] = {
    "image_mean": {"image_mean": (0.1, 0.2, 0.3)},
    "image_std": {"image_std": (0.5, 0.6, 0.7)},
}

CHANGES: dict[str, dict[str, Changes]] = {
    "clip": CONTRASTIVE,
    "slip": {**CONTRASTIVE, **VIEWS, "ssl_weight": {"ssl_weight": 0.5}},
    "clip_mae": {
        **CONTRASTIVE,
        **PIXELS,
        "contrastive_weight": {"contrastive_weight": 1.0},
        "reconstruction_weight": {"reconstruction_weight": 0.1},
    },
    "filip": {**CONTRASTIVE, "global_weight": {"global_weight": 0.5}},
    "simclr": VIEWS,
    "mae": PIXELS,
    "simmim": {"mask_ratio": {"mask_ratio": 0.3}, "mask_patch_size": {"mask_patch_size": 8}},
    "mvp": {
        **QUANTIZER,
        **OTHER_IMAGES,
        "teacher_model": {"teacher_model": "other"},
        "teacher_pretrained": {"teacher_pretrained": "other"},
        "mask_ratio": {"mask_ratio": 0.5},
        "mask_kind": {"mask_kind": "block"},
        "loss": {"loss": "cosine"},
        "quantizer_momentum": {"quantizer_momentum": 0.5},
    },
    "maskclip": {
        **CONTRASTIVE,
        **DECODER,
        **QUANTIZER,
        **OTHER_IMAGES,
        "contrastive_weight": {"contrastive_weight": 1.0},
        "distillation_weight": {"distillation_weight": 0.1},
        "mlm_weight": {"mlm_weight": 0.1},
        "stages": {"stages": "two_stage", "start_from": "FIRST"},
        "start_from": {"start_from": "SECOND"},
        "target": {"target": "features"},
        "teacher": {"teacher": "momentum_head"},
        "teacher_model": {"teacher_model": "other"},
        "teacher_pretrained": {"teacher_pretrained": "other"},
        "target_norm": {"target_norm": False},
        "ema_memory": {"ema_memory": 0.5},
        "ema_memory_pairs": {"ema_memory_pairs": 800.0, "pairs_per_step": 8},
        "pairs_per_step": {"pairs_per_step": 800},
        "ema_momentum": {"ema_momentum": 0.5},
        "full_ema": {"full_ema": True},
        "ema_momentum_end": {"ema_momentum_end": 1.0},
        "mask_kind": {"mask_kind": "block"},
        "decoder_positions": {"decoder_positions": "learned"},
        "loss": {"loss": "mse"},
        "loss_on": {"loss_on": "all"},
        "text_mask_ratio": {"text_mask_ratio": 0.5},
        "text_replacement": {"text_replacement": "mask"},
        "text_decoder_depth": {"text_decoder_depth": 2},
        "vocabulary_head": {"vocabulary_head": "own"},
        "mlm_average": {"mlm_average": "captions"},
    },
}
"""Method -> field -> what to set; some need another field set with them."""

FROZEN: Changes = {"teacher": "open_clip", "teacher_model": "one", "teacher_pretrained": "one"}
BEFORE: dict[tuple[str, str], Changes] = {
    **{("maskclip", name): FROZEN for name in ("teacher_model", "teacher_pretrained")},
    **{("maskclip", name): FROZEN for name in ("image_mean", "image_std")},
    ("maskclip", "start_from"): {"stages": "two_stage", "start_from": "FIRST"},
    ("maskclip", "pairs_per_step"): {"ema_memory_pairs": 800.0, "pairs_per_step": 8},
    ("maskclip", "ema_momentum_end"): {"ema_momentum": 0.5},
}
"""(method, field) -> what must be set for the field to mean something."""

CASES = [(method, field) for method in CHANGES for field in CHANGES[method]]


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip has a model of every name and tag; each has its own weights."""

    def create_model(name: str, *, pretrained: str | None, **kwargs: Any) -> Any:
        seed = int(hashlib.sha256(f"{name} {pretrained}".encode()).hexdigest()[:8], 16)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_model(MODEL)
        model.visual.preprocess_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        return model

    monkeypatch.setattr(open_clip, "create_model", create_model)


@pytest.fixture(autouse=True)
def other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gathered as a constant is one here too, as it would be over several processes."""

    def gather(tensor: Tensor, *, with_gradient: bool) -> Tensor:
        return tensor if with_gradient else tensor.detach()

    monkeypatch.setattr(distributed, "gather", gather)


def small(name: str, folder: Path) -> Changes:
    values = fields(name, folder)
    if name == "mvp":
        values |= {"teacher_model": "one", "teacher_pretrained": "one"}
    if name in ("maskclip", "mvp"):
        values |= {"teacher_temp_warmup": 0.5}
    return values


def outcome(name: str, values: Changes, model: ModelConfig = MODEL) -> tuple[list[float], int]:
    """Losses of a few steps, and the number of weights."""
    torch.manual_seed(0)
    method: Any = METHODS[name]
    built = method(validate(values, method.Config, where=name), model).train()
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for step in range(1, NUM_STEPS + 1):
        loss = built(batch(8, seed=step))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        built.after_step(step=step, total_steps=NUM_STEPS)
        losses.append(float(loss.detach()))
    return losses, sum(parameter.numel() for parameter in built.parameters())


def with_folders(values: Changes, folders: dict[str, Path]) -> Changes:
    return {key: folders.get(str(value), value) for key, value in values.items()}


@pytest.fixture(scope="module")
def folders(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two finished models."""
    from safetensors.torch import save_file

    second = tmp_path_factory.mktemp("second")
    torch.manual_seed(8)
    save_file(build_model(MODEL).state_dict(), second / "open_clip_model.safetensors")
    return {"FIRST": clip_folder, "SECOND": second}


def test_fields__all_are_here() -> None:
    assert CHANGES.keys() == set(METHODS)
    for name, changes in CHANGES.items():
        assert changes.keys() == METHODS[name].Config.model_fields.keys(), name
        for field, values in changes.items():
            assert field in values


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(("name", "field"), CASES)
def test_field__changes_something(
    name: str, field: str, clip_folder: Path, folders: dict[str, Path]
) -> None:
    before = {**small(name, clip_folder), **BEFORE.get((name, field), {})}
    after = {**before, **CHANGES[name][field]}
    assert outcome(name, with_folders(before, folders)) != outcome(
        name, with_folders(after, folders)
    )


MODEL_CHANGES: dict[str, Changes] = {
    "proj_dim": {"proj_dim": 16},
    "image_size": {"image_size": 64},
    "quick_gelu": {"quick_gelu": True},
    "vision.timm_model": {"timm_model": "vit_tiny_patch16_224"},
    "vision.pool": {"pool": "avg"},
    "vision.drop_path_rate": {"drop_path_rate": 0.5},
    "vision.projection_init": {"projection_init": "open_clip"},
    "text.context_length": {"context_length": 20},
    "text.vocab_size": {"vocab_size": 80},
    "text.width": {"width": 16},
    "text.num_heads": {"num_heads": 4},
    "text.depth": {"depth": 1},
}


def test_model_fields__all_are_here() -> None:
    parts = {"vision": VisionConfig, "text": TextConfig}
    names = {name for name in ModelConfig.model_fields if name not in parts}
    for part, config in parts.items():
        names |= {f"{part}.{name}" for name in config.model_fields}
    assert names == MODEL_CHANGES.keys()


@pytest.mark.parametrize("field", [f for f in MODEL_CHANGES if "image_size" not in f])
def test_model_field__changes_something(field: str) -> None:
    part, _, _ = field.rpartition(".")
    change = MODEL_CHANGES[field]
    if part:
        change = {part: getattr(MODEL, part).model_copy(update=change)}
    if field == "vision.timm_model":
        other = build_model(MODEL.model_copy(update={**change, "image_size": 224}))
        assert len(other.visual.trunk.blocks) == 12
        return
    assert outcome("clip", {}) != outcome("clip", {}, MODEL.model_copy(update=change))
