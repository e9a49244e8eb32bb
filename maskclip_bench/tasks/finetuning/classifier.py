"""A classifier on a backbone: the image tower, what the head reads of it, and the head.

B images, N patches, D width of what the head reads, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from maskclip_bench.backbones.encoders import TrainableEncoder, vision_trunk
from maskclip_bench.backbones.families.base import seeded
from maskclip_bench.backbones.loading import Backbone
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.vit import ViT, is_vit, vit_parts
from maskclip_bench.tasks.finetuning.recipe import NORM_EPS, Pooling, TrainRecipe

State = dict[str, Tensor]


class Classifier(nn.Module):
    """Normalized images [B, 3, S, S] -> logits [B, C].

    Attributes:
        encoder: A copy of the row's model.
        pool_norm: The new LayerNorm of the poolings that have one.
        head: From what is pooled to logits.
    """

    def __init__(
        self, encoder: TrainableEncoder, pooling: Pooling, *, width: int, head: nn.Module
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self._pooling = pooling
        eps = NORM_EPS.get(pooling)
        self.pool_norm = nn.Identity() if eps is None else nn.LayerNorm(width, eps=eps)
        self.head = head
        self._parts = None if eps is None else vit_of(encoder.model)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, S, S] -> logits [B, C]."""
        return self.head(self.pooled(images))

    def pooled(self, images: Tensor) -> Tensor:
        """What the head reads, [B, D]."""
        if self._parts is None:
            point = "joint" if self._pooling == "joint" else "backbone"
            return self.encoder.image_outputs(images)[point]
        parts = self._parts
        tokens = parts.run_blocks(parts.with_prefix(parts.embed(images)), ropes=parts.ropes())
        patches = tokens[:, parts.num_prefix_tokens :]  # [B, N, D]
        if self._pooling == "mean_then_norm":
            return self.pool_norm(patches.mean(dim=1))
        return self.pool_norm(patches).mean(dim=1)


def vit_of(model: nn.Module) -> ViT:
    """The parts of a model's trunk.

    Raises:
        ConfigError: It is no plain ViT.
    """
    return vit_parts(vision_trunk(model))


def build_classifier(
    backbone: Backbone,
    recipe: TrainRecipe,
    *,
    num_classes: int,
    seed: int,
    zero_shot: Tensor | None = None,
) -> Classifier:
    """A classifier whose image tower has the row's weights, in evaluation mode, on its device.

    Args:
        backbone: The row; it stays as it is.
        recipe: What is pooled, the kind of head, what is trained.
        num_classes: C.
        seed: Of the head's first weights.
        zero_shot: First weights [C, P] of the head `zero_shot`.

    Raises:
        ConfigError: The model has not what the recipe needs, or nothing of it can be trained.
    """
    encoder = backbone.trainable()
    encoder.model.eval()
    size = backbone.image_size
    example = torch.zeros(2, 3, size, size, device=backbone.device)
    if recipe.pooling in NORM_EPS:
        width = vit_of(encoder.model).embed_dim
    else:
        with torch.no_grad():
            point = "joint" if recipe.pooling == "joint" else "backbone"
            width = encoder.image_outputs(example)[point].shape[1]
    with seeded(seed, "finetuning", "head"):
        head = _head(recipe, width, num_classes, zero_shot)
    classifier = Classifier(encoder, recipe.pooling, width=width, head=head)
    if recipe.drop_path:
        set_drop_path(encoder.model, recipe.drop_path)
    classifier.to(backbone.device).eval()
    _require_gradients(classifier, recipe, example, name=backbone.row_id)
    return classifier


def _head(recipe: TrainRecipe, width: int, num_classes: int, zero_shot: Tensor | None) -> nn.Module:
    layer = nn.Linear(width, num_classes)
    nn.init.zeros_(layer.bias)
    if recipe.head == "zero_shot":
        assert zero_shot is not None
        assert zero_shot.shape == layer.weight.shape
        with torch.no_grad():
            layer.weight.copy_(zero_shot)
        return layer
    nn.init.normal_(layer.weight, std=recipe.head_init_std)
    if recipe.head == "batch_norm_linear":
        return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), layer)
    return layer


