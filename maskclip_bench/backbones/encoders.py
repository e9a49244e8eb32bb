"""One face for models of many libraries: image features at two points, patch tokens, text features.

Two feature points, from one forward pass: `backbone`, the pooled output before the projection into
the joint space (what probes and kNN read), and `joint`, after it and L2-normalised (what zero-shot
classification and retrieval read; only models with a text tower have it).

B images, N patches, D backbone width, P joint width, T texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from maskclip_bench.errors import ConfigError

Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts -> int64 [T, L]."""

TokenizeToMapping = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Texts -> what a Hugging Face text tower takes: token ids [T, L] and a mask."""

BEFORE_PROJECTION = "pooled output before the projection"
AFTER_PROJECTION = "embedding after the projection, not normalised (the model has no other output)"
POOLED = "pooled output"


class Encoder(Protocol):
    """What the rest of the benchmark needs of a model."""

    feature_point: str
    """Where `backbone` features are taken, in words."""

    def image_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> {"backbone": [B, D]} and, with a text tower, "joint" [B, P]."""

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, N, D], after the final norm."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [T, P], L2-normalised."""


class OpenClipEncoder:
    """A model of open_clip, whose image tower is open_clip's own or timm's."""

    def __init__(self, model: nn.Module, tokenize: Tokenize) -> None:
        self.model = model
        self.tokenize = tokenize
        self._trimmable = _trimmable_text_tower(model)
        visual: Any = model.visual
        if hasattr(visual, "trunk") and hasattr(visual, "head"):
            self._pooled_and_projected = self._timm_tower
        elif hasattr(visual, "transformer") and hasattr(visual, "_pool"):
            self._pooled_and_projected = self._open_clip_tower
        else:
            self._pooled_and_projected = self._projected_only
        known = self._pooled_and_projected != self._projected_only
        self.feature_point = BEFORE_PROJECTION if known else AFTER_PROJECTION

    def image_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> {"backbone": [B, D], "joint": [B, P]}."""
        pooled, projected = self._pooled_and_projected(images)
        return {"backbone": pooled, "joint": F.normalize(projected.float(), dim=-1)}

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, N, D], after the final norm.

        Raises:
            ConfigError: The image tower gives no tokens.
        """
        visual: Any = self.model.visual
        if hasattr(visual, "trunk"):
            return timm_patch_tokens(visual.trunk, images)
        if hasattr(visual, "transformer") and hasattr(visual, "_embeds"):
            tokens = visual.transformer(visual._embeds(images))  # [B, 1 + N, D]
            if getattr(visual, "attn_pool", None) is not None:
                return tokens[:, 1:]  # CoCa's norm comes after its pooler, and has that one's width
            return visual.ln_post(tokens)[:, 1:]
        raise no_patch_tokens(visual)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [T, P], L2-normalised; captions are not padded beyond the longest of them."""
        model: Any = self.model
        device = next(model.parameters()).device
        tokens = self.tokenize(texts).to(device)
        if self._trimmable is None:
            return F.normalize(model.encode_text(tokens).float(), dim=-1)
        end = tokens.argmax(dim=-1)  # the end token is the largest id
        tower: Any = self._trimmable
        length = int(end.max()) + 1
        hidden = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
        hidden = tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length])
        pooled = tower.ln_final(hidden)[torch.arange(len(tokens), device=device), end]  # [T, W]
        return F.normalize((pooled @ tower.text_projection).float(), dim=-1)

    def _timm_tower(self, images: Tensor) -> tuple[Tensor, Tensor]:
        visual: Any = self.model.visual
        pooled = visual.trunk(images)
        projected = visual.head(pooled)
        return (pooled if pooled.ndim == 2 else projected), projected

    def _open_clip_tower(self, images: Tensor) -> tuple[Tensor, Tensor]:
        visual: Any = self.model.visual
        pooled, _ = visual._pool(visual.transformer(visual._embeds(images)))
        return pooled, pooled if visual.proj is None else pooled @ visual.proj

    def _projected_only(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.model
        projected = model.encode_image(images)
        return projected, projected


class TimmEncoder:
    """A model of timm without its classifier; it has no text tower."""

    feature_point = POOLED

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def image_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> {"backbone": [B, D]}."""
        model: Any = self.model
        return {"backbone": model.forward_head(model.forward_features(images), pre_logits=True)}

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, N, D], after the final norm."""
        return timm_patch_tokens(self.model, images)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """There is no text tower.

        Raises:
            ConfigError: Always.
        """
        raise no_text_tower(type(self.model).__name__)


class HuggingFaceEncoder:
    """A model of transformers: CLIP-like (`get_image_features`), or an image encoder alone.

    The backbone features of an image encoder alone are its class token: its pooler, where it has
    one, is often not in the weights and then random.
    """

    def __init__(self, model: nn.Module, tokenize: TokenizeToMapping | None) -> None:
        self.model = model
        self.tokenize = tokenize
        self.has_text = hasattr(model, "get_text_features") and tokenize is not None
        self.feature_point = BEFORE_PROJECTION if self.has_text else POOLED

    def image_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> {"backbone": [B, D]}, and "joint" [B, P] for CLIP-like models."""
        model: Any = self.model
        tower = getattr(model, "vision_model", model)
        output = tower(pixel_values=images)
        if not self.has_text:
            hidden = output.last_hidden_state
            return {"backbone": hidden[:, 0] if hidden.ndim == 3 else hidden.mean(dim=(2, 3))}
        pooled = output.pooler_output
        project = getattr(model, "visual_projection", nn.Identity())
        return {"backbone": pooled, "joint": F.normalize(project(pooled).float(), dim=-1)}

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, N, D], after the final norm."""
        model: Any = self.model
        tower = getattr(model, "vision_model", model)
        tokens = tower(pixel_values=images).last_hidden_state
        config = tower.config
        num_patches = (images.shape[-1] // config.patch_size) * (
            images.shape[-2] // config.patch_size
        )
        return tokens[:, -num_patches:]

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
        features = model.get_text_features(**tokens)
        features = getattr(features, "pooler_output", features)
        return F.normalize(features.float(), dim=-1)


class PythonEncoder:
    """An object of the user's, made by `source: {python: "module:factory"}`.

    It has `encode_image(images [B, 3, H, W]) -> [B, P]`, and optionally
    `encode_text(list[str]) -> [T, P]`, `forward_features(images) -> [B, D]` and
    `patch_tokens(images) -> [B, N, D]`. With `encode_text`, `encode_image` is the joint space.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.has_text = callable(getattr(encoder, "encode_text", None))
        own = callable(getattr(encoder, "forward_features", None))
        self.feature_point = BEFORE_PROJECTION if own and self.has_text else POOLED

    def image_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> {"backbone": [B, D]} and, with a text tower, "joint" [B, P]."""
        encoder = self.encoder
        outputs: dict[str, Tensor] = {}
        if self.has_text:
            outputs["joint"] = F.normalize(encoder.encode_image(images).float(), dim=-1)
        if callable(getattr(encoder, "forward_features", None)):
            outputs["backbone"] = encoder.forward_features(images)
        elif "joint" in outputs:
            outputs["backbone"] = outputs["joint"]
        else:
            outputs["backbone"] = encoder.encode_image(images)
        return outputs

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, N, D].

        Raises:
            ConfigError: The object has no such method.
        """
        if not callable(getattr(self.encoder, "patch_tokens", None)):
            raise no_patch_tokens(self.encoder)
        return self.encoder.patch_tokens(images)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [T, P], L2-normalised.

        Raises:
            ConfigError: The object has no such method.
        """
        if not self.has_text:
            raise no_text_tower(type(self.encoder).__name__)
        return F.normalize(self.encoder.encode_text(list(texts)).float(), dim=-1)


def _trimmable_text_tower(model: nn.Module) -> nn.Module | None:
    """The text tower if it is open_clip's causal one, in which padding changes nothing."""
    tower: Any = getattr(model, "text", model)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    pool_type = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    causal = (
        len(blocks) > 0
        and all(type(block) is ResidualAttentionBlock for block in blocks)
        and pool_type == "argmax"
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and isinstance(getattr(tower, "text_projection", None), Tensor)
    )
    return tower if causal else None


def timm_patch_tokens(trunk: Any, images: Tensor) -> Tensor:
    """Patch tokens of a timm model, images [B, 3, H, W] -> [B, N, D]."""
    tokens: Tensor = trunk.forward_features(images)
    if tokens.ndim == 4:  # a map; timm's convolutional models are channels first
        return tokens.flatten(2).transpose(1, 2)
    return tokens[:, getattr(trunk, "num_prefix_tokens", 0) :]


def no_text_tower(name: str) -> ConfigError:
    """The error for texts given to a model that reads none."""
    return ConfigError(
        f"{name} has no text tower: zero-shot classification and retrieval need one. "
        "Use linear_probe or knn for it."
    )


def no_patch_tokens(tower: object) -> ConfigError:
    """The error for a model that gives no patch tokens."""
    return ConfigError(f"{type(tower).__name__} gives no patch tokens; use a ViT.")
