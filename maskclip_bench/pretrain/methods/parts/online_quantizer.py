"""The online quantizer: patch features -> soft assignment over codewords that are learned.

Student and teacher have a head each, of the same shape (iBOT, arXiv 2111.07832; DINO, arXiv
2104.14294): the teacher's is a moving average of the student's. A centre, the running mean of the
teacher's logits, is subtracted from them, so that no codeword takes all patches. The loss is the
cross-entropy of the two soft assignments (paper, Sec. 3.3).

R rows (patches of all images), K codewords, D width of the features.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maskclip_bench import distributed
from maskclip_bench.config import Declaration
from maskclip_bench.pretrain.methods.teacher import ema_update, frozen_copy

logger = logging.getLogger(__name__)

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
    codeword_init: Literal["linear", "normal"] = "linear"
    """How long codewords start. They are normalized before use, so their length decides only how
    far a step of the optimizer turns them. linear: as the rows of `nn.Linear`, about 0.58 (iBOT's
    and DetailCLIP's). normal: a standard normal, 16 for 256 dimensions: they turn 28 times less."""
    student_temp: float = Field(default=0.1, gt=0)
    """Student's softmax temperature; iBOT's, DetailCLIP's and RILS's."""
    teacher_temp: float = Field(default=0.07, gt=0)
    """Teacher's softmax temperature after its warm-up; iBOT's and DetailCLIP's for patches (RILS:
    0.04 all the time)."""
    teacher_temp_start: float = Field(default=0.04, gt=0)
    """Teacher's temperature at the start; iBOT's and DetailCLIP's."""
    teacher_temp_warmup: float = Field(default=0.04, ge=0, le=1)
    """Share of the run in which it goes from the one to the other, linearly; DetailCLIP's 1 of 25
    epochs. With 0 it is `teacher_temp` from the start."""
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
        if config.codeword_init == "normal":
            nn.init.normal_(self.codewords)
        else:
            nn.init.kaiming_uniform_(self.codewords, a=math.sqrt(5))  # nn.Linear's

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
    """Both heads, the centre, the teacher's temperature, and the loss.

    Args:
        input_dim: D.
        config: Sizes, temperatures, the centre's momentum.
    """

    center: Tensor  # [K]
    teacher_temp: Tensor
    # Summed over the micro-batches of a step:
    num_summed: Tensor
    center_sum: Tensor  # [K], of the mean logits of the teacher
    assignment_sum: Tensor  # [K], of its mean assignment
    row_perplexity_sum: Tensor
    codewords_before: Tensor  # [K, width], the student's, before the optimizer's step

    def __init__(self, input_dim: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.student = QuantizerHead(input_dim, config)
        self.teacher: QuantizerHead = frozen_copy(self.student)
        num_codewords = config.num_codewords
        self.register_buffer("center", torch.zeros(num_codewords))
        self.register_buffer("teacher_temp", torch.tensor(self._temperature(0.0)))
        for name in ("center_sum", "assignment_sum"):
            self.register_buffer(name, torch.zeros(num_codewords), persistent=False)
        for name in ("row_perplexity_sum", "num_summed"):
            self.register_buffer(name, torch.zeros(()), persistent=False)
        codewords = self.student.codewords.detach().clone()
        self.register_buffer("codewords_before", codewords, persistent=False)
        self.register_load_state_dict_post_hook(_remember_codewords)
        self._turns: deque[float] = deque(maxlen=TURNS)  # at full learning rate, degrees
        self._has_warned = False

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the soft assignments of predictions and targets, both [..., D]."""
        loss, assignment, row_perplexity = codeword_cross_entropy(
            self.student(predicted),
            self._teacher_logits(target),
            self.center,
            student_temp=self.config.student_temp,
            teacher_temp=self.teacher_temp,
        )
        if self.training:
            self.assignment_sum += assignment
            self.row_perplexity_sum += row_perplexity
        return loss

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
            self.num_summed += 1
        return self.teacher.logits(embedded)

    @torch.no_grad()
    def update(self, ema_momentum: float, *, progress: float) -> dict[str, float | Tensor]:
        """After the optimizer's step: move the centre, the teacher's head and its temperature.

        Args:
            ema_momentum: Teacher = momentum * teacher + (1 - momentum) * student.
            progress: Share of the run that is done.

        Returns:
            Its health. `codeword_perplexity`: of the teacher's mean assignment, K if all codewords
            are used alike, 1 if one takes all. `codeword_row_perplexity`: the mean over patches,
            K where the assignment says nothing. `codeword_turn_degrees`: the mean angle by which
            the step turned the student's codewords.
        """
        sums = torch.cat(
            [self.center_sum, self.assignment_sum, self.row_perplexity_sum.unsqueeze(0)]
        )
        means = distributed.all_reduce_mean(sums / self.num_summed.clamp(min=1))
        num_codewords = self.config.num_codewords
        center, assignment, row_perplexity = means.split([num_codewords, num_codewords, 1])
        self.center.lerp_(center, 1 - self.config.center_momentum)
        for buffer in (
            self.center_sum, self.assignment_sum, self.row_perplexity_sum, self.num_summed
        ):  # fmt: skip
            buffer.zero_()
        ema_update(self.teacher, self.student, ema_momentum)
        self.teacher_temp.fill_(self._temperature(progress))
        values: dict[str, float | Tensor] = {
            "codeword_perplexity": torch.special.entr(assignment).sum().exp(),
            "codeword_row_perplexity": row_perplexity.squeeze(0),
        }
        turn = _mean_angle(self.student.codewords.detach(), self.codewords_before)
        if turn is not None:
            values["codeword_turn_degrees"] = turn
        self.remember_codewords()
        return values

    def remember_codewords(self) -> None:
        """The next step turns the codewords from where they are now."""
        codewords = self.student.codewords.detach()
        if type(codewords) is type(self.codewords_before):
            self.codewords_before.copy_(codewords)
        else:  # FSDP2 has sharded them since
            self.codewords_before = codewords.clone()

    def warn(
        self, values: Mapping[str, float], *, step: int, total_steps: int, lr_share: float = 1.0
    ) -> None:
        """Log one warning if the quantizer says nothing: collapsed, indifferent, or dead.

        Dead is judged by the last `TURNS` steps of a high learning rate, so neither in the warm-up
        nor at the end of a run, where nothing is meant to move.

        Args:
            values: What `update` gave after that step, which is not of the warm-up.
            step: Steps done.
            total_steps: Steps of the run.
            lr_share: The step's learning rate, as a share of the highest.
        """
        if lr_share >= HIGH_RATE and "codeword_turn_degrees" in values:
            self._turns.append(values["codeword_turn_degrees"])
        if self._has_warned or step < WARN_FROM * total_steps or not distributed.is_main():
            return
        num_codewords = self.config.num_codewords
        used, row = values["codeword_perplexity"], values["codeword_row_perplexity"]
        turn = math.inf if len(self._turns) < TURNS else fmean(self._turns) * total_steps
        if used < COLLAPSED or row > INDIFFERENT * num_codewords:
            self._has_warned = True
            logger.warning(
                "The online quantizer gives hardly any signal: of %d codewords, %.1f are used, and "
                "a patch is spread over %.1f. Lower teacher_temp if patches are spread over all; "
                "lower center_momentum or the learning rate if few codewords are used.",
                num_codewords,
                used,
                row,
            )
        elif turn < DEAD_DEGREES:
            self._has_warned = True
            logger.warning(
                "The online quantizer hardly moves: at this pace its codewords turn by at most "
                "%.2g degrees in the whole run, so that it stays as it was drawn. Set "
                "codeword_init: linear, or raise the learning rate.",
                turn,
            )

    def _temperature(self, progress: float) -> float:
        """The teacher's temperature after a share of the run."""
        config = self.config
        if progress >= config.teacher_temp_warmup:
            return config.teacher_temp
        share = progress / config.teacher_temp_warmup
        return config.teacher_temp_start + share * (config.teacher_temp - config.teacher_temp_start)


WARN_FROM = 0.1
"""Share of the run before which a quantizer may be anything."""
COLLAPSED = 1.5
"""Perplexity of the mean assignment below which one codeword takes nearly all patches."""
TURNS = 20
"""Steps over which a turn is averaged before it is judged."""
HIGH_RATE = 0.5
"""Share of the highest learning rate from which a turn counts."""
DEAD_DEGREES = 5.0
"""Angle that a codeword goes in a whole run, below which the quantizer is as good as fixed."""
INDIFFERENT = 0.95
"""Row perplexity, as a share of the codewords, above which an assignment says nothing."""


def _remember_codewords(module: nn.Module, incompatible: Any) -> None:
    """After a checkpoint is loaded."""
    assert isinstance(module, OnlineQuantizer)
    module.remember_codewords()


def _mean_angle(now: Tensor, before: Tensor) -> Tensor | None:
    """Mean angle in degrees between rows of two [K, W]; None if only one of them is sharded."""
    if type(now) is not type(before):
        return None  # FSDP2 has sharded the codewords since: known from the next step on
    chord = (F.normalize(now.float(), dim=-1) - F.normalize(before.float(), dim=-1)).norm(dim=-1)
    angle = torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1))).mean()
    whole: Any = angle
    return whole.full_tensor() if hasattr(whole, "full_tensor") else angle


