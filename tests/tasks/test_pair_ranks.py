"""Ranks of both directions are those of exact scores, however near they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskclip_bench.errors import DataError, NonFiniteError
from maskclip_bench.tasks import pair_ranks
from maskclip_bench.tasks.metrics import Ranks, retrieval_chance
from maskclip_bench.tasks.pair_ranks import retrieval_ranks

OWNER = [0, 0, 1, 1, 2, 2, 3, 3]

PERFECT = [
    [0.0, 0.0, 0.1, 0.5, 0.1, 0.2, 0.5, 0.1],
    [0.5, 0.4, 0.0, 0.0, 0.4, 0.2, 0.6, 0.4],
    [0.5, 0.4, 0.1, 0.5, 0.0, 0.0, 0.8, 0.3],
    [0.5, 0.4, 0.1, 0.5, 0.3, 0.2, 0.0, 0.0],
]
IMAGE_TO_TEXT = [
    [0.8, 0.8, 0.1, 0.5, 0.1, 0.2, 0.5, 0.1],
    [0.5, 0.4, 0.0, 0.0, 0.4, 0.2, 0.6, 0.4],
    [0.5, 0.4, 0.1, 0.5, 0.0, 0.8, 0.8, 0.3],
    [0.5, 0.4, 0.1, 0.5, 0.4, 0.2, 0.3, 0.3],
]
TEXT_TO_IMAGE = [[0.8, 0.8, 0.1, 0.5, 0.1, 0.2, 0.1, 0.1], *IMAGE_TO_TEXT[1:]]
"""Distances of 4 images to 8 texts, and the recalls below: big_vision's test of its evaluator."""


def plain_ranks(images: Tensor, texts: Tensor, owner: Sequence[int]) -> tuple[Ranks, Ranks]:
    """One pair after the other, in sums without rounding."""
    scores = np.array(
        [[math.fsum(x * y) for y in texts.double().numpy()] for x in images.double().numpy()]
    )
    right = np.array(owner) == np.arange(len(images))[:, None]  # [I, T]

    def counted(scores: np.ndarray, right: np.ndarray) -> Ranks:
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        return Ranks(
            better=((scores > best) & ~right).sum(axis=1),
            tied=((scores == best) & ~right).sum(axis=1),
            best=((scores == best) & right).sum(axis=1),
        )

    return counted(scores, right), counted(scores.T, right.T)


def assert_as_plain(images: Tensor, texts: Tensor, owner: Sequence[int], **options: int) -> None:
    found = retrieval_ranks(images, texts, owner, **options)
    for ours, plain in zip(found, plain_ranks(images, texts, owner), strict=True):
        for name in ("better", "tied", "best"):
            assert getattr(ours, name).tolist() == getattr(plain, name).tolist(), name


def on_the_sphere(generator: np.random.Generator, center: np.ndarray, spread: float) -> Tensor:
    vectors = center + spread * generator.normal(size=center.shape)
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).float()


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    num_images=st.integers(1, 9),
    more=st.integers(0, 12),
    width=st.integers(1, 4),
    block=st.integers(1, 9),
)
def test_small_whole_numbers_with_many_ties(
    data: st.DataObject, num_images: int, more: int, width: int, block: int
) -> None:
    """Products of small integers are exact, so that different vectors tie, too."""
    extra = data.draw(st.lists(st.integers(0, num_images - 1), min_size=more, max_size=more))
    owner = data.draw(st.permutations([*range(num_images), *extra]))
    seed = data.draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(-2, 3, (num_images, width), generator=generator).float()
    texts = torch.randint(-2, 3, (len(owner), width), generator=generator).float()
    assert_as_plain(images, texts, owner, block=block)


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("copies", [1, 3])
def test_narrow_cones_and_duplicates(spread: float, copies: int) -> None:
    """The differences are below the rounding of float32 products, and still decide."""
    generator = np.random.default_rng(0)
    axis = np.tile(generator.normal(size=32), (40, 1))
    images = on_the_sphere(generator, axis, spread)
    texts = on_the_sphere(generator, images.double().numpy(), 0.3 * spread).repeat(copies, 1)
    owner = [*range(40)] * copies
    assert_as_plain(images, texts, owner, block=7)
    owner = [*generator.permutation(40)] * copies  # of a model that knows nothing
    assert_as_plain(images, texts, owner, block=7)


