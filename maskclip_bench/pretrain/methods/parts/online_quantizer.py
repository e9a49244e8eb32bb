"""The online quantizer: patch features -> soft assignment over learned codewords."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**25}
"""Probabilities (rows x codewords) that exist at one time: on a CPU as many as its caches hold."""


class CodewordHead(nn.Module):
    """MLP, bottleneck, and cosine similarity to K codewords (iBOT's and DINO's head).

    Args:
        input_dim: Width of the features.
        hidden_dim: Width of the MLP.
        bottleneck_dim: Width in which codewords live.
        num_codewords: K.
        depth: Linear layers of the MLP; DINO's is 3.
    """

    def __init__(
        self,
        *,
        input_dim: int,
        hidden_dim: int,
        bottleneck_dim: int,
        num_codewords: int,
        depth: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = input_dim
        for _ in range(depth - 1):
            layers += [nn.Linear(width, hidden_dim), nn.GELU()]
            width = hidden_dim
        self.mlp = nn.Sequential(*layers, nn.Linear(width, bottleneck_dim))
        self.codewords = nn.Parameter(torch.empty(num_codewords, bottleneck_dim))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.codewords)

    def forward(self, features: Tensor) -> Tensor:
        """Features [..., D] -> cosine similarities to the codewords [..., K]."""
        return self.similarities(self.directions(features))

    def directions(self, features: Tensor) -> Tensor:
        """Features [..., D] -> unit vectors in the bottleneck."""
        return F.normalize(self.mlp(features), dim=-1)

    def similarities(self, directions: Tensor) -> Tensor:
        """Vectors in the bottleneck -> products with the K unit codewords, [..., K]; linear.

        Codewords are normalized in float32 and then take the vectors' type, since weights may be
        in 16 bits (FSDP2) where the vectors are not.
        """
        codewords = F.normalize(self.codewords.float(), dim=-1)
        return F.linear(directions, codewords.to(directions.dtype))


class _CodewordCrossEntropy(torch.autograd.Function):
    """Cross-entropy of two soft assignments; distributions are made and dropped in blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,  # [R, K], similarities
        teacher: Tensor,  # [R, K], similarities
        center: Tensor,  # [K]
        student_temp: float,
        teacher_temp: float,
    ) -> Tensor:
        num_rows, num_codewords = student.shape
        elements = BLOCK_ELEMENTS.get(student.device.type, BLOCK_ELEMENTS["cuda"])
        block_size = max(1, elements // num_codewords)
        total = student.new_zeros((), dtype=torch.float32)
        grad = torch.empty_like(student)
        for start in range(0, num_rows, block_size):
            part = slice(start, start + block_size)
            target = ((teacher[part] - center) / teacher_temp).softmax(dim=-1, dtype=torch.float32)
            log_probability = (student[part].float() / student_temp).log_softmax(dim=-1)
            total -= torch.dot(target.flatten(), log_probability.flatten())
            grad[part] = log_probability.exp_().sub_(target).div_(student_temp * num_rows)
        ctx.save_for_backward(grad)
        return total / num_rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss.to(grad.dtype), None, None, None, None


def codeword_cross_entropy(
    student: Tensor, teacher: Tensor, center: Tensor, *, student_temp: float, teacher_temp: float
) -> Tensor:
    """Mean over patches of -sum_k p_k log q_k: p the teacher's soft assignment, q the student's.

    p = softmax((t - c) / teacher_temp), q = softmax(s / student_temp).

    Args:
        student: Similarities s to the codewords [..., K].
        teacher: Similarities t [..., K]; no gradient flows to it.
        center: c [K], subtracted so that no codeword takes all (DINO, arXiv 2104.14294).
        student_temp: Softmax temperature.
        teacher_temp: Likewise; lower, so that targets are sharp.
    """
    return _CodewordCrossEntropy.apply(
        student.flatten(0, -2), teacher.detach().flatten(0, -2), center, student_temp, teacher_temp
    )
