"""Numbers and colours of patch features: no model, no file.

M patches (of all images), D width, K clusters, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]

NUM_COLOURS = 3
"""Principal components that a picture shows: red, green, blue."""

CLIPPED = (2.0, 98.0)
"""Percentiles of a component that become the darkest and the brightest colour."""

NUM_NEIGHBOURS = 5

QUERIES_AT_ONCE = 512
"""Queries whose cosines with all patches are held at a time."""


def own_basis(tokens: Floats) -> tuple[Floats, float]:
    """Colours from the first principal components of one model's patches.

    One basis for the patches of all images, so that one colour means one direction in all of them.

    Args:
        tokens: [M, D].

    Returns:
        Colours [M, 3], 0 to 1; and the share of the variance that the components hold.
    """
    from sklearn.decomposition import PCA

    if not np.ptp(tokens, axis=0).any():
        return to_colours([np.zeros((len(tokens), 1))])[0], 0.0
    num = min(NUM_COLOURS, tokens.shape[1], len(tokens))
    pca = PCA(num, svd_solver="covariance_eigh").fit(tokens.astype(np.float64))
    scores = pca.transform(tokens.astype(np.float64))
    return to_colours([scores])[0], float(np.nansum(pca.explained_variance_ratio_))


def shared_basis(tokens: Sequence[Floats]) -> list[Floats]:
    """Colours from principal components of several models together, on the same patches.

    Feature spaces of different models have no common axes, so they are put side by side: each is
    centred and scaled to a total variance of 1, the columns are joined, and one PCA is fitted.
    A model's own part of a component, times the number of models, is its picture (the partial
    scores of multiple factor analysis, Escofier and Pages 1994). The same colour then means the
    same common direction, whatever the widths; a rotation of a model's space changes nothing.

    Args:
        tokens: For each model [M, D of the model]; patch m is the same for all.

    Returns:
        For each model colours [M, 3], 0 to 1, on one common scale.

    Raises:
        ValueError: The models have different numbers of patches.
    """
    from sklearn.decomposition import PCA

    if len({len(values) for values in tokens}) != 1:
        raise ValueError(
            f"A shared basis needs the same patches of all models; got {[len(t) for t in tokens]}."
        )
    blocks = []
    for values in tokens:
        centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
        spread = float(np.sqrt((centred**2).sum(axis=1).mean()))
        blocks.append(centred / spread if spread > 0 else centred)
    joined = np.concatenate(blocks, axis=1)
    if not joined.any():
        return to_colours([block[:, :1] for block in blocks])
    num = min(NUM_COLOURS, *joined.shape)
    axes = PCA(num, svd_solver="covariance_eigh").fit(joined).components_  # [3, sum of D]
    scores, start = [], 0
    for block in blocks:
        width = block.shape[1]
        scores.append(len(blocks) * block @ axes[:, start : start + width].T)
        start += width
    return to_colours(scores)


def to_colours(scores: Sequence[Floats]) -> list[Floats]:
    """Components [M, k] of one or more models -> colours [M, 3] on one common scale."""
    everything = np.concatenate(list(scores))
    low, high = np.percentile(everything, CLIPPED, axis=0)
    extent = np.where(high > low, high - low, 1.0)
    colours = []
    for values in scores:
        scaled = np.where(high > low, (values - low) / extent, 0.5)
        missing = NUM_COLOURS - scaled.shape[1]
        if missing > 0:
            scaled = np.concatenate([scaled, np.full((len(scaled), missing), 0.5)], axis=1)
        colours.append(np.clip(scaled, 0.0, 1.0))
    return colours


def cluster(tokens: Floats, num_clusters: int, *, seed: int = 0) -> Ints:
    """k-means of L2-normalised patches [M, D] -> cluster of each [M]."""
    from sklearn.cluster import KMeans

    unit = _unit(tokens).astype(np.float32)
    num = max(1, min(num_clusters, len(np.unique(unit, axis=0))))
    found: Ints = KMeans(num, n_init=4, random_state=seed).fit_predict(unit)
    return found


def purity_hits(clusters: Ints, classes: Ints) -> Bools:
    """Whether each patch has the class that most patches of its cluster have, [M].

    The mean is the purity of the clustering: the share of patches that are right when each cluster
    is named after its most frequent class (Manning, Raghavan, Schuetze 2008, Sec. 16.3). Of classes
    that are equally frequent in a cluster the one of the lowest index names it.

    Args:
        clusters: [M].
        classes: [M], from 0.

    Example:
        >>> purity_hits(np.array([0, 0, 0, 1, 1]), np.array([4, 4, 2, 2, 2])).mean()
        np.float64(0.8)
    """
    hits = np.zeros(len(clusters), dtype=bool)
    for name in np.unique(clusters):
        members = clusters == name
        most = int(np.bincount(classes[members]).argmax())
        hits[members] = classes[members] == most
    return hits


def pointing_hit(scores: Floats, inside: Bools) -> float:
    """Pointing game: whether the highest place of a map is on the object.

    As in Zhang et al. 2018 (Top-down neural attention by excitation backprop), without their
    tolerance of 15 pixels. Where several places are equally high, the share of them on the object.

    Args:
        scores: [H, W], the map at the size of the mask.
        inside: [H, W], True on the object.

    Returns:
        1 or 0, or a share with ties.
    """
    return float(inside[scores == scores.max()].mean())


def neighbour_hits(
    tokens: Floats, classes: Ints, image: Ints, chosen: Ints, *, k: int = NUM_NEIGHBOURS
) -> tuple[Floats, Ints]:
    """Share of the k nearest patches of other images that have the same class.

    Args:
        tokens: [M, D]; nearness is the cosine.
        classes: [M].
        image: [M], which image a patch is of.
        chosen: Indices of the query patches [Q].
        k: Neighbours.

    Returns:
        Shares [Q], and the neighbours' indices [Q, k], nearest first.
    """
    unit = _unit(tokens).astype(np.float32)
    nearest, shares = [], []
    for start in range(0, len(chosen), QUERIES_AT_ONCE):
        part = chosen[start : start + QUERIES_AT_ONCE]
        cosine = unit[part] @ unit.T  # [q, M]
        cosine[image[part][:, None] == image[None, :]] = -np.inf
        most = min(k, int(np.isfinite(cosine).sum(axis=1).min()))
        found = np.argpartition(-cosine, max(most - 1, 0), axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(cosine, found, axis=1), axis=1, kind="stable")
        found = np.take_along_axis(found, order, axis=1)
        nearest.append(found)
        same = classes[found] == classes[part][:, None]
        shares.append(same.mean(axis=1) if most else np.zeros(len(part)))
    return np.concatenate(shares), np.concatenate(nearest)


def _unit(tokens: Floats) -> Floats:
    length = np.linalg.norm(tokens, axis=1, keepdims=True)
    unit: Floats = tokens / np.maximum(length, 1e-12)
    return unit
