"""Metrics: worked examples, naive versions, ties, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from maskclip_bench.errors import DataError, NonFiniteError
from maskclip_bench.tasks.metrics import (
    Candidates,
    Ranks,
    average_precision,
    brier_scores,
    expected_calibration_error,
    label_ranks,
    mean_average_precision,
    mean_per_class,
    predictions,
    retrieval_chance,
    roc_auc,
    worst_group,
)


def counted(scores: list[float], matches: set[int]) -> Ranks:
    """The ranks of one query, by counting."""
    best = max(scores[i] for i in matches)
    wrong = [score for i, score in enumerate(scores) if i not in matches]
    found = (
        sum(score > best for score in wrong),
        wrong.count(best),
        sum(scores[i] == best for i in matches),
    )
    return Ranks(*(np.array([number]) for number in found))


def test_label_ranks__ties_share_the_positions() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.9, 0.9], [0.2, 0.1, 0.3]])
    labels = torch.tensor([1, 2, 2])
    ranks = label_ranks(scores, labels)
    assert ranks.hits(1).tolist() == pytest.approx([1 / 3, 1 / 2, 1.0])
    assert ranks.hits(2).tolist() == pytest.approx([2 / 3, 1.0, 1.0])
    assert predictions(scores).tolist() == [0, 1, 2]


def test_label_ranks__equals_all_orders_of_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 3, (20, 5), generator=generator).float()
    labels = torch.randint(0, 5, (20,), generator=generator)
    for k in (1, 3):
        expected = [
            naive_hit(row, {label}, k)
            for row, label in zip(scores.tolist(), labels.tolist(), strict=True)
        ]
        assert label_ranks(scores, labels).hits(k).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_label_ranks__no_variance_is_chance_whatever_the_labels(num_classes: int) -> None:
    for label in range(num_classes):
        ranks = label_ranks(torch.zeros(3, num_classes), torch.full((3,), label))
        assert ranks.hits(1).tolist() == pytest.approx([1 / num_classes] * 3)


@pytest.mark.parametrize("label", [-1, 3, 10**12])
def test_label_ranks__a_label_of_no_class_is_refused(label: int) -> None:
    with pytest.raises(DataError, match=rf"1 of 2 labels are none of the 3 .*first is {label}\)"):
        label_ranks(torch.zeros(2, 3), torch.tensor([0, label]))


BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", BAD)
def test_all_metrics__refuse_what_is_not_finite(value: float) -> None:
    scores = torch.zeros(4, 3)
    scores[2, 1] = value
    labels = torch.tensor([0, 1, 2, 0])
    vector = scores[:, 1].double().numpy()
    calls: list[Callable[[], object]] = [
        lambda: label_ranks(scores, labels),
        lambda: predictions(scores),
        lambda: Candidates(scores),
        lambda: Candidates(torch.eye(3)).scores(scores),
        lambda: mean_per_class(vector, labels.numpy()),
        lambda: roc_auc(vector, labels.numpy() == 0),
    ]
    for call in calls:
        with pytest.raises(NonFiniteError, match=r"1 of 4 rows of the .* are NaN or infinite"):
            call()


@pytest.mark.parametrize("positive", [True, False])
def test_roc_auc__needs_both_classes(positive: bool) -> None:
    with pytest.raises(DataError, match=r"ROC AUC compares two classes, and [03] of 3"):
        roc_auc(np.arange(3.0), np.full(3, positive))


def test_mean_per_class__equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels, answers = generator.integers(0, 5, 100), generator.integers(0, 5, 100)
    hits = (labels == answers).astype(float)
    assert mean_per_class(hits, labels) == pytest.approx(balanced_accuracy_score(labels, answers))


def test_roc_auc__equals_scikit_learn_with_ties() -> None:
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 10, 200).astype(float), generator.random(200) < 0.3
    assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


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
    ranks = counted([float(score) for score in scores], matches)
    expected = naive_hit([float(score) for score in scores], matches, k)
    assert ranks.hits(k)[0] == pytest.approx(expected)
    assert ranks.pessimistic_hits(k)[0] <= expected + 1e-9
    assert ranks.optimistic_hits(k)[0] >= expected - 1e-9


def test_retrieval_chance__one_match() -> None:
    assert retrieval_chance([1], 1000, 10) == pytest.approx(0.01)
    assert retrieval_chance([1], 4, 10) == 1.0


def test_candidates__equal_vectors_get_equal_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    distinct = torch.randn(37, 19, generator=generator)
    index = torch.randint(0, 37, (203,), generator=generator)
    vectors = distinct[index]
    vectors[5, 0], vectors[6] = 0.0, vectors[5]
    vectors[6, 0] = -0.0
    queries = torch.randn(11, 19, generator=generator)
    scores = Candidates(vectors).scores(queries)
    torch.testing.assert_close(scores, queries @ vectors.T)
    for one in range(203):
        same = (vectors == vectors[one]).all(dim=1)
        assert (scores[:, same] == scores[:, one : one + 1]).all()
    assert len(Candidates(vectors)) == 203


def test_ranks__expected_position_of_the_first_right_one() -> None:
    """Against all orders of the tied ones."""
    for better, tied, best in ((0, 0, 1), (2, 3, 1), (0, 2, 2), (5, 4, 3)):
        ranks = Ranks(*(np.array([value]) for value in (better, tied, best)))
        right = ["wrong"] * tied + ["right"] * best
        places = [1 + order.index("right") for order in itertools.permutations(right)]
        assert ranks.expected().tolist() == pytest.approx([better + np.mean(places)])


def test_mean_average_precision__equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(60, 4)).round(1)  # with ties
    labels = (generator.random((60, 4)) < 0.3).astype(np.int8)
    value, by_class = mean_average_precision(scores, labels)
    assert value == pytest.approx(average_precision_score(labels, scores, average="macro"))
    labels[:10, 2] = -1
    _, without = mean_average_precision(scores, labels)
    assert without[2] == pytest.approx(average_precision_score(labels[10:, 2], scores[10:, 2]))
    assert without[:2] == by_class[:2]


def test_average_precision__eleven_points_as_in_vocs_kit() -> None:
    """The kit's loop: at each recall of 0, 0.1, ... the best precision at that recall or above."""
    generator = np.random.default_rng(1)
    for size in (3, 10, 50):
        scores, present = generator.permutation(size) * 1.0, generator.random(size) < 0.4
        present[0] = True
        order = np.argsort(-scores)
        found = np.cumsum(present[order])
        recall, precision = found / present.sum(), found / np.arange(1, size + 1)
        expected = 0.0
        for tenth in range(11):
            above = precision[recall * 10 >= tenth - 1e-6]
            expected += (above.max() if len(above) else 0) / 11
        assert average_precision(scores, present, points=11) == pytest.approx(expected)
    tied = average_precision(np.zeros(4), np.array([True, False, False, False]), points=11)
    assert tied == pytest.approx(0.25)  # chance: the share of images that show the class


