"""The pretrained model: an open_clip `CustomTextCLIP` with a timm trunk and a text transformer.

A checkpoint of it loads in open_clip, and its trunk in timm. What exists only in training
(decoders, teacher, heads) lives beside it, in `pretrain.methods`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import timm
import timm.models.vision_transformer as timm_vit
from open_clip.model import CustomTextCLIP
from pydantic import Field, model_validator
from timm.models import generate_default_cfgs, register_model
from torch import nn

from maskclip_bench.config import Declaration
from maskclip_bench.errors import ConfigError, did_you_mean, first_line
from maskclip_bench.modeling.blocks import allow_packing, allow_partial
from maskclip_bench.normalization import IMAGENET_MEAN, IMAGENET_STD

DEMO_VIT = "vit_demo_patch8_48"


class VisionConfig(Declaration):
    """The vision tower: a timm trunk, its class token (or its own pooling), a linear projection."""

    timm_model: str = "vit_base_patch16_224"
    """Name in timm. SLIP's ViT-B/16 is `vit_base_patch16_224` (class token, learned positions)."""
    pool: Literal["", "avg", "token"] = ""
    """Pooling of the trunk; empty = as the trunk does it by itself (ViT: class token)."""
    drop_path_rate: float | None = Field(default=None, ge=0, lt=1)
    """Stochastic depth of the last block; None = 0."""
    projection_init: Literal["slip", "open_clip"] = "slip"
    """Start of the projection into the joint space: a normal of std D ** -0.5 (SLIP, OpenAI's
    CLIP), or what open_clip gives one after a timm trunk, 1.7 times smaller."""


class TextConfig(Declaration):
    """The text tower: open_clip's causal transformer; defaults are SLIP's (and the paper's)."""

    context_length: int = Field(default=77, ge=4)
    """Longest caption in tokens, with start and end."""
    vocab_size: int = Field(default=49408, ge=3)
    """Of CLIP's tokenizer."""
    width: int = Field(default=512, ge=1)
    """Token width."""
    num_heads: int = Field(default=8, ge=1)
    """Attention heads."""
    depth: int = Field(default=12, ge=1)
    """Blocks."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> TextConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class ModelConfig(Declaration):
    """Both towers and the joint space."""

    proj_dim: int = Field(default=512, ge=1)
    """Width of the joint space (open_clip calls it `embed_dim`)."""
    image_size: int = Field(default=224, ge=1)
    """Side of the images in pixels."""
    vision: VisionConfig = VisionConfig()
    """The image encoder."""
    text: TextConfig = TextConfig()
    """The text encoder."""
    quick_gelu: bool = False
    """OpenAI's approximation of GELU in the text tower; SLIP has it, timm's trunk never does."""

    def to_open_clip(self, *, tokenizer_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        """The `model_cfg` of open_clip.

        Args:
            tokenizer_kwargs: What open_clip's tokenizer of this model is made with.
        """
        vision: dict[str, Any] = {
            "timm_model_name": self.vision.timm_model,
            "timm_pool": self.vision.pool,
            "timm_proj": "linear",
            "image_size": self.image_size,
        }
        if self.vision.drop_path_rate is not None:
            vision["timm_drop_path"] = self.vision.drop_path_rate
        text: dict[str, Any] = {
            "context_length": self.text.context_length,
            "vocab_size": self.text.vocab_size,
            "width": self.text.width,
            "heads": self.text.num_heads,
            "layers": self.text.depth,
        }
        if tokenizer_kwargs:
            text["tokenizer_kwargs"] = tokenizer_kwargs
        return {
            "embed_dim": self.proj_dim,
            "vision_cfg": vision,
            "text_cfg": text,
            "quick_gelu": self.quick_gelu,
            "custom_text": True,
        }


def build_model(config: ModelConfig) -> CustomTextCLIP:
    """Build the model with fresh weights.

    Raises:
        ConfigError: timm has no such trunk, it takes images of one size, and not of that, or it
            does not take what the config says.
    """
    name = config.vision.timm_model
    if not timm.is_model(name):
        close = did_you_mean(name, timm.list_models())
        raise ConfigError(f"timm has no model {name!r}.{close} See timm.list_models().")
    values = config.to_open_clip()
    values.pop("custom_text")
    try:
        model = CustomTextCLIP(**values, init_logit_scale=math.log(1 / 0.07))
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"A model with the trunk {name} cannot be built: {first_line(error)}. Check "
            "model.vision, model.text and model.image_size."
        ) from error
    native = model.visual.trunk.default_cfg["input_size"][-1]
    if config.image_size != native and hasattr(model.visual.trunk, "set_input_size"):
        # open_clip makes a trunk at its own size, so a checkpoint of another would not load in it.
        raise ConfigError(
            f"{name} takes images of {native} px, not {config.image_size}. Set "
            f"model.image_size={native}, or choose a trunk of that size."
        )
    if config.vision.projection_init == "slip":
        projection = model.visual.head.proj.weight  # [joint space, D]
        nn.init.normal_(projection, std=projection.shape[1] ** -0.5)
    for block in getattr(model.visual.trunk, "blocks", ()):
        allow_partial(block)
    for block in model.text.transformer.resblocks:
        allow_packing(block)
    return model


def open_clip_config(
    config: ModelConfig,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    interpolation: str = "bicubic",
    resize_mode: str = "shortest",
    tokenizer_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Content of `open_clip_config.json`, which makes a folder loadable as `local-dir:`.

    Args:
        config: The architecture.
        mean: Of the training images, per channel, 0 to 1.
        std: Likewise.
        interpolation: Of test images.
        resize_mode: Of test images: "shortest" side then centre crop, or "squash".
        tokenizer_kwargs: See `ModelConfig.to_open_clip`.
    """
    return {
        "model_cfg": config.to_open_clip(tokenizer_kwargs=tokenizer_kwargs),
        "preprocess_cfg": {
            "mean": list(mean),
            "std": list(std),
            "interpolation": interpolation,
            "resize_mode": resize_mode,
        },
    }


# --- the demo world's trunk ----------------------------------------------------------------------

default_cfgs = generate_default_cfgs(
    {
        f"{DEMO_VIT}.untrained": {
            "url": "",
            "num_classes": 0,
            "input_size": (3, 48, 48),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


def vit_demo_patch8_48(pretrained: bool = False, **kwargs: Any) -> timm_vit.VisionTransformer:
    """The demo world's ViT: 48 px, patch 8, 4 blocks, 96 wide, 3 heads (0.47 M parameters)."""
    arguments = {"img_size": 48, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
    return timm_vit._create_vision_transformer(
        DEMO_VIT, pretrained=pretrained, **{**arguments, **kwargs}
    )


if not timm.is_model(DEMO_VIT):
    register_model(vit_demo_patch8_48)

__all__ = [
    "DEMO_VIT",
    "ModelConfig",
    "TextConfig",
    "VisionConfig",
    "build_model",
    "open_clip_config",
    "vit_demo_patch8_48",
]
