"""Features of models of transformers: how each type pools its tokens.

A type that is not listed is refused: the first token of an unknown model may be its top-left patch.

B images, N patches, D backbone width, P joint width, T texts, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskclip_bench.backbones.feature_points import (
    AFTER_PROJECTION,
    BEFORE_PROJECTION,
    POOLED,
    no_patch_tokens,
    no_text_tower,
)
from maskclip_bench.errors import ConfigError
from maskclip_bench.unit_vectors import unit_vectors

TokenizeToMapping = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Texts -> what a text tower of transformers takes: token ids [T, L] and a mask."""


@dataclass(frozen=True)
class Pooling:
    """How an image encoder of one type makes one vector, and where its patches are.

    Attributes:
        kind: "first": the first token. "mean": over the patches. "pooler": the model's own
            `pooler_output`, for types whose pooler is trained or has no weights.
        num_prefix_tokens: Tokens before the patches (class, distillation); registers come on top.
        norm: Name of the final norm that the tokens have not been through yet.
    """

    kind: Literal["first", "mean", "pooler"]
    num_prefix_tokens: int = 0
    norm: str = ""


FIRST = Pooling("first", 1)
MEAN = Pooling("mean")
OWN = Pooling("pooler")
CLIP_TOWER = Pooling("pooler", 1, norm="post_layernorm")

POOLING: dict[str, Pooling] = {
    # Vision transformers with a class token; their pooler is a layer that is often not trained.
    "vit": FIRST,
    "vit_mae": FIRST,
    "vit_msn": FIRST,
    "deit": Pooling("first", 2),
    "dinov2": FIRST,
    "dinov2_with_registers": FIRST,
    "dinov3_vit": FIRST,
    # The mean of the patches, as these models were trained and published.
    "beit": Pooling("mean", 1),
    "data2vec-vision": Pooling("mean", 1),
    "ijepa": MEAN,
    "segformer": MEAN,
    "pvt_v2": MEAN,
    "poolformer": MEAN,
    "swiftformer": MEAN,
    # The model's own pooling, which is trained or has no weights.
    **dict.fromkeys(
        (
            "swin", "swinv2", "donut-swin", "focalnet", "hiera", "levit",
            "convnext", "convnextv2", "resnet", "regnet", "bit",
            "efficientnet", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2",
            "siglip_vision_model", "siglip", "align_vision_model", "align",
        ),
        OWN,
    ),
    "dinov3_convnext": Pooling("pooler", 1),
    # Image towers of CLIP: the class token after the final norm, which the tokens lack.
    **dict.fromkeys(
        (
            "clip", "clip_vision_model", "chinese_clip", "chinese_clip_vision_model",
            "altclip", "altclip_vision_model", "metaclip_2", "metaclip_2_vision_model",
        ),
        CLIP_TOWER,
    ),
    "blip": Pooling("pooler", 1),
    "blip_vision_model": Pooling("pooler", 1),
}  # fmt: skip
"""`model_type` of a configuration -> its pooling."""


