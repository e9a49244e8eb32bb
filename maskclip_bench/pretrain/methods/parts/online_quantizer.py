"""The online quantizer: patch features -> soft assignment over codewords that are learned.

Student and teacher have a head each, of the same shape (iBOT, arXiv 2111.07832; DINO, arXiv
2104.14294): the teacher's is a moving average of the student's. A centre, the running mean of the
teacher's logits, is subtracted from them, so that no codeword takes all patches. The loss is the
cross-entropy of the two soft assignments (paper, Sec. 3.3).

R rows (patches of all images), K codewords, D width of the features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maskclip_bench import distributed
from maskclip_bench.config import Declaration
from maskclip_bench.pretrain.methods.teacher import ema_update, frozen_copy

BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**25}
"""Probabilities (rows x codewords) that exist at one time: on a CPU as many as its caches hold."""


class QuantizerConfig(Declaration):
    """Fields of every method with an online quantizer; unknown in MaskCLIP unless said."""

    num_codewords: int = Field(default=8192, ge=2)
    """K; iBOT's and DetailCLIP's (BEiT's vocabulary has 8192 too)."""
    codeword_hidden_dim: int = Field(default=2048, ge=1)
    """Width of the heads' MLP; iBOT's and DetailCLIP's."""
    codeword_dim: int = Field(default=256, ge=1)
    """Width of a codeword; iBOT's and DetailCLIP's."""
    codeword_depth: int = Field(default=3, ge=1)
    """Linear layers of the heads' MLP; iBOT's and DetailCLIP's."""
    student_temp: float = Field(default=0.1, gt=0)
    """Student's softmax temperature; iBOT's, DetailCLIP's and RILS's."""
    teacher_temp: float = Field(default=0.04, gt=0)
    """Teacher's softmax temperature; RILS's and iBOT's first."""
    center_momentum: float = Field(default=0.9, ge=0, le=1)
    """Of the centre, per step; iBOT's and DetailCLIP's. With 1 nothing is subtracted."""


class QuantizerHead(nn.Module):
    """MLP, bottleneck, and cosine similarity to K codewords.

    Args:
        input_dim: D.
        config: Sizes.
    """

    def __init__(self, input_dim: int, config: QuantizerConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = input_dim
        for _ in range(config.codeword_depth - 1):
            layers += [nn.Linear(width, config.codeword_hidden_dim), nn.GELU()]
            width = config.codeword_hidden_dim
        self.mlp = nn.Sequential(*layers, nn.Linear(width, config.codeword_dim))
        self.codewords = nn.Parameter(torch.empty(config.num_codewords, config.codeword_dim))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.codewords)

    def forward(self, features: Tensor) -> Tensor:
        """Features [..., D] -> logits, cosine similarities to the codewords [..., K]."""
        return self.logits(self.embed(features))

    def embed(self, features: Tensor) -> Tensor:
        """Features [..., D] -> unit vectors in the bottleneck."""
        return F.normalize(self.mlp(features), dim=-1)

    def logits(self, embedded: Tensor) -> Tensor:
        """Vectors in the bottleneck -> products with the K unit codewords, [..., K]; linear.

        Codewords are normalized in float32 and then take the vectors' type, since weights may be
        in 16 bits (FSDP2) where the vectors are not.
        """
        codewords = F.normalize(self.codewords.float(), dim=-1)
        return F.linear(embedded, codewords.to(embedded.dtype))


class OnlineQuantizer(nn.Module):
    """Both heads, the centre, and the loss.

    Args:
        input_dim: D.
        config: Sizes, temperatures, the centre's momentum.
    """

    center: Tensor  # [K]
    center_sum: Tensor  # [K], of the mean logits of the micro-batches of a step
    center_count: Tensor

    def __init__(self, input_dim: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.student = QuantizerHead(input_dim, config)
        self.teacher: QuantizerHead = frozen_copy(self.student)
        self.register_buffer("center", torch.zeros(config.num_codewords))
        self.register_buffer("center_sum", torch.zeros(config.num_codewords), persistent=False)
        self.register_buffer("center_count", torch.zeros(()), persistent=False)

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the soft assignments of predictions and targets, both [..., D]."""
        return codeword_cross_entropy(
            self.student(predicted),
            self._teacher_logits(target),
            self.center,
            student_temp=self.config.student_temp,
            teacher_temp=self.config.teacher_temp,
        )

    @torch.no_grad()
    def _teacher_logits(self, target: Tensor) -> Tensor:
        """[..., D] -> [..., K]; in training their mean is added to what moves the centre.

        Logits are linear in the embedding, so their mean is that of the mean embedding. It is taken
        in float32 outside of autocast, whose rounding is as large as the centre's differences.
        """
        embedded = self.teacher.embed(target)
        if self.training:
            mean = embedded.flatten(0, -2).mean(0, dtype=torch.float32)
            with torch.autocast(mean.device.type, enabled=False):
                self.center_sum += self.teacher.logits(mean)
            self.center_count += 1
        return self.teacher.logits(embedded)

    @torch.no_grad()
    def update(self, ema_momentum: float) -> None:
        """After the optimizer's step: move the centre and the teacher's head.

        Args:
            ema_momentum: Teacher = momentum * teacher + (1 - momentum) * student.
        """
        mean = distributed.all_reduce_mean(self.center_sum / self.center_count.clamp(min=1))
        self.center.lerp_(mean, 1 - self.config.center_momentum)
        self.center_sum.zero_()
        self.center_count.zero_()
        ema_update(self.teacher, self.student, ema_momentum)


class _CodewordCrossEntropy(torch.autograd.Function):
    """Cross-entropy of two soft assignments; distributions are made and dropped in blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,  # [R, K], logits
        teacher: Tensor,  # [R, K], logits
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
        student: Logits s of the codewords [..., K].
        teacher: Logits t [..., K]; no gradient flows to it.
        center: c [K], subtracted so that no codeword takes all (DINO, arXiv 2104.14294).
        student_temp: Softmax temperature.
        teacher_temp: Likewise; lower, so that targets are sharp.
    """
    return _CodewordCrossEntropy.apply(
        student.flatten(0, -2), teacher.detach().flatten(0, -2), center, student_temp, teacher_temp
    )
