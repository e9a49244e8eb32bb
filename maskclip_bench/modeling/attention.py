"""Softmax attention, by the kernel that is the fastest where it runs.

B batch, H heads, Q queries, N keys, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PLAIN_KEYS = 256
"""Above it the fused kernel is no slower, and makes no matrix."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, [B, H, Q, d].

    torch's fused kernel, except for short sequences in 16 bits on a CPU: there it is slower,
    forward and backward, than two matrix products with the matrix between them (3 times at 50
    tokens: `benchmarks/attention.py`).

    Args:
        query: [B, H, Q, d].
        key: [B, H, N, d].
        value: [B, H, N, d].
        mask: Broadcastable to [B, H, Q, N]: bool, True = attends, or numbers added to the scores.
        is_causal: Each of N queries attends to the keys up to its own place (no mask then).
        dropout: Of the attention weights.
    """
    if query.device.type != "cpu" or query.dtype == torch.float32 or key.shape[2] > MAX_PLAIN_KEYS:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # [B, H, Q, N]
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        )
    weights = scores.softmax(dim=-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights @ value
