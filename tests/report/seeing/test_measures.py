from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.cluster import contingency_matrix

from maskclip_bench.report.seeing import measures


def test_purity__by_hand() -> None:
    clusters = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    classes = np.array([5, 5, 1, 1, 1, 0, 5, 3])
    # Cluster 0 is named 5 (2 of 3), cluster 1 is named 1 (2 of 4), cluster 2 is named 3 (1 of 1).
    hits = measures.purity_hits(clusters, classes)
    assert hits.tolist() == [True, True, False, True, True, False, False, True]
    assert hits.mean() == 5 / 8


def test_purity__a_tie_is_named_after_the_lowest_class() -> None:
    hits = measures.purity_hits(np.zeros(4, int), np.array([2, 2, 1, 1]))
    assert hits.tolist() == [False, False, True, True]


def test_purity__as_by_the_contingency_matrix() -> None:
    generator = np.random.default_rng(0)
    clusters, classes = generator.integers(0, 6, 300), generator.integers(0, 9, 300)
    expected = contingency_matrix(classes, clusters).max(axis=0).sum() / 300
    assert measures.purity_hits(clusters, classes).mean() == pytest.approx(expected)


def test_pointing__by_hand() -> None:
    scores = np.array([[0.1, 0.7], [0.9, 0.2]])
    assert measures.pointing_hit(scores, np.array([[0, 0], [1, 0]], bool)) == 1
    assert measures.pointing_hit(scores, np.array([[1, 1], [0, 1]], bool)) == 0


def test_pointing__equal_places_count_by_share() -> None:
    scores = np.array([[1.0, 1.0], [1.0, 0.0]])
    assert measures.pointing_hit(scores, np.array([[1, 0], [0, 1]], bool)) == pytest.approx(1 / 3)


def test_neighbours__by_hand() -> None:
    tokens = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 1], [1, 0.05]], np.float32)
    classes = np.array([0, 0, 1, 0, 0])
    image = np.array([0, 0, 1, 1, 2])
    shares, nearest = measures.neighbour_hits(tokens, classes, image, np.array([0, 2]), k=2)
    # Patch 0 may not find patch 1 (same image): 4 (class 0), then 3 (class 0).
    # Patch 2 may not find patch 3: 1 (class 0), then 4 (class 0), none of class 1.
    assert nearest.tolist() == [[4, 3], [1, 4]]
    assert shares.tolist() == [1.0, 0.0]


def test_neighbours__many_queries_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    tokens = generator.normal(size=(40, 4)).astype(np.float32)
    classes, image = generator.integers(0, 3, 40), np.arange(40) // 4
    whole = measures.neighbour_hits(tokens, classes, image, np.arange(40))
    monkeypatch.setattr(measures, "QUERIES_AT_ONCE", 7)
    parts = measures.neighbour_hits(tokens, classes, image, np.arange(40))
    assert np.array_equal(whole[1], parts[1])
    assert np.array_equal(whole[0], parts[0])


def test_neighbours__one_image_has_none() -> None:
    shares, nearest = measures.neighbour_hits(
        np.eye(3), np.zeros(3, int), np.zeros(3, int), np.array([0])
    )
    assert shares.tolist() == [0]
    assert nearest.shape == (1, 0)


def test_own_basis__one_basis_for_all() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(200, 8)) * np.array([9, 5, 3, 0.1, 0.1, 0.1, 0.1, 0.1])
    colours, share = measures.own_basis(tokens)
    assert colours.shape == (200, 3)
    assert colours.min() == 0
    assert colours.max() == 1
    assert share > 0.99
    order = np.argsort(np.abs(tokens[:, 0] - tokens[0, 0]))  # the first axis is the first component
    assert abs(np.corrcoef(colours[order, 0], tokens[order, 0])[0, 1]) > 0.98


@pytest.mark.parametrize("width", [1, 2])
def test_own_basis__narrow_features(width: int) -> None:
    colours, share = measures.own_basis(np.random.default_rng(0).normal(size=(9, width)))
    assert colours.shape == (9, 3)
    assert (colours[:, width:] == 0.5).all()
    assert share == pytest.approx(1)


def test_own_basis__equal_patches_are_grey() -> None:
    colours, _ = measures.own_basis(np.ones((6, 4)))
    assert (colours == 0.5).all()


def test_shared_basis__rotated_and_scaled_features_have_the_same_colours() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(100, 5)) * [5, 3, 2, 1, 0.5]
    rotation, _ = np.linalg.qr(generator.normal(size=(5, 5)))
    wider = np.concatenate([tokens @ rotation * 7 + 3, np.zeros((100, 2))], axis=1)
    first, second = measures.shared_basis([tokens, wider])
    assert np.allclose(first, second, atol=1e-6)


def test_shared_basis__what_only_one_model_sees_differs() -> None:
    generator = np.random.default_rng(0)
    common = generator.normal(size=(100, 3))
    other = np.concatenate([common[:, :2], generator.normal(size=(100, 1))], axis=1)
    first, second = measures.shared_basis([common, other])
    assert not np.allclose(first, second, atol=0.05)


def test_shared_basis__other_numbers_of_patches() -> None:
    with pytest.raises(ValueError, match="same patches of all models"):
        measures.shared_basis([np.ones((3, 2)), np.ones((4, 2))])


def test_cluster__finds_separate_clouds() -> None:
    generator = np.random.default_rng(0)
    centres = np.eye(3)[np.arange(60) % 3]
    found = measures.cluster(centres + 0.01 * generator.normal(size=(60, 3)), 3)
    assert measures.purity_hits(found, np.arange(60) % 3).all()


def test_cluster__fewer_points_than_clusters() -> None:
    assert len(set(measures.cluster(np.ones((4, 2)), 3))) == 1
