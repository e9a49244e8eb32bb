"""What predicts the hidden from the visible: a vision decoder and a text decoder, both small."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maskclip_bench.modeling.masking import PatchMask


class VisionDecoder(nn.Module):
    """Transformer over visible tokens and mask tokens -> tokens of the hidden patches.

    The class token goes through it with the patches, as in MAE. B images, V visible, M hidden, N
    patches, D width of the encoder, E width of the decoder.

    Args:
        encoder_dim: D.
        num_patches: N.
        embed_dim: E.
        depth: Blocks; the paper's is 1.
        num_heads: Attention heads.
        output_dim: Width of what is predicted for a patch.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        num_patches: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        output_dim: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, embed_dim))
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, qkv_bias=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, output_dim)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, mask: PatchMask, *, num_prefix: int) -> Tensor:
        """Visible tokens [B, prefix + V, D] -> predictions for the hidden patches [B, M, output]."""
        embedded = self.embed(tokens)
        position = self.pos_embed.to(embedded.dtype)[0]
        visible = embedded[:, num_prefix:] + position[mask.visible_ids]
        hidden = self.mask_token.to(embedded.dtype) + position[mask.hidden_ids]
        sequence = torch.cat([embedded[:, :num_prefix], visible, hidden], dim=1)
        decoded = self.blocks(sequence)[:, -mask.hidden_ids.shape[1] :]
        return self.head(self.norm(decoded))


class TextDecoder(nn.Module):
    """Bidirectional transformer over a caption's hidden states (paper: 4 layers; 0 is allowed).

    L tokens, W width.

    Args:
        width: W.
        depth: Blocks; 0 reads the words from the text encoder itself.
        num_heads: Attention heads.
        vocab_size: Words to choose from.
    """

    def __init__(self, *, width: int, depth: int, num_heads: int, vocab_size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6) if depth else nn.Identity()
        self.head = nn.Linear(width, vocab_size)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Tensor, is_word: Tensor, chosen: Tensor) -> Tensor:
        """Logits of the chosen tokens.

        Args:
            hidden: [T, L, W].
            is_word: Bool [T, L], True up to the end token; padding is not attended to.
            chosen: Bool [T, L], the tokens to predict, K in all.

        Returns:
            [K, vocab_size].
        """
        attend = is_word[:, None, None, :]  # [T, 1, 1, L], over all queries
        for block in self.blocks:
            hidden = block(hidden, attn_mask=attend.expand(-1, 1, hidden.shape[1], -1))
        return self.head(self.norm(hidden[chosen]))
