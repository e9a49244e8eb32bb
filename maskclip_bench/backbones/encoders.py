"""One interface over several model libraries: image features at two points, patch tokens, texts.

Two feature points, from one forward pass: `backbone`, the pooled output before the projection into
the joint space (what probes and kNN read), and `joint`, after it and L2-normalised (what zero-shot
classification and retrieval read; only models with a text tower have it).

B images, N patches, D backbone width, P joint width, T texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from maskclip_bench.backbones.families.base import Loaded
from maskclip_bench.backbones.feature_points import (
    AFTER_PROJECTION,
    BEFORE_PROJECTION,
    POOLED,
    no_patch_tokens,
    no_text_tower,
)
from maskclip_bench.backbones.huggingface_encoder import HuggingFaceEncoder
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.blocks import PackedCausalBlock
from maskclip_bench.modeling.dense_vit import dense_parts, is_dense_vit
from maskclip_bench.modeling.shared_prefixes import states_at_end
from maskclip_bench.modeling.vit import is_vit, vit_parts
from maskclip_bench.unit_vectors import unit_vectors

__all__ = [
    "AFTER_PROJECTION",
    "BEFORE_PROJECTION",
    "POOLED",
    "Encoder",
    "HuggingFaceEncoder",
    "OpenClipEncoder",
    "PythonEncoder",
    "TimmEncoder",
    "Tokenize",
    "TrainableEncoder",
    "loaded_from_object",
    "no_patch_tokens",
    "no_text_tower",
    "timm_patch_tokens",
    "vision_trunk",
]

Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts -> int64 [T, L]."""


CAUSAL_BLOCKS = (ResidualAttentionBlock, PackedCausalBlock)
"""Text blocks that are known to be open_clip's: as it makes them, and as training runs them."""


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
        return {"backbone": pooled, "joint": unit_vectors(projected.float())}

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, N, D], after the final norm.

        Raises:
            ConfigError: The image tower gives no tokens.
        """
        visual: Any = self.model.visual
        if hasattr(visual, "trunk"):
            return timm_patch_tokens(visual.trunk, images)
        if is_vit(visual):
            vit = vit_parts(visual)
            return vit.whole(images)[:, vit.num_prefix_tokens :]
        raise no_patch_tokens(visual)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [T, P], L2-normalised; what texts begin with together is computed once."""
        model: Any = self.model
        tokens = self.tokenize(texts)
        if self._trimmable is None:
            device = next(model.parameters()).device
            return unit_vectors(model.encode_text(tokens.to(device)).float())
        tower: Any = self._trimmable
        states = states_at_end if len(tokens) > 1 else _state_of_one
        pooled = states(tower, tokens)  # [T, W]
        return unit_vectors((pooled @ tower.text_projection).float())

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


class PythonEncoder:
    """An encoder of the user's: an object with some of four methods, or a callable.

    | method | gives |
    | --- | --- |
    | `encode_image(images [B, 3, H, W])` | [B, P]; the joint space if there is `encode_text` |
    | `encode_text(list[str])` | [T, P] |
    | `forward_features(images)` | [B, D], what probes read instead of `encode_image` |
    | `patch_tokens(images)` | [B, N, D] |

    An object without `encode_image` is called itself; an `nn.Module` is enough for image tasks.
    The `forward_features` of an `nn.Module` counts only if its `encode_image` is there too: timm's
    modules have one that gives tokens.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.has_text = callable(getattr(encoder, "encode_text", None))
        own_image = callable(getattr(encoder, "encode_image", None))
        self._encode_image = encoder.encode_image if own_image else encoder
        own = own_image and callable(getattr(encoder, "forward_features", None))
        self._forward_features = encoder.forward_features if own else None
        self.feature_point = BEFORE_PROJECTION if own and self.has_text else POOLED

    def image_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> {"backbone": [B, D]} and, with a text tower, "joint" [B, P]."""
        outputs: dict[str, Tensor] = {}
        if self.has_text:
            outputs["joint"] = _unit_vectors(self._encode_image(images), "encode_image")
        if self._forward_features is not None:
            outputs["backbone"] = self._forward_features(images)
        elif "joint" in outputs:
            outputs["backbone"] = outputs["joint"]
        else:
            outputs["backbone"] = self._encode_image(images)
        return outputs

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, N, D].

        Raises:
            ConfigError: The object has no such method.
        """
        if not callable(getattr(self.encoder, "patch_tokens", None)):
            raise no_patch_tokens(self.encoder)
        tokens: Tensor = self.encoder.patch_tokens(images)
        return tokens

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [T, P], L2-normalised.

        Raises:
            ConfigError: The object has no such method.
        """
        if not self.has_text:
            raise no_text_tower(type(self.encoder).__name__)
        return _unit_vectors(self.encoder.encode_text(list(texts)), "encode_text")


def _unit_vectors(value: Any, method: str) -> Tensor:
    """[B, P], L2-normalised; NaN where the length of a vector is not finite in float32.

    Raises:
        ConfigError: It is no tensor of real numbers.
    """
    if not isinstance(value, Tensor) or value.is_complex():
        kind = "complex tensor" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{method} returned a {kind}. Return a real torch tensor [B, D].")
    result = value.float()
    length = result.norm(dim=-1, keepdim=True)
    unit = unit_vectors(result)  # divides by infinity to 0, which would be a score by chance
    return unit.masked_fill(~length.isfinite(), float("nan"))


