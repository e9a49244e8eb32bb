"""Weights that a run starts from: a finished CLIP, of open_clip's zoo or in a folder (`init`).

Tensors are renamed, never changed, and the result is proved: embeddings of two fixed images and
captions must be those of the model that the weights come from. What differs without a name in the
weights (the activation, the pooling) is noticed so.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP, convert_to_custom_text_state_dict
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.recipe import InitSection, Recipe
from maskclip_bench.runtime import derive_seed
from maskclip_bench.training.checkpoint import restore_module

logger = logging.getLogger(__name__)

MAX_DIFFERENCE = 1e-4
"""Between normalized embeddings in float32; other attention kernels differ by 1e-6."""

REMEDY = (
    "Weights of OpenAI's architecture go with a trunk vit_*_patch*_clip_224, or "
    "vit_*_patch*_clip_quickgelu_224 and model.quick_gelu=true where they were trained with quick "
    "GELU (openai, dfn, metaclip)."
)


def start_from(method: Method, recipe: Recipe, *, workspace: Path | None = None) -> str:
    """Give the student, and every copy of it, the weights that `recipe.init` names.

    Args:
        method: On the CPU, not sharded yet.
        recipe: What is to be trained.
        workspace: What a relative `init.folder` is below; by default the working directory.

    Returns:
        SHA-256 of the weights, for the record.

    Raises:
        ConfigError: The weights are of another architecture or normalization than the recipe's.
        CheckpointError: They are not there, or are damaged.
    """
    section = recipe.init
    assert section is not None
    where = f"init ({section.label})"
    source = _load(section, workspace=workspace, where=where)
    _check_normalization(source, recipe, where=where)
    state = _renamed(source.state_dict(), method.model)
    try:
        restore_module(method.model, state, where=where)
    except CheckpointError as error:
        raise ConfigError(
            f"The weights of {where} are of another architecture than the recipe's model: {error} "
            f"{REMEDY}"
        ) from error
    difference = _difference(source, method.model)
    if not difference <= MAX_DIFFERENCE:
        raise ConfigError(
            f"With the weights of {where} the recipe's model gives other embeddings than the model "
            f"they come from (by {difference:.2g}; at most {MAX_DIFFERENCE:g} is rounding): it has "
            f"another activation, pooling or norm. {REMEDY}"
        )
    method.student_was_replaced()
    logger.info("The student starts from %s.", where)
    return _content(state)


def _load(section: InitSection, *, workspace: Path | None, where: str) -> Any:
    """The model that the weights belong to, on the CPU, in evaluation mode."""
    from maskclip_bench.backbones.families.open_clip import trained_with_quick_gelu

    name, pretrained = section.open_clip, section.pretrained
    if section.folder is not None:
        folder = (workspace or Path()) / section.folder
        if not folder.is_dir():
            raise CheckpointError(
                f"init.folder: there is no folder {folder}. Give the `model` folder of a finished "
                "run, absolute or below the workspace."
            )
        name = f"local-dir:{folder}"
    assert name is not None
    try:
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(
                name,
                pretrained=pretrained,
                force_quick_gelu=trained_with_quick_gelu(name, pretrained),
                require_pretrained=True,
                weights_only=True,
            )
    except Exception as error:  # torch, safetensors, open_clip and its hub have their own
        raise CheckpointError(
            f"open_clip cannot load {where}: {str(error).splitlines()[0]}. See "
            "open_clip.list_pretrained(); one that is not on this machine needs network access "
            "once."
        ) from error
    return model.eval()


def _check_normalization(source: Any, recipe: Recipe, *, where: str) -> None:
    """Weights read images as they were trained to."""
    stated = open_clip.get_model_preprocess_cfg(source)
    augment = recipe.data.augment
    for name, ours in (("mean", augment.mean), ("std", augment.std)):
        theirs = tuple(stated[name])
        if any(abs(one - other) > 1e-3 for one, other in zip(ours, theirs, strict=True)):
            raise ConfigError(
                f"The weights of {where} were trained on images with {name} {list(theirs)}, and "
                f"data.augment.{name} is {list(ours)}. Set it to theirs."
            )


def _renamed(state: dict[str, Tensor], model: CustomTextCLIP) -> dict[str, Tensor]:
    """The same tensors under the names of a model with a timm trunk."""
    state = convert_to_custom_text_state_dict(state)
    if "visual.class_embedding" not in state:
        return state
    renamed = {key: value for key, value in state.items() if not key.startswith("visual.")}
    # timm's own map for its ViTs; the projection is its classifier there.
    for key, value in checkpoint_filter_fn(state, model.visual.trunk).items():
        if key == "head.weight":
            renamed["visual.head.proj.weight"] = value
        elif key != "head.bias":  # zeros that timm adds
            renamed[f"visual.trunk.{key}"] = value
    return renamed


@torch.no_grad()
def _difference(source: Any, model: CustomTextCLIP) -> float:
    """Largest difference between the embeddings that two models give for fixed inputs."""
    generator = torch.Generator().manual_seed(derive_seed(0, "init"))
    size = source.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, 3, height, width, generator=generator)
    length, vocab_size = model.text.positional_embedding.shape[0], model.text.vocab_size
    tokens = torch.zeros(2, length, dtype=torch.int64)
    words = torch.randint(1, vocab_size - 2, (2, length), generator=generator)
    for row, stop in enumerate((length, length // 2)):
        tokens[row, :stop] = words[row, :stop]
        tokens[row, 0], tokens[row, stop - 1] = vocab_size - 2, vocab_size - 1
    training = model.training
    model.eval()
    found = [
        (
            F.normalize(one.encode_image(images).float(), dim=-1),
            F.normalize(one.encode_text(tokens).float(), dim=-1),
            one.logit_scale.float().reshape(1, 1),
        )
        for one in (source, model)
    ]
    model.train(training)
    differences = [(ours - theirs).abs().max() for theirs, ours in zip(*found, strict=True)]
    return float(torch.stack(differences).max())


def _content(state: dict[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
