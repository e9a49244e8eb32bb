"""How a ViT is cut into parts: patches, positions, prefix tokens, blocks, norms.

This is the only module that knows the insides of timm's and open_clip's ViTs. A `ViT` is a view: it
owns no weights, and a trunk may have several. Put together as `ViT.whole` does, its parts equal
the trunk's own forward pass (tests).

B images, N patches on a grid of h x w, P prefix tokens (class token, registers), D width.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Attention, Block  # type: ignore[attr-defined]
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskclip_bench.errors import ConfigError

Attend = Callable[[Callable[..., Tensor], Tensor, Tensor | None], Tensor]
"""(attention, normed tokens [B, P + N, D], rotary positions or None) -> its output [B, P + N, D],
e.g. in windows. The attention takes tokens, and rotary positions of their patches as `rope=`, or
numbers that are added to its scores [B, heads, P + N, P + N] as `attn_mask=` (`head_dim`)."""

Ropes = Sequence[Tensor]
"""Rotary positions of patches, one tensor for each block: [N, 2 d], or [heads, N, 2 d], or with
further axes for images, [B, heads, N, 2 d]."""


class ViT(ABC):
    """The parts of a ViT trunk under one set of names.

    Attributes:
        trunk: The model itself.
        blocks: Its residual blocks.
        embed_dim: D.
        num_heads: Attention heads of a block.
        num_prefix_tokens: P.
        patch_size: Height and width of a patch in pixels.
        grid_size: (h, w) for images of the size the trunk was made for.
    """

    trunk: Any
    blocks: Sequence[nn.Module]
    embed_dim: int
    num_heads: int
    num_prefix_tokens: int
    patch_size: tuple[int, int]
    grid_size: tuple[int, int]

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Check that images with this grid of patches can be run.

        Raises:
            ConfigError: They cannot.
        """
        return None  # of any size

    @property
    def has_norm(self) -> bool:
        """Whether the trunk normalizes its patch tokens at the end (some norm what is pooled)."""
        raise NotImplementedError

    def attends_separately(self, block: nn.Module) -> bool:
        """Whether `run` can replace the attention of a block (`attend`)."""
        raise NotImplementedError

    def head_dim(self, block: nn.Module) -> int | None:
        """D of a block whose attention takes numbers that are added to its scores; else None."""
        return None

    def query(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Queries [B, heads, P + N, d] before their scaling, of a block that has a `head_dim`.

        Args:
            block: One of `blocks`.
            tokens: The attention's input, [B, P + N, D].
        """
        raise NotImplementedError

    @property
    def num_patches(self) -> int:
        """N, for images of the size the trunk was made for."""
        return math.prod(self.grid_size)

    @property
    def recomputes(self) -> bool:
        """Whether blocks are to be recomputed in the backward pass (gradient checkpointing)."""
        return False

    @abstractmethod
    def patch_map(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] of any size that patches divide -> embedded patches [B, D, h, w]."""

    def patches(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> embedded patches [B, N, D], without positions."""
        return self.patch_map(images).flatten(2).transpose(1, 2)

    @abstractmethod
    def prefix(self) -> Tensor | None:
        """Prefix tokens [1, P, D], without positions; None if there are none."""

    @abstractmethod
    def positions(self) -> tuple[Tensor | None, Tensor | None]:
        """Learned positions of the prefix [1, P, D] and of the patches [1, N, D], if there are."""

    def ropes(self, grid_size: tuple[int, int] | None = None) -> Ropes | None:
        """Rotary positions of a grid (by default the trunk's own); None if it has none."""
        return None

    def before_blocks(self, tokens: Tensor) -> Tensor:
        """What is done to all tokens [B, P + N, D] before the first block: dropout, a norm."""
        return tokens

    @abstractmethod
    def norm(self, tokens: Tensor) -> Tensor:
        """The norm after the last block, [B, ..., D]."""

    @abstractmethod
    def run(
        self,
        block: nn.Module,
        tokens: Tensor,
        *,
        rope: Tensor | None = None,
        attend: Attend | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One block, [B, P + N, D] -> [B, P + N, D].

        Args:
            block: One of `blocks`.
            tokens: Its input.
            rope: Rotary positions for this block.
            attend: Runs the attention, e.g. in windows; by default it sees all tokens.
            **kwargs: Passed on to the block.
        """

    def with_prefix(self, patches: Tensor) -> Tensor:
        """Patches with their positions, [B, n, D] -> tokens for the first block, [B, P + n, D]."""
        prefix = self.prefix()
        if prefix is not None:
            position, _ = self.positions()
            if position is not None:
                prefix = prefix + position
            prefix = prefix.to(patches.dtype).expand(len(patches), -1, -1)
            patches = torch.cat([prefix, patches], dim=1)
        return self.before_blocks(patches)

    def embed(self, images: Tensor) -> Tensor:
        """Images of the trunk's own size -> patches with their positions, [B, N, D]."""
        return self.with_positions(self.patches(images))

    def with_positions(self, patches: Tensor) -> Tensor:
        """Embedded patches [B, N, D] -> the same with learned positions, if there are."""
        _, position = self.positions()
        return patches if position is None else patches + position

    def run_blocks(
        self,
        tokens: Tensor,
        *,
        ropes: Ropes | None = None,
        start: int = 0,
        stop: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Blocks one after another; recomputed in the backward pass if that is set.

        Args:
            tokens: [B, P + N, D].
            ropes: As `ropes()` gives them.
            start: Index of the first block.
            stop: Index after the last one; by default all are run.
            **kwargs: Passed on to each block.
        """
        own_ropes = [None] * len(self.blocks) if ropes is None else list(ropes)
        for block, rope in zip(self.blocks[start:stop], own_ropes[start:stop], strict=True):
            if self.recomputes:
                tokens = checkpoint(
                    self.run, block, tokens, rope=rope, use_reentrant=False, **kwargs
                )
            else:
                tokens = self.run(block, tokens, rope=rope, **kwargs)
        return tokens

    def whole(self, images: Tensor) -> Tensor:
        """Images of the trunk's own size -> all tokens after the final norm, [B, P + N, D]."""
        tokens = self.with_prefix(self.embed(images))
        return self.norm(self.run_blocks(tokens, ropes=self.ropes()))


class TimmViT(ViT):
    """timm's `VisionTransformer` and `Eva` (EVA-02, DINOv3: rotary positions).

    Raises:
        ConfigError: It has prefix tokens that are not known here.
    """

    def __init__(self, trunk: TimmVisionTransformer | Eva) -> None:
        self.trunk = trunk
        self.blocks = list(trunk.blocks)
        self.embed_dim = trunk.embed_dim
        self.num_heads = _num_heads(self.blocks[0])
        self.num_prefix_tokens = trunk.num_prefix_tokens
        stem: Any = trunk.patch_embed
        hybrid = not isinstance(stem, PatchEmbed) and hasattr(stem, "feat_ratio")
        height, width = stem.feat_ratio(as_scalar=False) if hybrid else stem.patch_size
        self.patch_size = (height, width)
        rows, columns = trunk.patch_embed.grid_size
        self.grid_size = (rows, columns)
        num_known = sum(token.shape[1] for token in self._prefix_tokens())
        if num_known != self.num_prefix_tokens:
            raise ConfigError(
                f"{type(trunk).__name__} has {self.num_prefix_tokens} prefix tokens, of which "
                f"{num_known} are known here (cls_token, dist_token, reg_token). Use another ViT."
            )

    @property
    def recomputes(self) -> bool:
        """As `set_grad_checkpointing` says, in training."""
        return bool(self.trunk.grad_checkpointing and self.trunk.training)

    @property
    def has_norm(self) -> bool:
        """False where timm norms what is pooled (`fc_norm`)."""
        return not isinstance(self.trunk.norm, nn.Identity)

    def attends_separately(self, block: nn.Module) -> bool:
        """Pre-norm blocks of timm's two plain kinds."""
        return isinstance(block, Block | EvaBlock)

    def head_dim(self, block: nn.Module) -> int | None:
        """Of timm's plain attention in its plain block."""
        attention = block.attn if isinstance(block, Block) else None
        return attention.head_dim if isinstance(attention, Attention) else None

    def query(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """The first third of the joint layer, normalized where the attention does so."""
        attention: Any = block.attn
        width = attention.num_heads * attention.head_dim
        bias = attention.qkv.bias
        query = F.linear(
            tokens, attention.qkv.weight[:width], None if bias is None else bias[:width]
        )
        heads = query.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        return attention.q_norm(heads)

    def patch_map(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w]; a hybrid's stem is a convolutional net."""
        stem = self.trunk.patch_embed
        if not isinstance(stem, PatchEmbed):
            patches = stem(images)
            if patches.ndim == 4:  # [B, h, w, D]
                return patches.permute(0, 3, 1, 2)
            grid = stem.dynamic_feat_size(images.shape[-2:])
            return patches.transpose(1, 2).unflatten(2, grid)
        maps = stem.proj(images)
        if isinstance(stem.norm, nn.Identity):
            return maps
        return stem.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def patches(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, D], with the stem's own check of the size."""
        patches = self.trunk.patch_embed(images)
        return patches if patches.ndim == 3 else patches.flatten(1, 2)  # [B, h, w, D], any size

    def prefix(self) -> Tensor | None:
        """Class token, DeiT's second one, registers."""
        tokens = self._prefix_tokens()
        return torch.cat(tokens, dim=1) if tokens else None

    def _prefix_tokens(self) -> list[Tensor]:
        names = ("cls_token", "dist_token", "reg_token")
        tokens = [getattr(self.trunk, name, None) for name in names]
        return [token for token in tokens if token is not None]

    def positions(self) -> tuple[Tensor | None, Tensor | None]:
        """One table for both, or for the patches alone (`no_embed_class`)."""
        table = self.trunk.pos_embed
        if table is None or self.trunk.no_embed_class or not self.num_prefix_tokens:
            return None, table
        return table[:, : self.num_prefix_tokens], table[:, self.num_prefix_tokens :]

    def ropes(self, grid_size: tuple[int, int] | None = None) -> Ropes | None:
        """The same [N, 2 d] for every block, or ("mixed") [heads, N, 2 d] of each block's own."""
        module = getattr(self.trunk, "rope", None)
        if module is None:
            return None
        grid = grid_size or self.grid_size
        rope = _rope_of_grid(module, grid).get_embed(shape=list(grid))
        return list(rope) if rope.ndim == 4 else [rope] * len(self.blocks)

    def before_blocks(self, tokens: Tensor) -> Tensor:
        """Dropout, and CLIP's norm where there is one."""
        return self.trunk.norm_pre(self.trunk.pos_drop(tokens))

    def norm(self, tokens: Tensor) -> Tensor:
        """The norm after the last block; an identity where timm norms what is pooled."""
        return self.trunk.norm(tokens)

    def run(
        self,
        block: nn.Module,
        tokens: Tensor,
        *,
        rope: Tensor | None = None,
        attend: Attend | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One block; with `attend` one that `attends_separately`."""
        part: Any = block
        if attend is None:
            return part(tokens, **kwargs, **({} if rope is None else {"rope": rope}))
        attended = attend(part.attn, part.norm1(tokens), rope)
        if isinstance(block, EvaBlock):
            tokens = tokens + part.drop_path1(_scaled(part.gamma_1, attended))
            hidden = part.mlp(part.norm2(tokens))
            return tokens + part.drop_path2(_scaled(part.gamma_2, hidden))
        tokens = tokens + part.drop_path1(part.ls1(attended))
        return tokens + part.drop_path2(part.ls2(part.mlp(part.norm2(tokens))))


def _scaled(gamma: Tensor | None, value: Tensor) -> Tensor:
    """Layer scale of timm's `EvaBlock`."""
    return value if gamma is None else gamma * value


def _rope_of_grid(module: Any, grid: tuple[int, int]) -> Any:
    """Timm's rotary positions, or, where they are kept for one grid, a copy for another one.

    The module itself stays as it is: processes that train together may see other sizes.
    """
    own = getattr(module, "feat_shape", None)
    if own is None or tuple(own) == tuple(grid):
        return module
    other = copy.copy(module)
    other._buffers = {
        name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()
    }
    other.update_feat_shape(list(grid))
    return other


class OpenClipViT(ViT):
    """open_clip's own `VisionTransformer` (OpenAI's CLIP)."""

    def __init__(self, trunk: OpenClipVisionTransformer) -> None:
        self.trunk = trunk
        self.blocks = list(trunk.transformer.resblocks)
        self.embed_dim = trunk.conv1.out_channels
        self.num_heads = _num_heads(self.blocks[0])
        self.num_prefix_tokens = 1
        height, width = trunk.patch_size
        self.patch_size = (height, width)
        rows, columns = trunk.grid_size
        self.grid_size = (rows, columns)

    @property
    def recomputes(self) -> bool:
        """As `set_grad_checkpointing` says, in training."""
        transformer = self.trunk.transformer
        return bool(transformer.grad_checkpointing and transformer.training)

    def patch_map(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w]."""
        return self.trunk.conv1(images)

    def prefix(self) -> Tensor | None:
        """The class token."""
        return self.trunk.class_embedding[None, None]

    def positions(self) -> tuple[Tensor | None, Tensor | None]:
        """One table for the class token and the patches."""
        table = self.trunk.positional_embedding[None]
        return table[:, :1], table[:, 1:]

    def before_blocks(self, tokens: Tensor) -> Tensor:
        """CLIP's norm."""
        return self.trunk.ln_pre(tokens)

    @property
    def has_norm(self) -> bool:
        """Unless it comes after a pooler."""
        return self.trunk.attn_pool is None and not isinstance(self.trunk.ln_post, nn.Identity)

    def attends_separately(self, block: nn.Module) -> bool:
        """open_clip's plain blocks."""
        return isinstance(block, ResidualAttentionBlock)

    def head_dim(self, block: nn.Module) -> int | None:
        """Of torch's attention in open_clip's plain block."""
        attention = block.attn if isinstance(block, ResidualAttentionBlock) else None
        return attention.head_dim if isinstance(attention, nn.MultiheadAttention) else None

    def query(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """The first third of the joint layer."""
        attention: Any = block.attn
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        width = attention.embed_dim
        query = F.linear(tokens, weight[:width], None if bias is None else bias[:width])
        return query.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)

    def norm(self, tokens: Tensor) -> Tensor:
        """The last norm; CoCa's comes after its pooler, whose width it has: none for tokens."""
        return tokens if self.trunk.attn_pool is not None else self.trunk.ln_post(tokens)

    def run(
        self,
        block: nn.Module,
        tokens: Tensor,
        *,
        rope: Tensor | None = None,
        attend: Attend | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One block."""
        part: Any = block
        batch_first = getattr(self.trunk.transformer, "batch_first", True)
        if attend is None:
            if batch_first:
                return part(tokens, **kwargs)
            return part(tokens.transpose(0, 1), **kwargs).transpose(0, 1)

        def attention(normed: Tensor, attn_mask: Tensor | None = None) -> Tensor:
            mask = None if attn_mask is None else attn_mask.flatten(0, 1)  # [B * heads, ...]
            if batch_first:
                return part.attention(normed, attn_mask=mask)
            return part.attention(normed.transpose(0, 1), attn_mask=mask).transpose(0, 1)

        tokens = tokens + part.ls_1(attend(attention, part.ln_1(tokens), None))
        return tokens + part.ls_2(part.mlp(part.ln_2(tokens)))


def _num_heads(block: nn.Module) -> int:
    """Of the block's (first) attention."""
    heads: list[Any] = [getattr(part, "num_heads", None) for part in block.modules()]
    return next(int(number) for number in heads if number is not None)


def is_vit(trunk: nn.Module) -> bool:
    """Whether a trunk is a plain ViT, whose patches can be dropped and replaced."""
    return isinstance(trunk, TimmVisionTransformer | Eva | OpenClipVisionTransformer)


def vit_parts(trunk: nn.Module) -> ViT:
    """The parts of a trunk.

    Raises:
        ConfigError: It is not a ViT of timm or open_clip, or it has tokens not known here.
    """
    if isinstance(trunk, OpenClipVisionTransformer):
        return OpenClipViT(trunk)
    if isinstance(trunk, TimmVisionTransformer | Eva):
        return TimmViT(trunk)
    raise ConfigError(
        f"A {type(trunk).__name__} is not a plain ViT of timm or open_clip, whose patches can be "
        "dropped. Use timm's VisionTransformer or Eva (vit_*, deit_*, eva02_*), or open_clip's ViT."
    )


def visible_ropes(ropes: Ropes | None, visible_ids: Tensor) -> Ropes | None:
    """Rotary positions of some patches of each image.

    Args:
        ropes: Of all patches, as `ViT.ropes` gives them.
        visible_ids: Int64 [B, V].

    Returns:
        For each block [B, 1, V, 2 d] or [B, heads, V, 2 d].
    """
    if ropes is None:
        return None
    if ropes[0].ndim == 2:
        return [ropes[0][visible_ids].unsqueeze(1)] * len(ropes)
    return [rope[:, visible_ids].transpose(0, 1) for rope in ropes]
