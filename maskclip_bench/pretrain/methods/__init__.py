"""Pretraining methods, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskclip_bench.config import validate
from maskclip_bench.errors import ConfigError, unknown_name
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.methods.clip import CLIP
from maskclip_bench.pretrain.methods.clip_mae import CLIPMAE
from maskclip_bench.pretrain.methods.filip import FILIP
from maskclip_bench.pretrain.methods.mae import MAE
from maskclip_bench.pretrain.methods.maskclip import MaskCLIP
from maskclip_bench.pretrain.methods.mvp import MVP
from maskclip_bench.pretrain.methods.simclr import SimCLR
from maskclip_bench.pretrain.methods.simmim import SimMIM
from maskclip_bench.pretrain.methods.slip import SLIP

if TYPE_CHECKING:
    from maskclip_bench.modeling.model import ModelConfig

METHODS: dict[str, type[Method]] = {
    "clip": CLIP,
    "slip": SLIP,
    "clip_mae": CLIPMAE,
    "maskclip": MaskCLIP,
    "filip": FILIP,
    "simclr": SimCLR,
    "mae": MAE,
    "simmim": SimMIM,
    "mvp": MVP,
}
"""All methods by name; one line each."""


def build_method(
    name: str, method_config: dict[str, Any], model_config: ModelConfig, tokenizer: Any = None
) -> Method:
    """Build a method with fresh weights.

    Args:
        name: One of `METHODS`.
        method_config: Fields of its `Config`.
        model_config: The student's architecture.
        tokenizer: Of the captions; its vocabulary must be the model's.

    Raises:
        UnknownNameError: There is no such method.
        ConfigError: A field is wrong, or the vocabularies differ.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS, remedy="See maskclip_bench/pretrain/methods/.")
    method: Any = METHODS[name]
    vocab_size = getattr(tokenizer, "vocab_size", model_config.text.vocab_size)
    if method.uses_text and vocab_size != model_config.text.vocab_size:
        raise ConfigError(
            f"The tokenizer has {vocab_size} tokens, and model.text.vocab_size is "
            f"{model_config.text.vocab_size}. Make them equal."
        )
    config = validate(method_config, method.Config, where=f"method {name!r}")
    return method(config, model_config)


__all__ = ["METHODS", "Method", "build_method"]
