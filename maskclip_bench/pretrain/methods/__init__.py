"""Pretraining methods, one file each; one line here registers it.

Other packages add theirs by an entry point of the group `maskclip_bench.methods`, whose value is
the class. Listing the names imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskclip_bench.config import validate
from maskclip_bench.errors import ConfigError, MaskCLIPBenchError, first_line
from maskclip_bench.registry import Registry

if TYPE_CHECKING:
    from maskclip_bench.modeling.model import ModelConfig
    from maskclip_bench.pretrain.methods.base import Method

_HERE = "maskclip_bench.pretrain.methods"

METHODS: Registry[type[Method]] = Registry(
    "method",
    "maskclip_bench.methods",
    {
        "clip": f"{_HERE}.clip:CLIP",
        "slip": f"{_HERE}.slip:SLIP",
        "clip_mae": f"{_HERE}.clip_mae:CLIPMAE",
        "maskclip": f"{_HERE}.maskclip:MaskCLIP",
        "filip": f"{_HERE}.filip:FILIP",
        "simclr": f"{_HERE}.simclr:SimCLR",
        "mae": f"{_HERE}.mae:MAE",
        "simmim": f"{_HERE}.simmim:SimMIM",
        "mvp": f"{_HERE}.mvp:MVP",
    },
    remedy="See maskclip_bench/pretrain/methods/.",
)
"""The classes of all methods by name; their `Config`, `uses_text`, `num_ssl_views` and
`relative_cost` say what a recipe may set and what a step needs."""


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
        ConfigError: A field is wrong, the vocabularies differ, or sizes cannot be built.
    """
    method: Any = METHODS.get_known(name)
    vocab_size = getattr(tokenizer, "vocab_size", model_config.text.vocab_size)
    if method.uses_text and vocab_size != model_config.text.vocab_size:
        raise ConfigError(
            f"The tokenizer has {vocab_size} tokens, and model.text.vocab_size is "
            f"{model_config.text.vocab_size}. Make them equal."
        )
    config = validate(method_config, method.Config, where=f"method {name!r}")
    try:
        return method(config, model_config)
    except MaskCLIPBenchError:
        raise
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"Method {name!r} cannot be built: {first_line(error)}. Check the sizes under method "
            "and model, and the memory of this machine."
        ) from error


__all__ = ["METHODS", "build_method"]
