"""Losses across samples, computed in blocks: the global B x B matrix is never held.

B local samples, G = world_size * B global samples, P width of the embeddings. Under DDP, which
averages gradients over the ranks, every loss here (the mean over the local rows) has exactly the
gradient of the joined batch, if embeddings are gathered with gradient (`gather: exact`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from maskclip_bench import distributed

Gather = Literal["exact", "paper"]
"""exact: gradients flow back to every rank. paper: as in SLIP's code (facebookresearch/SLIP,
`losses.py`), over several ranks all gathered embeddings are constants, and gradients come through
the local rows alone."""

BLOCK_SIZE = 1024


class _BlockwiseCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of rows against all columns, logits made and thrown away in blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,  # [B, P]
        columns: Tensor,  # [G, P]
        scale: Tensor,  # []
        targets: Tensor,  # [B]
        excluded: Tensor | None,  # [B]: a column that each row ignores (itself), or None
        block_size: int,
    ) -> Tensor:
        total = rows.new_zeros(())
        normalizers = []
        for start in range(0, len(rows), block_size):
            part = slice(start, start + block_size)
            logits = _logits(rows[part], columns, scale, excluded, part)
            normalizer = torch.logsumexp(logits, dim=1)
            total += (normalizer - logits.gather(1, targets[part, None]).squeeze(1)).sum()
            normalizers.append(normalizer)
        ctx.save_for_backward(rows, columns, scale, targets, torch.cat(normalizers))
        ctx.excluded, ctx.block_size = excluded, block_size
        return total / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, targets, normalizers = ctx.saved_tensors
        grad_rows = torch.empty_like(rows)
        grad_columns = torch.zeros_like(columns)
        grad_scale = torch.zeros_like(scale)
        for start in range(0, len(rows), ctx.block_size):
            part = slice(start, start + ctx.block_size)
            logits = _logits(rows[part], columns, scale, ctx.excluded, part)
            probability = (logits - normalizers[part, None]).exp_()
            own = targets[part, None]
            probability.scatter_add_(1, own, -torch.ones_like(own, dtype=probability.dtype))
            probability *= grad / len(rows)  # d loss / d logits
            products = probability @ columns
            grad_scale += (products * rows[part]).sum()
            grad_rows[part] = scale * products
            grad_columns.addmm_(probability.T, rows[part] * scale)
        return grad_rows, grad_columns, grad_scale, None, None, None


def _logits(
    rows: Tensor, columns: Tensor, scale: Tensor, excluded: Tensor | None, part: slice
) -> Tensor:
    logits = scale * (rows @ columns.T)
    if excluded is not None:
        logits.scatter_(1, excluded[part, None], float("-inf"))
    return logits


def cross_entropy_in_blocks(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    targets: Tensor,
    *,
    excluded: Tensor | None = None,
    block_size: int = BLOCK_SIZE,
) -> Tensor:
    """Mean over rows of -log softmax(scale * rows columns^T)[target]; always in float32.

    Args:
        rows: [B, P].
        columns: [G, P].
        scale: Scalar factor of the products, e.g. exp(logit_scale).
        targets: Int64 [B], the right column of each row.
        excluded: Int64 [B], one column that each row ignores (its own, in SimCLR).
        block_size: Rows of logits held at a time.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return _BlockwiseCrossEntropy.apply(
            rows.float(), columns.float(), scale.float(), targets, excluded, block_size
        )


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor,
    *,
    gather: Gather = "exact",
    block_size: int = BLOCK_SIZE,
) -> tuple[Tensor, Tensor]:
    """InfoNCE in both directions (paper, Sec. 3.1; CLIP): (image to text L_I, text to image L_T).

    Args:
        image_features: [B, P], L2-normalised.
        text_features: [B, P], L2-normalised; row i belongs to image i.
        scale: exp(logit_scale).
        gather: How the embeddings of other processes take part.
        block_size: Rows of logits held at a time.
    """
    with_gradient = gather == "exact"
    all_images = distributed.gather(image_features.float(), with_gradient=with_gradient)
    all_texts = distributed.gather(text_features.float(), with_gradient=with_gradient)
    batch = len(image_features)
    targets = torch.arange(batch, device=image_features.device) + batch * distributed.rank()
    return (
        cross_entropy_in_blocks(image_features, all_texts, scale, targets, block_size=block_size),
        cross_entropy_in_blocks(text_features, all_images, scale, targets, block_size=block_size),
    )