class _CodewordCrossEntropy(torch.autograd.Function):
    """Cross-entropy of two soft assignments; distributions are made and dropped in blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,  # [R, K], logits
        teacher: Tensor,  # [R, K], logits
        center: Tensor,  # [K]
        student_temp: float,
        teacher_temp: float | Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_rows, num_codewords = student.shape
        elements = BLOCK_ELEMENTS.get(student.device.type, BLOCK_ELEMENTS["cuda"])
        block_size = max(1, elements // num_codewords)
        total = student.new_zeros((), dtype=torch.float32)
        assignment = student.new_zeros(num_codewords, dtype=torch.float32)
        row_perplexity = torch.zeros_like(total)
        grad = torch.empty_like(student)
        for start in range(0, num_rows, block_size):
            part = slice(start, start + block_size)
            target = ((teacher[part] - center) / teacher_temp).softmax(dim=-1, dtype=torch.float32)
            log_probability = (student[part].float() / student_temp).log_softmax(dim=-1)
            total -= torch.dot(target.flatten(), log_probability.flatten())
            assignment += target.sum(0)
            row_perplexity += torch.special.entr(target).sum(-1).exp().sum()
            grad[part] = log_probability.exp_().sub_(target).div_(student_temp * num_rows)
        ctx.save_for_backward(grad)
        assignment /= num_rows
        row_perplexity /= num_rows
        ctx.mark_non_differentiable(assignment, row_perplexity)
        return total / num_rows, assignment, row_perplexity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss.to(grad.dtype), None, None, None, None


def codeword_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    *,
    student_temp: float,
    teacher_temp: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over patches of -sum_k p_k log q_k: p the teacher's soft assignment, q the student's.

    p = softmax((t - c) / teacher_temp), q = softmax(s / student_temp).

    Args:
        student: Logits s of the codewords [..., K].
        teacher: Logits t [..., K]; no gradient flows to it.
        center: c [K], subtracted so that no codeword takes all (DINO, arXiv 2104.14294).
        student_temp: Softmax temperature.
        teacher_temp: Likewise; lower, so that targets are sharp.

    Returns:
        The loss; and without gradient the mean over patches of p [K], and of its perplexity [].
    """
    return _CodewordCrossEntropy.apply(
        student.flatten(0, -2), teacher.detach().flatten(0, -2), center, student_temp, teacher_temp
    )
