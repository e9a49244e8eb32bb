from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip_bench.modeling.losses import (
    contrastive_loss,
    late_interaction_loss,
    mean_over_captions,
    simclr_loss,
)


def embeddings(*shape: int, seed: int) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values, dim=-1).requires_grad_()


def assert_same(ours: Tensor, plain: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(ours, inputs, retain_graph=True)
    expected = torch.autograd.grad(plain, inputs, retain_graph=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
def test_contrastive_loss__blocks_equal_plain(block_size: int) -> None:
    images, texts = embeddings(7, 5, seed=0), embeddings(7, 5, seed=1)
    scale = torch.tensor(14.3, requires_grad=True)
    ours = contrastive_loss(images, texts, scale, block_size=block_size)
    logits = scale * images @ texts.T
    targets = torch.arange(7)
    plain = (F.cross_entropy(logits, targets), F.cross_entropy(logits.T, targets))
    for one, other in zip(ours, plain, strict=True):
        assert_same(one, other, images, texts, scale)


def test_contrastive_loss__gradcheck() -> None:
    images, texts = embeddings(4, 3, seed=0), embeddings(4, 3, seed=1)
    step = 1e-2
    loss = sum(contrastive_loss(images, texts, torch.tensor(2.0), block_size=2))
    (gradient,) = torch.autograd.grad(loss, images)
    shift = torch.zeros_like(images)
    shift[1, 2] = step
    with torch.no_grad():
        up = sum(contrastive_loss(images + shift, texts, torch.tensor(2.0)))
        down = sum(contrastive_loss(images - shift, texts, torch.tensor(2.0)))
    assert float((up - down) / (2 * step)) == pytest.approx(float(gradient[1, 2]), rel=1e-2)


def test_contrastive_loss__is_float32_under_autocast() -> None:
    images, texts = embeddings(6, 5, seed=0), embeddings(6, 5, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        low = contrastive_loss(images.bfloat16(), texts.bfloat16(), torch.tensor(10.0))[0]
    plain = contrastive_loss(
        images.bfloat16().float(), texts.bfloat16().float(), torch.tensor(10.0)
    )
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, plain[0])


def slip_formula(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent as SLIP's code computes it: two matrices with the diagonal taken out by -1e9."""
    batch = len(first)
    labels, eye = torch.arange(batch), torch.eye(batch) * 1e9
    aa = first @ first.T / temperature - eye
    bb = second @ second.T / temperature - eye
    ab = first @ second.T / temperature
    ba = second @ first.T / temperature
    loss_a = F.cross_entropy(torch.cat([ab, aa], dim=1), labels)
    loss_b = F.cross_entropy(torch.cat([ba, bb], dim=1), labels)
    return (loss_a + loss_b) / 2


def simclr_formula(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR, Eq. 1, one pair at a time."""
    views = torch.cat([first, second])
    total, batch = torch.zeros(()), len(first)
    for i in range(2 * batch):
        j = (i + batch) % (2 * batch)
        others = [k for k in range(2 * batch) if k != i]
        similarities = torch.stack([views[i] @ views[k] for k in others]) / temperature
        total = total - (views[i] @ views[j] / temperature - similarities.logsumexp(0))
    return total / (2 * batch)


@pytest.mark.parametrize("block_size", [2, 100])
@pytest.mark.parametrize("formula", [slip_formula, simclr_formula])
def test_simclr_loss__equals_the_formula(formula: object, block_size: int) -> None:
    first, second = embeddings(5, 6, seed=0), embeddings(5, 6, seed=1)
    ours = simclr_loss(first, second, temperature=0.1, block_size=block_size)
    assert_same(ours, formula(first, second, 0.1), first, second)  # type: ignore[operator]


def filip_formula(
    images: Tensor, texts: Tensor, is_word: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """FILIP, Eq. 3 to 5, one image and one caption at a time."""
    batch = len(images)
    image_to_text, text_to_image = torch.zeros(batch, batch), torch.zeros(batch, batch)
    for i in range(batch):
        for j in range(batch):
            pairs = images[i] @ texts[j][is_word[j].bool()].T  # [N, words]
            image_to_text[i, j] = pairs.max(dim=1).values.mean()
            text_to_image[j, i] = pairs.max(dim=0).values.mean()
    targets = torch.arange(batch)
    return (
        F.cross_entropy(scale * image_to_text, targets),
        F.cross_entropy(scale * text_to_image, targets),
    )


@pytest.mark.parametrize("max_token_pairs", [1, 150, 10**6])
def test_late_interaction_loss__equals_the_formula(max_token_pairs: int) -> None:
    images, texts = embeddings(4, 5, 6, seed=0), embeddings(4, 3, 6, seed=1)
    is_word = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    scale = torch.tensor(9.0, requires_grad=True)
    ours = late_interaction_loss(images, texts, is_word, scale, max_token_pairs=max_token_pairs)
    plain = filip_formula(images, texts, is_word, scale)
    for one, other in zip(ours, plain, strict=True):
        assert_same(one, other, images, texts, scale)


def test_mean_over_captions() -> None:
    losses = torch.rand(4, generator=torch.Generator().manual_seed(0))
    captions = torch.tensor([0, 0, 0, 2])
    expected = (losses[:3].mean() + 0 + losses[3]) / 3
    torch.testing.assert_close(mean_over_captions(losses, captions, num_captions=3), expected)
    assert float(mean_over_captions(losses[:0], captions[:0], num_captions=3)) == 0