def test_mean_average_precision__what_is_refused() -> None:
    labels = np.array([[1, 0], [0, 0]], dtype=np.int8)
    with pytest.raises(DataError, match=r"1 of 2 classes occur in no sample \(the first is 1\)"):
        mean_average_precision(np.zeros((2, 2)), labels)
    with pytest.raises(NonFiniteError, match="class scores"):
        average_precision(np.array([np.nan, 1.0]), np.array([True, False]), points=None)


def test_expected_calibration_error__equals_scikit_learns_curve() -> None:
    generator = np.random.default_rng(2)
    confidence = generator.random(500)
    hits = (generator.random(500) < confidence**2).astype(float)
    accuracy, mean = calibration_curve(hits, confidence, n_bins=15)
    counts = np.histogram(confidence, bins=np.linspace(0, 1, 16))[0]
    expected = (np.abs(accuracy - mean) * counts[counts > 0]).sum() / 500
    assert expected_calibration_error(confidence, hits) == pytest.approx(expected)


def test_expected_calibration_error__by_hand() -> None:
    # Bins of (0, 1/2] and (1/2, 1]: gaps |(1 - 0.5) + (0 - 0.4)| = 0.1 and |1 - 1| = 0.
    confidence, hits = np.array([0.5, 0.4, 1.0]), np.array([1.0, 0.0, 1.0])
    found = expected_calibration_error(confidence, hits, num_bins=2)
    assert found == pytest.approx(0.1 / 3)
    with pytest.raises(NonFiniteError, match="confidences"):
        expected_calibration_error(np.array([np.inf]), np.array([1.0]))


def test_brier_scores__by_hand() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    found = brier_scores(probabilities, torch.tensor([0, 2]))
    assert found.tolist() == pytest.approx([(0.09 + 0.04 + 0.01) / 2, 1.0])


def test_worst_group__of_equal_ones_the_first_name() -> None:
    hits = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    assert worst_group(hits, ["b", "b", "a", "a", "c"]) == ("a", 0.5)