def simclr_loss(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float = 0.1,
    block_size: int = BLOCK_SIZE,
) -> Tensor:
    """NT-Xent of two views (SimCLR, Eq. 1): each against all others of both views but itself.

    Args:
        first: [B, P], L2-normalised embeddings of the first view.
        second: [B, P], of the second.
        temperature: SimCLR's and SLIP's 0.1.
        block_size: Rows of logits held at a time.
    """
    all_first = distributed.gather(first.float(), with_gradient=True)
    all_second = distributed.gather(second.float(), with_gradient=True)
    columns = torch.cat([all_first, all_second])  # [2G, P]
    batch, total = len(first), len(all_first)
    own = torch.arange(batch, device=first.device) + batch * distributed.rank()
    scale = torch.full((), 1 / temperature, device=columns.device)
    return 0.5 * (
        cross_entropy_in_blocks(
            first, columns, scale, own + total, excluded=own, block_size=block_size
        )
        + cross_entropy_in_blocks(
            second, columns, scale, own, excluded=own + total, block_size=block_size
        )
    )


def mean_over_captions(losses: Tensor, captions: Tensor, *, num_captions: int) -> Tensor:
    """Mean over captions of the mean over each one's masked words (MLM).

    A mean over samples, unlike BERT's over all masked words of a batch: it needs no other
    micro-batch to be exact.

    Args:
        losses: [C], of C masked words.
        captions: Int64 [C], which caption each is in.
        num_captions: Captions in the batch; one without masked words counts as 0.
    """
    counts = losses.new_zeros(num_captions).index_add_(0, captions, torch.ones_like(losses))
    return (losses / counts.index_select(0, captions)).sum() / num_captions


MAX_TOKEN_PAIRS = 2**26
"""Token similarities that late interaction holds at a time."""


def late_interaction_loss(
    image_tokens: Tensor,
    text_tokens: Tensor,
    is_word: Tensor,
    scale: Tensor,
    *,
    gather: Gather = "exact",
    max_token_pairs: int = MAX_TOKEN_PAIRS,
) -> tuple[Tensor, Tensor]:
    """FILIP's contrastive loss (arXiv 2111.07783, Eq. 3 to 5): (image to text, text to image).

    Args:
        image_tokens: [B, N, P], L2-normalised.
        text_tokens: [B, L, P], L2-normalised; L is the same on every rank.
        is_word: [B, L], 1 for words and 0 for padding.
        scale: exp(logit_scale).
        gather: How the tokens of other processes take part.
        max_token_pairs: Similarities held at a time; the backward pass computes them again.
    """
    with_gradient = gather == "exact"
    all_images = distributed.gather(image_tokens, with_gradient=with_gradient)  # [G, N, P]
    all_texts = distributed.gather(text_tokens, with_gradient=with_gradient)  # [G, L, P]
    all_words = distributed.gather(is_word, with_gradient=False)  # [G, L]
    batch, num_tokens, _ = image_tokens.shape
    targets = torch.arange(batch, device=scale.device) + batch * distributed.rank()
    pairs_of_row = len(all_images) * num_tokens * text_tokens.shape[1]
    block_size = max(1, max_token_pairs // pairs_of_row)
    every = image_tokens.new_ones(batch, num_tokens)
    all_every = image_tokens.new_ones(len(all_images), num_tokens)
    losses = []
    for rows, weight, columns, valid in (
        (image_tokens, every, all_texts, all_words),
        (text_tokens, is_word, all_images, all_every),
    ):
        weight = weight / weight.sum(dim=1, keepdim=True)
        total = scale.new_zeros(())
        for start in range(0, batch, block_size):
            part = slice(start, start + block_size)
            arguments = (rows[part], weight[part], columns, valid, scale, targets[part])
            if block_size < batch:
                total = total + checkpoint(_late_rows, *arguments, use_reentrant=False)
            else:
                total = total + _late_rows(*arguments)
        losses.append(total / batch)
    return losses[0], losses[1]


def _late_rows(
    rows: Tensor,  # [b, Q, P]
    weight: Tensor,  # [b, Q], each row sums to 1
    columns: Tensor,  # [G, R, P]
    valid: Tensor,  # [G, R]
    scale: Tensor,
    targets: Tensor,  # [b]
) -> Tensor:
    """Summed cross-entropy of b rows against all G columns."""
    with torch.autocast(rows.device.type, enabled=False):
        pairs = rows.flatten(0, 1) @ columns.flatten(0, 1).T  # [b Q, G R]
        pairs = pairs.view(*rows.shape[:2], *columns.shape[:2])
        best = pairs.masked_fill(valid == 0, float("-inf")).amax(dim=-1)  # [b, Q, G]
        scores = (weight.unsqueeze(-1) * best).sum(dim=1)  # [b, G]
        return F.cross_entropy(scale * scores, targets, reduction="sum")
