"""A ViT of timm or open_clip in parts: patches, prefix tokens, positions, blocks, norm.

`MaskCLIPViT` puts the parts together again, so that it can take images of any size and let the
attention run in windows.

Shapes: B images, P prefix tokens (class token, registers), N = h * w patches, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from open_clip.transformer import ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer
from timm.layers import DropPath, PatchEmbed
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from maskclip_bench.errors import ConfigError

Attend = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""(attention, normed tokens [B, P + N, D]) -> its output [B, P + N, D], computed in windows."""


class TimmTower(nn.Module):
    """A timm `VisionTransformer` in parts, without what gives no feature map.

    Raises:
        ConfigError: Its stem is more than one convolution, or it has tokens not known here.
    """

    block_type = Block

    def __init__(self, trunk: TimmVisionTransformer, num_blocks: int) -> None:
        super().__init__()
        if not isinstance(trunk.patch_embed, PatchEmbed):
            raise ConfigError(
                f"MaskCLIPViT cuts images into patches with one convolution; this model has a "
                f"{type(trunk.patch_embed).__name__}. Use a ViT without a hybrid stem."
            )
        self.patch_embed = trunk.patch_embed
        for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            self.register_parameter(name, getattr(trunk, name, None))
        self.norm_pre = trunk.norm_pre
        self.blocks = trunk.blocks[:num_blocks]
        self.norm = trunk.norm
        self.pos_covers_prefix = not trunk.no_embed_class
        self.num_prefix_tokens: int = trunk.num_prefix_tokens
        self.embed_dim: int = trunk.embed_dim
        self.patch_size: tuple[int, int] = tuple(trunk.patch_embed.patch_size)
        self.grid_size: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
        self.embedding_names = (
            "patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed", "norm_pre",
        )  # fmt: skip
        self.block_prefix = "blocks."
        prefix = self.prefix()
        num_known = 0 if prefix is None else prefix.shape[1]
        if num_known != self.num_prefix_tokens:
            raise ConfigError(
                f"{type(trunk).__name__} has {self.num_prefix_tokens} prefix tokens, of which "
                f"{num_known} are known here (cls_token, dist_token, reg_token). Use another ViT."
            )

    def patches(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w]."""
        maps = self.patch_embed.proj(images)
        if isinstance(self.patch_embed.norm, nn.Identity):
            return maps
        return self.patch_embed.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def prefix(self) -> Tensor | None:
        """Prefix tokens [1, P, D], without positions."""
        known = (self.cls_token, self.dist_token, self.reg_token)
        tokens = [token for token in known if token is not None]
        return torch.cat(tokens, dim=1) if tokens else None

    def positions(self) -> tuple[Tensor | None, Tensor | None]:
        """Position embeddings of the prefix [1, P, D] and of the patches [1, N, D]."""
        if self.pos_embed is None:
            return None, None
        if not self.pos_covers_prefix or not self.num_prefix_tokens:
            return None, self.pos_embed
        return self.pos_embed[:, : self.num_prefix_tokens], self.pos_embed[
            :, self.num_prefix_tokens :
        ]

    def run_windowed(self, block: nn.Module, tokens: Tensor, attend: Attend) -> Tensor:
        """A block [B, P + N, D] -> [B, P + N, D] whose attention alone runs in windows."""
        attended = attend(block.attn, block.norm1(tokens))
        tokens = tokens + block.drop_path1(block.ls1(attended))
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))

    def set_drop_path(self, index: int, rate: float) -> None:
        """Stochastic depth in both branches of a block."""
        for name in ("drop_path1", "drop_path2"):
            if hasattr(self.blocks[index], name):
                setattr(self.blocks[index], name, DropPath(rate) if rate else nn.Identity())


class OpenClipTower(nn.Module):
    """open_clip's own `VisionTransformer` in parts, without pooling and projection.

    CoCa's last norm comes after its pooler, whose width it has: the map has none there.
    """

    block_type = ResidualAttentionBlock

    def __init__(self, trunk: OpenClipVisionTransformer, num_blocks: int) -> None:
        super().__init__()
        self.conv1 = trunk.conv1
        self.class_embedding = trunk.class_embedding
        self.positional_embedding = trunk.positional_embedding
        self.ln_pre = trunk.ln_pre
        self.blocks = trunk.transformer.resblocks[:num_blocks]
        self.norm = trunk.ln_post if trunk.attn_pool is None else nn.Identity()
        self.batch_first: bool = getattr(trunk.transformer, "batch_first", True)
        self.num_prefix_tokens = 1
        self.embed_dim: int = trunk.conv1.out_channels
        self.patch_size: tuple[int, int] = tuple(trunk.patch_size)
        self.grid_size: tuple[int, int] = tuple(trunk.grid_size)
        self.embedding_names = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
        self.block_prefix = "blocks."

    def patches(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w]."""
        return self.conv1(images)

    def prefix(self) -> Tensor | None:
        """The class token [1, 1, D], without its position."""
        return self.class_embedding[None, None]

    def positions(self) -> tuple[Tensor | None, Tensor | None]:
        """Position embeddings of the class token [1, 1, D] and of the patches [1, N, D]."""
        return self.positional_embedding[None, :1], self.positional_embedding[None, 1:]

    def norm_pre(self, tokens: Tensor) -> Tensor:
        """CLIP's norm before the blocks."""
        return self.ln_pre(tokens)

    def run_windowed(self, block: nn.Module, tokens: Tensor, attend: Attend) -> Tensor:
        """A block [B, P + N, D] -> [B, P + N, D] whose attention alone runs in windows."""

        def attention(windows: Tensor) -> Tensor:
            if self.batch_first:
                return block.attention(windows)
            return block.attention(windows.transpose(0, 1)).transpose(0, 1)

        tokens = tokens + block.ls_1(attend(attention, block.ln_1(tokens)))
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))

    def set_drop_path(self, index: int, rate: float) -> None:
        """Stochastic depth in both branches of a block, after its layer scale."""
        block = self.blocks[index]
        for name in ("ls_1", "ls_2"):
            if rate:
                setattr(block, name, nn.Sequential(getattr(block, name), DropPath(rate)))


def tower_of(trunk: nn.Module, num_blocks: int) -> TimmTower | OpenClipTower:
    """The parts of a trunk, with its first `num_blocks` blocks.

    Raises:
        ConfigError: See the towers.
    """
    if isinstance(trunk, OpenClipVisionTransformer):
        return OpenClipTower(trunk, num_blocks)
    assert isinstance(trunk, TimmVisionTransformer)
    return TimmTower(trunk, num_blocks)


def depth_of(trunk: nn.Module) -> int:
    """Number of blocks of a plain ViT.

    Raises:
        ConfigError: It is no plain ViT.
    """
    if isinstance(trunk, OpenClipVisionTransformer):
        return len(trunk.transformer.resblocks)
    if isinstance(trunk, TimmVisionTransformer):
        return len(trunk.blocks)
    raise ConfigError(
        f"MaskCLIPViT runs timm's VisionTransformer and open_clip's ViT; this is a "
        f"{type(trunk).__name__}. Use MaskCLIPPyramid for it."
    )