def test_neighbours_of_the_match_in_float32() -> None:
    """Candidates that differ from the match by one unit in the last place, in either direction."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(6, 64, generator=generator), dim=1)
    match = torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0)
    texts = match.repeat(66, 1)
    for element in range(60):
        towards = torch.tensor(1.0 if element % 2 else -1.0)
        texts[element, element] = texts[element, element].nextafter(towards)
    assert_as_plain(images, texts, [index % 6 for index in range(66)])


def test_a_collapsed_model_scores_chance() -> None:
    images, texts = torch.ones(40, 16) / 4, torch.ones(200, 16) / 4
    owner = [index // 5 for index in range(200)]
    of_images, of_texts = retrieval_ranks(images, texts, owner, block=7)
    for k in (1, 5, 10):
        assert of_images.hits(k).mean() == pytest.approx(retrieval_chance([5] * 40, 200, k))
        assert of_texts.hits(k).mean() == pytest.approx(retrieval_chance([1], 40, k))


@pytest.mark.parametrize("scale", [1e-20, 0.0, 1e25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_of_any_length(scale: float, dtype: torch.dtype) -> None:
    """float32 would overflow, or lose all of them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 8, generator=generator, dtype=dtype)
    texts = images[[0, 1, 2, 3, 4, 5, 6, 0]] + torch.randn(8, 8, generator=generator, dtype=dtype)
    owner = [0, 1, 2, 3, 4, 5, 6, 0]
    found = retrieval_ranks(images * scale, texts * scale, owner)
    expected = plain_ranks(images * float(scale > 0), texts * float(scale > 0), owner)
    assert [r.better.tolist() for r in found] == [r.better.tolist() for r in expected]
    assert [r.tied.tolist() for r in found] == [r.tied.tolist() for r in expected]


def test_no_coarse_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch may multiply in TF32 or bfloat16, products are in float64."""
    images = torch.nn.functional.normalize(torch.randn(9, 32), dim=1)
    used = []

    class Noted(pair_ranks._Pairs):
        def scores(self, start: int, stop: int) -> Tensor:
            used.append(super().scores(start, stop).dtype)
            return super().scores(start, stop)

    monkeypatch.setattr(pair_ranks, "_Pairs", Noted)
    retrieval_ranks(images, images, range(9))
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    retrieval_ranks(images, images, range(9))
    assert used == [torch.float32, torch.float64]


def test_equal_pairs_have_equal_exact_scores() -> None:
    """Whatever their place: a sum whose order depended on it would make equal ones differ."""
    generator = torch.Generator().manual_seed(0)
    for width in (1, 3, 17, 96, 512):
        one = torch.randn(2, width, generator=generator)
        pairs = pair_ranks._Pairs(one[:1].repeat(67, 1), one[1:].repeat(129, 1))
        images = torch.randint(67, (20000,), generator=generator)
        texts = torch.randint(129, (20000,), generator=generator)
        assert len(pairs.exact(images, texts).unique()) == 1


@pytest.mark.parametrize(
    ("distances", "expected"), [(PERFECT, [1.0, 1.0, 1.0]), (IMAGE_TO_TEXT, [0.5, 0.75, 1.0])]
)
def test_image_to_text__big_visions_example(
    distances: list[list[float]], expected: list[float]
) -> None:
    ranks, _ = retrieval_ranks(1 - torch.tensor(distances), torch.eye(8), OWNER)
    assert [ranks.hits(k).mean() for k in (1, 5, 10)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("distances", "expected"), [(PERFECT, [1.0, 1.0, 1.0]), (TEXT_TO_IMAGE, [0.375, 1.0, 1.0])]
)
def test_text_to_image__big_visions_example(
    distances: list[list[float]], expected: list[float]
) -> None:
    _, ranks = retrieval_ranks(torch.eye(4), 1 - torch.tensor(distances).T, OWNER)
    assert [ranks.hits(k).mean() for k in (1, 5, 10)] == pytest.approx(expected)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    retrieval_ranks(
        torch.eye(5), torch.eye(5), range(5), block=2, progress=lambda *state: told.append(state)
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("owner", "images", "message"),
    [
        ([0, 0], 2, "1 of 2 images have no text and 0 of 2 texts no image"),
        ([0, 7], 2, "1 of 2 images have no text and 1 of 2 texts no image"),
        ([0, -1], 1, "0 of 1 images have no text and 1 of 2 texts no image"),
        ([0], 1, "0 of 1 images have no text and 1 of 2 texts no image"),
        ([], 0, "0 of 0 images have no text and 2 of 2 texts no image"),
    ],
)
def test_what_has_no_match_is_refused(owner: list[int], images: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        retrieval_ranks(torch.eye(2)[:images], torch.eye(2), owner)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    broken = torch.eye(4)
    broken[2, 1] = value
    for images, texts in ((broken, torch.eye(4)), (torch.eye(4), broken)):
        with pytest.raises(NonFiniteError, match="1 of 4 rows of the embeddings"):
            retrieval_ranks(images, texts, range(4))
