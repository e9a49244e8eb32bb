from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from maskclip_bench.tasks.metrics import (
    RetrievalRanks,
    label_ranks,
    mean_per_class,
    predictions,
    retrieval_chance,
    retrieval_ranks,
    roc_auc,
    top_k_hits,
)

OWNER = [0, 0, 1, 1, 2, 2, 3, 3]
OF_IMAGE = [[0, 1], [2, 3], [4, 5], [6, 7]]

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


def ranks_of(scores: torch.Tensor, matches: list[list[int]], **options: int) -> RetrievalRanks:
    """Ranks from a score matrix: queries are its rows, candidates unit vectors."""
    return retrieval_ranks(scores, torch.eye(scores.shape[1]), matches, **options)


def test_label_ranks__lowest_index_wins_ties() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.9, 0.9], [0.2, 0.1, 0.3]])
    labels = torch.tensor([1, 2, 2])
    assert label_ranks(scores, labels).tolist() == [1, 1, 0]
    assert predictions(scores).tolist() == [0, 1, 2]


def test_label_ranks__equals_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (200, 9), generator=generator).float()
    labels = torch.randint(0, 9, (200,), generator=generator)
    order = (-scores.numpy()).argsort(axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels.tolist(), strict=True)]
    assert label_ranks(scores, labels).tolist() == expected
    assert top_k_hits(label_ranks(scores, labels), 3).mean() == np.mean(np.array(expected) < 3)


def test_mean_per_class__equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels, answers = generator.integers(0, 5, 100), generator.integers(0, 5, 100)
    hits = (labels == answers).astype(float)
    assert mean_per_class(hits, labels) == pytest.approx(balanced_accuracy_score(labels, answers))


def test_roc_auc__equals_scikit_learn_with_ties() -> None:
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 10, 200).astype(float), generator.random(200) < 0.3
    assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


@pytest.mark.parametrize(
    ("distances", "expected"), [(PERFECT, [1.0, 1.0, 1.0]), (IMAGE_TO_TEXT, [0.5, 0.75, 1.0])]
)
def test_image_to_text__big_visions_example(
    distances: list[list[float]], expected: list[float]
) -> None:
    ranks = ranks_of(1 - torch.tensor(distances), OF_IMAGE)
    assert [ranks.hits(k).mean() for k in (1, 5, 10)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("distances", "expected"), [(PERFECT, [1.0, 1.0, 1.0]), (TEXT_TO_IMAGE, [0.375, 1.0, 1.0])]
)
def test_text_to_image__big_visions_example(
    distances: list[list[float]], expected: list[float]
) -> None:
    ranks = ranks_of(1 - torch.tensor(distances).T, [[image] for image in OWNER])
    assert [ranks.hits(k).mean() for k in (1, 5, 10)] == pytest.approx(expected)


def test_ranks__blocks_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (23, 46), generator=generator).float()
    matches = [[2 * i, 2 * i + 1] for i in range(23)]
    whole, parts = ranks_of(scores, matches), ranks_of(scores, matches, block=5)
    for name in ("better", "tied", "best"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def naive_hit(scores: list[float], matches: set[int], k: int) -> float:
    """Share of the orders of equal candidates in which a match is among the first k."""
    hits = total = 0
    for order in itertools.permutations(range(len(scores))):
        values = [scores[i] for i in order]
        if values == sorted(values, reverse=True):
            total += 1
            hits += bool(matches & set(order[:k]))
    return hits / total


@given(
    scores=st.lists(st.integers(0, 2), min_size=2, max_size=5),
    k=st.integers(1, 6),
    data=st.data(),
)
def test_hits__equal_the_mean_over_all_orders_of_ties(
    scores: list[int], k: int, data: st.DataObject
) -> None:
    matches = data.draw(st.sets(st.integers(0, len(scores) - 1), min_size=1))
    ranks = ranks_of(torch.tensor([scores]).float(), [sorted(matches)])
    expected = naive_hit([float(score) for score in scores], matches, k)
    assert ranks.hits(k)[0] == pytest.approx(expected)
    assert ranks.pessimistic_hits(k)[0] <= expected + 1e-9
    assert ranks.optimistic_hits(k)[0] >= expected - 1e-9


def test_hits__a_collapsed_model_scores_chance() -> None:
    images, texts = torch.ones(40, 16) / 4, torch.ones(200, 16) / 4
    of_image = [list(range(5 * i, 5 * i + 5)) for i in range(40)]
    for k in (1, 5, 10):
        found = retrieval_ranks(images, texts, of_image).hits(k).mean()
        chance = 1 - math.comb(195, k) / math.comb(200, k)
        assert found == pytest.approx(chance)
        assert retrieval_chance([5] * 40, 200, k) == pytest.approx(chance)


def test_retrieval_chance__one_match() -> None:
    assert retrieval_chance([1], 1000, 10) == pytest.approx(0.01)
    assert retrieval_chance([1], 4, 10) == 1.0
