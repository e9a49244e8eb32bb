"""What predicts the hidden from the visible: a vision decoder and a text decoder, both small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskclip_bench.modeling.blocks import PartialBlock
from maskclip_bench.modeling.masking import PatchMask
from maskclip_bench.modeling.packing import PackedLayout
from maskclip_bench.modeling.towers import take_tokens


class VisionDecoder(nn.Module):
    """Transformer over visible tokens and mask tokens -> predictions for patches.

    The class token goes through it with the patches, as in MAE. B images, V visible, M hidden, N
    patches, D width of the encoder, E width of the decoder.

    Args:
        encoder_dim: D.
        grid_size: Rows and columns of patches; N is their product.
        embed_dim: E.
        depth: Blocks; the paper's is 1.
        num_heads: Attention heads.
        output_dim: Width of what is predicted for a patch.
        fixed_positions: Sine and cosine positions (MAE, RILS), instead of learned ones.
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        encoder_dim: int,
        grid_size: tuple[int, int],
        embed_dim: int,
        depth: int,
        num_heads: int,
        output_dim: int,
        fixed_positions: bool = True,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(embed_dim))
        positions = sine_positions(grid_size, embed_dim)
        if fixed_positions:
            self.register_buffer("pos_embed", positions, persistent=False)
        else:
            self.pos_embed = nn.Parameter(torch.zeros_like(positions))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            PartialBlock(embed_dim, num_heads, qkv_bias=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, output_dim)
        _initialize(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, tokens: Tensor, mask: PatchMask, *, num_prefix: int, predict_all: bool = False
    ) -> Tensor:
        """Predict patches from the visible tokens.

        Args:
            tokens: Of the encoder, [B, prefix + V, D].
            mask: What is hidden.
            num_prefix: Tokens of `tokens` before the patches.
            predict_all: Predict the visible patches too.

        Returns:
            [B, M, output] in the order of `mask.hidden_ids`; with `predict_all` [B, V + M, output],
            the visible ones first.
        """
        embedded = self.embed(tokens)
        position = self.pos_embed.to(embedded.dtype)  # [N, E]
        batch, num_tokens, _ = embedded.shape
        ids = torch.cat([mask.visible_ids, mask.hidden_ids], dim=1)  # [B, N]
        positions = position.index_select(0, ids.flatten()).view(batch, -1, position.shape[1])
        num_visible = num_tokens - num_prefix
        sequence = torch.cat(
            [
                embedded[:, :num_prefix],
                embedded[:, num_prefix:] + positions[:, :num_visible],
                positions[:, num_visible:] + self.mask_token.to(embedded.dtype),
            ],
            dim=1,
        )
        predicted = slice(num_prefix if predict_all else num_tokens, None)
        *blocks, last = self.blocks
        for block in blocks:
            sequence = block(sequence)
        return self.head(self.norm(last(sequence, outputs=predicted)))


class TextDecoder(nn.Module):
    """Bidirectional transformer over a caption's hidden states (paper: 4 layers; 0 is allowed).

    K words of T captions, W width.

    Args:
        width: W.
        depth: Blocks; 0 reads the words from the text encoder's own output.
        num_heads: Attention heads.
    """

    def __init__(self, *, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            PartialBlock(width, num_heads, qkv_bias=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6) if depth else nn.Identity()
        _initialize(self)

    def forward(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Hidden states of all words, [K, W] -> the same, each having seen all of its caption."""
        if not len(self.blocks):
            return hidden
        padded = layout.pad(hidden)  # [T, L, W]
        attend = layout.is_word[:, None, None, :]  # the same words for every query
        attend = attend.expand(-1, 1, layout.length, -1)
        for block in self.blocks:
            padded = block(padded, attn_mask=attend)
        return self.norm(layout.pack(padded))


def sine_positions(grid_size: tuple[int, int], width: int) -> Tensor:
    """Sine and cosine positions of a grid, [N, width]: half for the row, half for the column.

    As in MAE (arXiv 2111.06377) and MoCo v3; a width that is no multiple of four ends in zeros.
    """
    height, columns = grid_size
    quarter = width // 4
    frequency = 10000 ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    rows = torch.arange(height, dtype=torch.float32).repeat_interleave(columns)
    cols = torch.arange(columns, dtype=torch.float32).repeat(height)
    parts = [f(axis[:, None] * frequency) for axis in (cols, rows) for f in (torch.sin, torch.cos)]
    return nn.functional.pad(torch.cat(parts, dim=1), (0, width - 4 * quarter))


def pixel_patches(images: Tensor, patch_size: int) -> Tensor:
    """Images [B, C, H, W] -> patches [B, N, C p^2], each as `unfold` gives them.

    One copy; `unfold` on a GPU starts a kernel for each image.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    blocks = images.float()[..., : rows * patch_size, : columns * patch_size]
    blocks = blocks.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


def normalized_patches(patches: Tensor) -> Tensor:
    """Patches [B, N, C p^2], each with mean 0 and variance 1 (MAE's `norm_pix_loss`)."""
    mean = patches.mean(dim=-1, keepdim=True)
    return (patches - mean) / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def decoder_targets(patches: Tensor, mask: PatchMask, *, predict_all: bool = False) -> Tensor:
    """What a decoder should predict, in its order: [B, N, X] -> [B, M, X] (or V + M)."""
    ids = mask.hidden_ids
    if predict_all:
        ids = torch.cat([mask.visible_ids, ids], dim=1)
    return take_tokens(patches, ids)


def _initialize(module: nn.Module) -> None:
    """Xavier for linear layers, as in MAE's decoder."""
    for part in module.modules():
        layer: Any = part
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
