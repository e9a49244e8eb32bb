"""A file of weights into a timm model, strictly: nothing that is used stays at its random start.

Published files (MAE, DINO, DeiT, OpenAI's CLIP, SLIP) wrap their tensors in other names; wrappers
are taken off, and timm's own key filters do the rest. Nothing unpickles.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from maskclip_bench.errors import CheckpointError

logger = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model", "teacher", "student")
PREFIXES = ("module.", "backbone.", "visual.trunk.", "visual.")
OPENAI_KEY = "visual.class_embedding"
"""Marks the names of OpenAI's CLIP, which timm's filter wants whole."""


def load_timm_weights(trunk: nn.Module, file: Path, *, unused: Sequence[str] = ()) -> None:
    """Load a file of weights (safetensors, or torch's own) into a timm model.

    Args:
        trunk: The model; loaded in place.
        file: The weights.
        unused: Beginnings of the names of parts that are not used, such as "head": they may be
            missing or of another shape, and then keep their random start.

    Raises:
        CheckpointError: The file is missing, unreadable, or of another architecture.
    """
    state = _read(file)
    state_filter = _filter_of(trunk)
    if state_filter is not None:
        try:
            state = state_filter(state, trunk)
        except Exception as error:  # a filter meets names or shapes it was not made for
            raise _other_architecture(file, trunk, f"timm cannot convert it: {error}") from error
    wanted = {key: value.shape for key, value in trunk.state_dict().items()}
    free = tuple(unused)
    missing = [f"{key} is missing" for key in wanted if key not in state and _used(key, free)]
    wrong = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape and _used(key, free)
    ]
    # More blocks, layer scales or norms of queries than the model has would be left out in silence.
    extra = [
        f"{key} has no place"
        for key in state
        if isinstance(trunk, VisionTransformer) and key.startswith("blocks.") and key not in wanted
    ]
    if missing or wrong or extra:
        raise _other_architecture(
            file,
            trunk,
            f"{len(missing)} missing, {len(wrong)} of another shape, {len(extra)} too many: "
            + "; ".join([*missing[:3], *wrong[:3], *extra[:3]]),
        )
    fitting = {
        key: value for key, value in state.items() if key in wanted and value.shape == wanted[key]
    }
    trunk.load_state_dict(fitting, strict=False)
    logger.info("%s: %d tensors loaded from %s", type(trunk).__name__, len(fitting), file)


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, without wrappers and without prefixes of their names."""
    if not file.is_file():
        raise CheckpointError(
            f"No checkpoint {file}. Download it first, or give checkpoint= a file that exists."
        )
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(str(file))
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile, torch and safetensors each have their own
        raise CheckpointError(
            f"{file} cannot be read as tensors alone ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}). It is damaged, or holds other Python objects; "
            "nothing is unpickled here. If you trust it, take the tensors out once: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)."
        ) from error
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {}
    if isinstance(state, dict):
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{file} holds no dictionary of tensors, at its top or under one of "
            f"{', '.join(WRAPPERS)}. Save the model's state_dict() instead."
        )
    for prefix in PREFIXES:
        if OPENAI_KEY in tensors:
            break
        if any(key.startswith(prefix) for key in tensors):
            tensors = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
    return tensors


def _filter_of(trunk: nn.Module) -> Any:
    """Timm's `checkpoint_filter_fn` of the module that defines the trunk's class, or None."""
    module = importlib.import_module(type(trunk).__module__)
    return getattr(module, "checkpoint_filter_fn", None)


def _used(key: str, unused: tuple[str, ...]) -> bool:
    return not key.startswith(unused) if unused else True


def _other_architecture(file: Path, trunk: nn.Module, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is a checkpoint of another architecture than {type(trunk).__name__} ({problem}). "
        "Set timm= to the model it was trained with."
    )