class HuggingFaceEncoder:
    """A model of transformers: CLIP-like (`get_image_features`), or an image encoder alone.

    Raises:
        ConfigError: The type is not known here.
    """

    def __init__(self, model: nn.Module, tokenize: TokenizeToMapping | None) -> None:
        self.model = model
        self.tokenize = tokenize
        self.has_text = hasattr(model, "get_text_features") and tokenize is not None
        model_type = str(getattr(model.config, "model_type", ""))
        self._pooling = POOLING.get(model_type)
        self._tower: Any = getattr(model, "vision_model", model)
        if self._pooling is None and not self.has_text:
            raise _unknown_type(model_type, type(model).__name__)
        if model_type == "vit_mae":
            self._tower.config.mask_ratio = 0.0
            self._tower.embeddings.config.mask_ratio = 0.0
        self._in_order = model_type == "vit_mae"
        known = self._pooling is not None
        self.feature_point = POOLED
        if self.has_text:
            self.feature_point = BEFORE_PROJECTION if known else AFTER_PROJECTION

    def image_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> {"backbone": [B, D]}, and "joint" [B, P] for CLIP-like models."""
        model: Any = self.model
        if not self.has_text:
            return {"backbone": self._pooled(self._forward(images))}
        if self._pooling is not None and isinstance(
            project := getattr(model, "visual_projection", None), nn.Module
        ):
            pooled = self._pooled(self._forward(images))
            return {"backbone": pooled, "joint": unit_vectors(project(pooled).float())}
        features = _vectors(model.get_image_features(pixel_values=images), model)
        return {"backbone": features, "joint": unit_vectors(features.float())}

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, N, D], after the final norm.

        Raises:
            ConfigError: The type is not known here.
        """
        if self._pooling is None:
            raise no_patch_tokens(self.model)
        return self._patches(self._forward(images).last_hidden_state)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [T, P], L2-normalised.

        Raises:
            ConfigError: The model has no text tower.
        """
        if self.tokenize is None or not self.has_text:
            raise no_text_tower(type(self.model).__name__)
        model: Any = self.model
        device = next(model.parameters()).device
        tokens = {key: value.to(device) for key, value in self.tokenize(texts).items()}
        features = _vectors(model.get_text_features(**tokens), model)
        return unit_vectors(features.float())

    def _forward(self, images: Tensor) -> Any:
        if not self._in_order:
            return self._tower(pixel_values=images)
        # Masked autoencoders sort the patches by noise: with rising noise they stay in order.
        size = self._tower.config.patch_size
        num_patches = (images.shape[-2] // size) * (images.shape[-1] // size)
        noise = torch.arange(num_patches, device=images.device, dtype=torch.float32)
        return self._tower(pixel_values=images, noise=noise.expand(len(images), -1))

    def _pooled(self, output: Any) -> Tensor:
        """-> [B, D]."""
        assert self._pooling is not None
        if self._pooling.kind == "first":
            return _tensor(output.last_hidden_state[:, 0])
        if self._pooling.kind == "mean":
            return self._patches(output.last_hidden_state).mean(dim=1)
        pooled = output.pooler_output
        if pooled is None:
            raise ConfigError(
                f"{type(self._tower).__name__} was built without its pooler, which makes its "
                "features. Give a folder or model whose weights have it."
            )
        return _tensor(pooled).flatten(1)

    def _patches(self, hidden: Tensor) -> Tensor:
        """Tokens [B, prefix + N, D] or a map [B, D, h, w] -> [B, N, D]."""
        assert self._pooling is not None
        if hidden.ndim == 4:
            return hidden.flatten(2).transpose(1, 2)
        if self._pooling.norm:
            hidden = getattr(self._tower, self._pooling.norm)(hidden)
        prefix = self._pooling.num_prefix_tokens
        prefix += int(getattr(self._tower.config, "num_register_tokens", 0) or 0)
        return hidden[:, prefix:]


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def _vectors(features: Any, model: nn.Module) -> Tensor:
    """What `get_image_features` returned -> [B, P].

    Raises:
        ConfigError: It is no vector for each input.
    """
    features = getattr(features, "pooler_output", features)
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(getattr(features, "shape", ()))
        raise ConfigError(
            f"{type(model).__name__} gives {shape or type(features).__name__} instead of one "
            "vector for each input. Pool them in an encoder of your own: "
            "source: {python: 'module:factory'}."
        )
    return features


def _unknown_type(model_type: str, name: str) -> ConfigError:
    return ConfigError(
        f"{name} (model_type {model_type!r}) is not among the types of transformers whose pooling "
        f"is known here ({', '.join(sorted(POOLING))}). Use the model of timm or open_clip with "
        "the same weights, or pool its tokens in an encoder of your own: "
        "source: {python: 'module:factory'}."
    )
