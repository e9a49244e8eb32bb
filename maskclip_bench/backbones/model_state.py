"""The tensors of a model: their hash, and whether they are finite."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from maskclip_bench.errors import NonFiniteError


def state_fingerprint(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of a model's tensors, in hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def refuse_nonfinite_weights(model: nn.Module, row: str) -> None:
    """Check all weights. Buffers may be infinite (masks are), but not NaN.

    Raises:
        NonFiniteError: Some are not finite; names them.
    """
    bad = [
        name
        for name, value in model.named_parameters()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    bad += [
        name
        for name, value in model.named_buffers()
        if value.is_floating_point() and bool(torch.isnan(value).any())
    ]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise NonFiniteError(
            f"{row}: {len(bad)} tensors of its weights are not finite (NaN or infinite): "
            f"{', '.join(bad[:5])}{more}. Take the weights from before the training diverged, or "
            "get the file again."
        )
