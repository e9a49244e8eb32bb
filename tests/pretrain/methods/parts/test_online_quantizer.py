"""The online quantizer: heads, centre, teacher, loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from maskclip_bench.pretrain.methods.parts import online_quantizer
from maskclip_bench.pretrain.methods.parts.online_quantizer import (
    TURNS,
    OnlineQuantizer,
    QuantizerConfig,
    QuantizerHead,
    codeword_cross_entropy,
)

CONFIG = QuantizerConfig(num_codewords=10, codeword_hidden_dim=8, codeword_dim=4)


def quantizer(**changes: object) -> OnlineQuantizer:
    torch.manual_seed(0)
    return OnlineQuantizer(6, CONFIG.model_copy(update=changes)).train()


def features(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(seed))


def test_quantizer_head__gives_cosines() -> None:
    head = QuantizerHead(6, CONFIG)
    logits = head(torch.randn(2, 3, 6))
    assert logits.shape == (2, 3, 10)
    assert logits.abs().max() <= 1 + 1e-6
    embedded = head.embed(torch.randn(5, 6))
    torch.testing.assert_close(  # linear: what the centre of the teacher's assignments relies on
        head.logits(embedded.mean(0)), head.logits(embedded).mean(0)
    )
    assert [type(m) for m in head.mlp] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]


@pytest.mark.parametrize("num_rows", [0, 2, 100])
def test_codeword_cross_entropy__equals_plain(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(online_quantizer.BLOCK_ELEMENTS, "cpu", 7 * num_rows)  # 0: one at a time
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 7, generator=generator).requires_grad_()
    teacher = torch.randn(2, 3, 7, generator=generator).requires_grad_()
    center = torch.randn(7, generator=generator)
    ours, assignment, row_perplexity = codeword_cross_entropy(
        student, teacher, center, student_temp=0.1, teacher_temp=0.04
    )
    target = ((teacher - center) / 0.04).softmax(-1).detach()
    plain = -(target * (student / 0.1).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(ours, plain)
    (found,) = torch.autograd.grad(3 * ours, student)
    (expected,) = torch.autograd.grad(3 * plain, student)
    torch.testing.assert_close(found, expected)
    assert teacher.grad is None
    codes = target.flatten(0, 1)
    torch.testing.assert_close(assignment, codes.mean(0))
    entropy = -(codes * (codes + 1e-30).log()).sum(-1)
    torch.testing.assert_close(row_perplexity, entropy.exp().mean())
    assert not assignment.requires_grad


def test_online_quantizer__loss_is_that_of_its_parts() -> None:
    both = quantizer()
    with torch.no_grad():
        both.student.codewords.normal_()
        both.center.normal_()
    predicted = features(1).requires_grad_()
    target = features(2).requires_grad_()
    loss = both.loss(predicted, target)
    codes = ((both.teacher(target) - both.center) / 0.04).softmax(-1)
    plain = -(codes * (both.student(predicted) / 0.1).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss, plain)
    loss.backward()
    assert predicted.grad is not None
    assert target.grad is None
    assert all(p.grad is not None for p in both.student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in both.teacher.parameters())


def test_online_quantizer__centre_follows_the_teacher() -> None:
    both = quantizer(center_momentum=0.75)
    first, second = features(1), features(2)
    both.loss(first, first)
    both.loss(second, second)  # two micro-batches of one step
    assert both.center.abs().sum() == 0
    means = [both.teacher(part).flatten(0, -2).mean(0) for part in (first, second)]
    expected = 0.25 * (means[0] + means[1]) / 2
    both.update(1.0, progress=0.5)
    torch.testing.assert_close(both.center, expected.detach())
    assert both.center_sum.abs().sum() == 0
    both.eval().loss(first, first)
    assert both.num_summed == 0


def test_online_quantizer__no_centre() -> None:
    both = quantizer(center_momentum=1.0)
    both.loss(features(), features())
    both.update(0.5, progress=0.5)
    assert both.center.abs().sum() == 0


def test_online_quantizer__teacher_is_the_moving_average() -> None:
    both = quantizer()
    with torch.no_grad():
        both.student.codewords.add_(1.0)
    expected = 0.9 * both.teacher.codewords + 0.1 * both.student.codewords
    both.loss(features(), features())
    both.update(0.9, progress=0.5)
    torch.testing.assert_close(both.teacher.codewords, expected)


def test_online_quantizer__temperature_warms_up() -> None:
    changes = {"teacher_temp": 0.08, "teacher_temp_start": 0.04, "teacher_temp_warmup": 0.5}
    both = quantizer(**changes)
    found = [float(both.teacher_temp)]
    for progress in (0.25, 0.5, 1.0):
        both.loss(features(), features())
        both.update(1.0, progress=progress)
        found.append(float(both.teacher_temp))
    assert found == pytest.approx([0.04, 0.06, 0.08, 0.08])
    resumed = quantizer(**changes)
    resumed.load_state_dict(both.state_dict())
    assert resumed.teacher_temp == both.teacher_temp
    assert quantizer(teacher_temp=0.08, teacher_temp_warmup=0.0).teacher_temp == torch.tensor(0.08)


@pytest.mark.parametrize(("init", "length"), [("linear", 3**-0.5), ("normal", 16.0)])
def test_quantizer_head__length_of_codewords(init: str, length: float) -> None:
    torch.manual_seed(0)
    config = QuantizerConfig(
        num_codewords=200, codeword_hidden_dim=4, codeword_dim=256, codeword_init=init
    )
    lengths = QuantizerHead(6, config).codewords.detach().norm(dim=1)
    assert float(lengths.mean()) == pytest.approx(length, rel=0.02)


def test_online_quantizer__health() -> None:
    both = quantizer(teacher_temp_warmup=0.0)
    first, second = features(1), features(2)
    both.loss(first, first)
    both.loss(second, second)
    logits = torch.cat([both.teacher(first), both.teacher(second)]).flatten(0, 1)
    codes = (logits / 0.07).softmax(-1)
    with torch.no_grad():  # turn every codeword by 10 degrees, towards a direction at right angles
        codewords = both.student.codewords
        other = torch.randn(codewords.shape)
        other -= (
            (other * codewords).sum(1, keepdim=True)
            / codewords.square().sum(1, keepdim=True)
            * codewords
        )
        other *= codewords.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
        codewords += math.tan(math.radians(10)) * other
    found = both.update(1.0, progress=0.5)
    mean = codes.mean(0)
    used = (-(mean * mean.log()).sum()).exp()
    torch.testing.assert_close(found["codeword_perplexity"], used.detach())
    rows = (-(codes * codes.log()).sum(-1)).exp().mean()
    torch.testing.assert_close(found["codeword_row_perplexity"], rows.detach())
    assert float(found["codeword_turn_degrees"]) == pytest.approx(10, rel=1e-4)
    both.loss(first, first)
    assert float(both.update(1.0, progress=0.5)["codeword_turn_degrees"]) == 0


def test_online_quantizer__turn_after_a_checkpoint_is_loaded() -> None:
    trained, resumed = quantizer(), quantizer()
    with torch.no_grad():
        trained.student.codewords.normal_()
    resumed.load_state_dict(trained.state_dict())
    resumed.loss(features(), features())
    assert float(resumed.update(1.0, progress=0.5)["codeword_turn_degrees"]) == 0


def test_online_quantizer__warns_once_when_it_gives_no_signal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = {"codeword_perplexity": 8.0, "codeword_row_perplexity": 3.0}
    collapsed = {"codeword_perplexity": 1.0, "codeword_row_perplexity": 1.0}
    indifferent = {"codeword_perplexity": 10.0, "codeword_row_perplexity": 9.9}
    both = quantizer()
    both.warn(good, step=50, total_steps=100)
    both.warn(collapsed, step=1, total_steps=100)
    assert not caplog.records
    both.warn(collapsed, step=50, total_steps=100)
    both.warn(collapsed, step=60, total_steps=100)
    assert len(caplog.records) == 1
    assert "of 10 codewords, 1.0 are used" in caplog.text
    quantizer().warn(indifferent, step=50, total_steps=100)
    assert "a patch is spread over 9.9" in caplog.text
    caplog.clear()


def test_online_quantizer__warns_when_its_codewords_hardly_move(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the mean of enough steps with a high learning rate."""
    good = {"codeword_perplexity": 8.0, "codeword_row_perplexity": 3.0}
    moving, dead = ({**good, "codeword_turn_degrees": turn} for turn in (0.06, 0.04))

    def watched(values: dict[str, float], *, num_steps: int = TURNS, lr_share: float = 1.0) -> str:
        caplog.clear()
        both = quantizer()
        for step in range(50, 50 + num_steps):
            both.warn(values, step=step, total_steps=100, lr_share=lr_share)
        return caplog.text

    assert watched(moving) == ""
    assert "its codewords turn by at most 4 degrees in the whole run" in watched(dead)
    assert watched(dead, num_steps=TURNS - 1) == ""
    assert watched(dead, lr_share=0.4) == ""  # the end of a run
    assert watched(good) == ""  # FSDP2 does not know it at first
    caplog.clear()
    both = quantizer()
    for step in range(TURNS):  # a mean: some steps may be small
        both.warn(moving if step % 10 else dead, step=50 + step, total_steps=100)
    assert caplog.text == ""


def test_online_quantizer__centre_of_heads_in_bf16() -> None:
    """FSDP2 gathers weights in bf16: the centre is still that of the float32 arithmetic."""
    exact, rounded = quantizer(), quantizer()
    rounded.student.to(torch.bfloat16)
    rounded.teacher.to(torch.bfloat16)
    many = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
    for both in (exact, rounded):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            both.loss(many, many).backward()
    assert rounded.center_sum.dtype == torch.float32
    torch.testing.assert_close(rounded.center_sum, exact.center_sum, rtol=0, atol=1e-3)
    assert exact.center_sum.abs().max() > 0.03
