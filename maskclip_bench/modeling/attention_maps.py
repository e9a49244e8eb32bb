"""What the last block of a ViT attends to, as a map over the patches.

The fused kernels never make the attention matrix. Hooks read it where a block makes one, or read
the queries and keys and make it; the weights and the forward pass stay as they are.

B images, H heads, T tokens (prefix and patches), N patches, d width of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.vit import OpenClipViT, ViT, vit_parts

CLASS_TOKEN = "attention of the class token in the last block, mean over heads"
ALL_PATCHES = "attention that a patch receives from all patches in the last block, mean over heads"


def pooled_attention(trunk: nn.Module, images: Tensor) -> tuple[Tensor, str]:
    """How much the pooled image feature attends to each patch -> ([B, N], whose attention it is).

    A trunk that pools its class token has one row of attention for it. A trunk that averages its
    patches has no such row: the mean over the rows of all patches takes its place.

    Args:
        trunk: A ViT of timm or open_clip.
        images: [B, 3, S, S], normalized, of the trunk's own size.

    Returns:
        Each map sums to 1; and one of `CLASS_TOKEN`, `ALL_PATCHES`.

    Raises:
        ConfigError: The trunk is no plain ViT, or its last block shows no attention.
    """
    vit = vit_parts(trunk)
    weights = last_attention(vit, images).float().mean(dim=1)  # [B, T, T]
    num_prefix = vit.num_prefix_tokens
    has_class_token = num_prefix > 0 and getattr(trunk, "global_pool", "token") == "token"
    rows = weights[:, 0] if has_class_token else weights[:, num_prefix:].mean(dim=1)  # [B, T]
    patches = rows[:, num_prefix:]
    total = patches.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return patches / total, CLASS_TOKEN if has_class_token else ALL_PATCHES


def last_attention(vit: ViT, images: Tensor) -> Tensor:
    """Softmax weights of the last block, [B, H, T, T].

    Raises:
        ConfigError: Its attention is of a kind that shows none.
    """
    block: Any = vit.blocks[-1]
    attention = block.attn
    seen: dict[str, Any] = {}
    hooks = _open_clip_hooks if isinstance(vit, OpenClipViT) else _timm_hooks
    with torch.no_grad(), hooks(attention, seen):
        vit.whole(images)
    if "weights" in seen:
        return seen["weights"]
    if "query" in seen and "key" in seen:
        scores = seen["query"] * seen["query"].shape[-1] ** -0.5 @ seen["key"].transpose(-2, -1)
        return scores.softmax(dim=-1)
    raise ConfigError(
        f"{type(attention).__name__} in the last block shows no attention weights. Use a ViT whose "
        "blocks are timm's or open_clip's own."
    )


@contextlib.contextmanager
def _open_clip_hooks(attention: Any, seen: dict[str, Any]) -> Iterator[None]:
    """Ask torch's multi-head attention for the weights of each head."""

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen["weights"] = output[1]

    handles = [
        attention.register_forward_pre_hook(ask, with_kwargs=True),
        attention.register_forward_hook(keep),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _timm_hooks(attention: Any, seen: dict[str, Any]) -> Iterator[None]:
    """Read the weights where timm drops some of them; else queries and keys after their norms."""

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any = None) -> None:
            seen[name] = args[0] if output is None else output

        return hook

    handles = []
    if isinstance(getattr(attention, "attn_drop", None), nn.Module):
        handles.append(attention.attn_drop.register_forward_pre_hook(keep("weights")))
    for name, part in (("query", "q_norm"), ("key", "k_norm")):
        if isinstance(getattr(attention, part, None), nn.Module):
            handles.append(getattr(attention, part).register_forward_hook(keep(name)))
    fused = getattr(attention, "fused_attn", None)
    if fused is not None:
        attention.fused_attn = False
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if fused is not None:
            attention.fused_attn = fused