def loaded_from_object(made: Any, *, architecture: Any, own_identity: Any) -> Loaded:
    """A user's encoder as a loaded model; its modules are found so that they reach the device.

    Raises:
        ConfigError: Its `preprocess` is neither a dictionary nor a callable.
    """
    encoder = PythonEncoder(made)
    preprocess = getattr(made, "preprocess", None)
    own = dict(preprocess) if isinstance(preprocess, Mapping) else {}
    if preprocess is not None and not own and not callable(preprocess):
        raise ConfigError(
            f"preprocess of {type(made).__name__} is a {type(preprocess).__name__}. Make it a "
            "dictionary with image_size, mean and std, or a function, PIL image -> [3, H, W]."
        )
    library = preprocess if callable(preprocess) and not isinstance(preprocess, Mapping) else None
    return Loaded(
        model=_modules_of(made),
        encoder=encoder,
        preprocess=own,
        has_text=encoder.has_text,
        library_transform=library,
        inexpressible=None if library is None else "is a function of the encoder's own",
        architecture=architecture,
        own_identity=own_identity,
    )


def _modules_of(made: Any) -> nn.Module:
    """The object itself, or all modules among its attributes and theirs."""
    if isinstance(made, nn.Module):
        return made
    found: list[nn.Module] = []
    waiting = [(made, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, nn.Module):
            found.append(value)
        elif depth <= 2:
            waiting += [(part, depth + 1) for part in _parts(value)]
    distinct = {id(module): module for module in found}
    return nn.ModuleList(distinct.values())


def _parts(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    own = list(vars(value).values()) if hasattr(value, "__dict__") else []
    bound = getattr(value, "__self__", None)
    return own if isinstance(value, type) else [*own, *([bound] if bound is not None else [])]


class TrainableEncoder(nn.Module):
    """Normalized images [B, 3, H, W] -> backbone features [B, D], to be trained.

    Attributes:
        model: All modules of the encoder; their parameters require gradients.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder
        model = getattr(encoder, "model", None)
        if not isinstance(model, nn.Module):
            model = _modules_of(encoder)
            if (
                isinstance(model, nn.ModuleList) and len(model) == 1
            ):  # a module as an encoder: its own layers are known
                model = model[0]
        self.model = model
        self.model.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] -> [B, D]."""
        return self.image_outputs(images)["backbone"]

    def image_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Normalized images -> {"backbone": [B, D]} and, with a text tower, "joint" [B, P]."""
        return self._encoder.image_outputs(images)


def vision_trunk(model: nn.Module) -> nn.Module:
    """The trunk inside an open_clip model, its image tower, or a timm model (returned as it is).

    Raises:
        ConfigError: The model has no image tower known here.
    """
    tower = getattr(model, "visual", model)
    trunk = getattr(tower, "trunk", tower)
    if isinstance(trunk, VisionTransformer) or hasattr(trunk, "forward_intermediates"):
        return trunk
    raise ConfigError(
        f"{type(trunk).__name__} gives no feature maps that OpenMMLab heads can read. Use a timm "
        "model, an open_clip ViT, or a model whose image tower is one of these."
    )


def _trimmable_text_tower(model: nn.Module) -> nn.Module | None:
    """The text tower if it is open_clip's causal one, in which padding changes nothing."""
    tower: Any = getattr(model, "text", model)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    pool_type = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    causal = (
        len(blocks) > 0
        and all(type(block) in CAUSAL_BLOCKS for block in blocks)
        and pool_type == "argmax"
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and isinstance(getattr(tower, "text_projection", None), Tensor)
    )
    return tower if causal else None


def _state_of_one(tower: Any, tokens: Tensor) -> Tensor:
    """The state of a single text's end token, [1, W]: it has no words in common with another.

    It is computed as open_clip does, so that the probe of a model (`backbones.probe`), a single
    text, does not depend on how many are computed together.
    """
    tokens = tokens.to(tower.positional_embedding.device)
    end = int(tokens.argmax())
    tokens = tokens[:, : end + 1]
    hidden = tower.token_embedding(tokens) + tower.positional_embedding[: end + 1]
    hidden = tower.transformer(hidden, attn_mask=tower.attn_mask[: end + 1, : end + 1])
    state: Tensor = tower.ln_final(hidden)[:, end]
    return state


def timm_patch_tokens(trunk: Any, images: Tensor) -> Tensor:
    """Patch tokens of a timm model, images [B, 3, H, W] -> [B, N, D]."""
    tokens: Tensor = trunk.forward_features(images)
    if tokens.ndim == 4:  # a map; timm's convolutional models are channels first
        return tokens.flatten(2).transpose(1, 2)
    if not is_dense_vit(trunk):
        return tokens[:, getattr(trunk, "num_prefix_tokens", 0) :]
    return tokens[:, dense_parts(trunk).num_prefix_tokens :]