def _require_gradients(
    classifier: Classifier, recipe: TrainRecipe, example: Tensor, *, name: str
) -> None:
    """Let exactly those parameters require a gradient that the recipe trains and the loss reaches.

    A text tower, a projection that nothing reads, a class token behind mean pooling's last block
    get none.

    Raises:
        ConfigError: The recipe trains the tower, and none of its parameters can be.
    """
    classifier.requires_grad_(False)
    classifier.head.requires_grad_(True)
    classifier.pool_norm.requires_grad_(True)
    if recipe.trained == "everything":
        classifier.encoder.requires_grad_(True)
        if recipe.freeze_patch_embedding:
            _patch_embedding(classifier.encoder.model).requires_grad_(False)
    classifier(example).square().sum().backward()
    for parameter in classifier.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    reached = any(parameter.requires_grad for parameter in classifier.encoder.parameters())
    if recipe.trained == "everything" and not reached:
        raise ConfigError(
            f"{name}: no parameter of the image encoder gets a gradient, so there is nothing to "
            "finetune. Let the encoder be an nn.Module that computes with gradients, or use "
            "linear_probe."
        )


def _patch_embedding(model: nn.Module) -> nn.Module:
    """The convolution that embeds patches.

    Raises:
        ConfigError: The model has none known here.
    """
    trunk: Any = vision_trunk(model)
    stem = getattr(trunk, "patch_embed", None) or getattr(trunk, "conv1", None)
    if not isinstance(stem, nn.Module):
        raise ConfigError(
            f"{type(trunk).__name__} has no patch embedding to freeze. Set options: "
            "{freeze_patch_embedding: false}."
        )
    return stem


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Stochastic depth in both branches of each block, from 0 linearly to `rate` in the last.

    Raises:
        ConfigError: The model is no plain ViT.
    """
    trunk = vision_trunk(model)
    if not is_vit(trunk):
        raise ConfigError(
            f"Stochastic depth is set in ViTs here, and this is a {type(trunk).__name__}. Set "
            "options: {drop_path: 0}."
        )
    blocks = vit_parts(trunk).blocks
    for index, block in enumerate(blocks):
        own = rate * index / max(len(blocks) - 1, 1)
        for name in ("drop_path1", "drop_path2"):  # timm's
            if hasattr(block, name):
                setattr(block, name, DropPath(own))
        for name in ("ls_1", "ls_2"):  # open_clip's layer scale, an identity where it has none
            if hasattr(block, name):
                setattr(block, name, nn.Sequential(getattr(block, name), DropPath(own)))


def set_training(classifier: Classifier, recipe: TrainRecipe) -> None:
    """Training mode, in which a frozen tower stays in evaluation mode."""
    classifier.train()
    if recipe.trained == "head":
        classifier.encoder.eval()


def trained_state(classifier: nn.Module) -> State:
    """What training changes: the trained parameters, and all buffers."""
    state = {
        name: parameter.detach()
        for name, parameter in classifier.named_parameters()
        if parameter.requires_grad
    }
    return {**state, **{name: buffer.detach() for name, buffer in classifier.named_buffers()}}


def load_trained_state(classifier: nn.Module, state: State) -> None:
    """Put back what `trained_state` gave."""
    own = dict(classifier.named_parameters()) | dict(classifier.named_buffers())
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def interpolated(first: State, last: State, alpha: float) -> State:
    """Weights between two states, `(1 - alpha) * first + alpha * last` (WiSE-FT).

    At 0 and 1 they are exactly those of an end. Integers (BatchNorm counts) are those of `last`.
    """
    if alpha in (0.0, 1.0):
        return dict(last if alpha else first)
    return {
        name: first[name] * (1 - alpha) + value * alpha if value.is_floating_point() else value
        for name, value in last.items()
    }
