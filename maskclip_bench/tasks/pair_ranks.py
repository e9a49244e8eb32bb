"""Ranks of image-text retrieval: both directions from one pass over all pairs.

A rank is the number of candidates that score above a query's best match; so they are counted,
nothing is sorted, and only a block of scores is in memory. The scores are products in float32,
whose error has a bound, whatever the order of the sum (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1):

    |computed(x . y) - x . y|  <=  P u / (1 - P u) |x| |y|,    u = 2^-24

A candidate that is further from the match than that is decided. The few others are computed again
in float64, so that the ranks are those of float64 scores and only equal vectors tie.

The embeddings of a narrow cone differ by less than the rounding of their products. So both sides
are centred first, by m and n:

    (x - m) . (y - n)  +  (x - m) . n  +  m . (y - n)  =  x . y - m . n

is one product of vectors with two more elements, lacks only a constant, which changes no rank, and
its error is as small as the cone is narrow.

I images, T texts, P joint width, B images of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskclip_bench.errors import DataError
from maskclip_bench.tasks.metrics import Ranks, check_finite, equal_rows

BLOCK = 128
"""Images whose scores are in memory at a time."""

ROWS_AT_A_TIME = 8192
"""Vectors, or pairs of them, that are in memory in float64 at a time."""

USUAL = (1e-10, 1e10)
"""Largest elements of vectors whose products float32 holds; L2-normalised ones are within."""


def retrieval_ranks(
    images: Tensor,
    texts: Tensor,
    owner: Sequence[int],
    *,
    block: int = BLOCK,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Ranks, Ranks]:
    """Ranks of each image's best text among all texts, and of each text's image among all images.

    Args:
        images: [I, P], L2-normalised.
        texts: [T, P], L2-normalised.
        owner: The image of each text; every image has at least one.
        block: Images at a time.
        progress: Told (done, total) images.

    Returns:
        Ranks of the images [I], and of the texts [T].

    Raises:
        NonFiniteError: Embeddings are NaN or infinite.
        DataError: There is no image, an image has no text, or a text no image.
    """
    check_finite(images, "embeddings")
    check_finite(texts, "embeddings")
    owners = _owners(owner, len(images), len(texts)).to(images.device)
    if images.device.type == "mps":  # knows no float64
        images, texts, owners = images.cpu(), texts.cpu(), owners.cpu()
    pairs = _Pairs(images, texts)
    every_text = torch.arange(len(texts), device=owners.device)
    of_match = pairs.exact(owners, every_text)  # [T]
    best = of_match.new_full((len(images),), -torch.inf)
    best.scatter_reduce_(0, owners, of_match, "amax")
    is_best = of_match == best[owners]  # [T]
    one_best = torch.zeros_like(owners[: len(images)])
    one_best[owners[is_best]] = every_text[is_best]  # any of them
    of_images = _Counts(pairs, best, one_best, of_images=True)
    of_texts = _Counts(pairs, of_match, owners, of_images=False)
    by_owner = owners.argsort(stable=True)
    sorted_owners = owners[by_owner]
    for start in range(0, len(images), block):
        stop = min(start + block, len(images))
        first, last = torch.searchsorted(sorted_owners, torch.tensor([start, stop]).to(owners))
        own = by_owner[first:last]
        scores = pairs.scores(start, stop)  # [B, T]
        scores[owners[own] - start, own] = -torch.inf  # the right ones are not counted
        of_images.count(scores, start)
        of_texts.count(scores, start)
        progress(stop, len(images))
    ties_of_best = torch.zeros_like(one_best).index_add_(0, owners, is_best.long())
    return of_images.ranks(ties_of_best), of_texts.ranks(torch.ones_like(owners))


def _owners(owner: Sequence[int], num_images: int, num_texts: int) -> Tensor:
    """int64 [T].

    Raises:
        DataError: Something has no match.
    """
    owners = torch.as_tensor(owner, dtype=torch.int64).reshape(-1)
    known = owners[(owners >= 0) & (owners < num_images)]
    alone = num_images - len(known.unique())
    lost = num_texts - len(known)
    if num_images == 0 or alone or lost:
        raise DataError(
            f"{alone} of {num_images} images have no text and {lost} of {num_texts} texts no "
            "image, so they have no rank. Give every image a caption, and every caption an image."
        )
    return owners


@dataclass(frozen=True, eq=False)
class _Centred:
    """Vectors less their mean, and what the bound of their products needs.

    Attributes:
        vectors: [N, P].
        center: Their mean, float64 [P].
        norms: Lengths of `vectors`, float64 [N].
        shifts: Their products with the mean of the other side, float64 [N].
    """

    vectors: Tensor
    center: Tensor
    norms: Tensor
    shifts: Tensor

    @classmethod
    def of(
        cls, vectors: Tensor, center: Tensor, other: Tensor, *, place: int, dtype: torch.dtype
    ) -> _Centred:
        """Centre vectors, and append their shift and a 1 in the order that `place` says."""
        width = vectors.shape[1]
        extended = vectors.new_ones(len(vectors), width + 2, dtype=dtype)
        norms, shifts = [], []
        for part, filled in zip(
            vectors.split(ROWS_AT_A_TIME), extended.split(ROWS_AT_A_TIME), strict=True
        ):
            centred = part.double() - center
            norms.append(centred.norm(dim=1))
            shifts.append(centred @ other)
            filled[:, :width] = centred
            filled[:, width + place] = shifts[-1]
        return cls(extended, center, torch.cat(norms), torch.cat(shifts))

    def lengths(self) -> Tensor:
        """An upper bound of the lengths of the vectors before, [N]."""
        return self.norms + self.center.norm()


class _Pairs:
    """Scores of images with texts: fast ones with a bound of their error, and exact ones.

    Attributes:
        equal_images: Number of the group of equal vectors that each image is in; None if all
            differ.
        equal_texts: The same of the texts.
    """

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        self._images, self._texts = (_at_least_float32(vectors) for vectors in (images, texts))
        self.equal_images = equal_rows(self._images)
        self.equal_texts = equal_rows(self._texts)
        single = all(_products_are_usual(vectors) for vectors in (images, texts))
        dtype = torch.float32 if single else torch.float64
        self._unit = torch.finfo(dtype).eps / 2
        m, n = (vectors.mean(dim=0, dtype=torch.float64) for vectors in (images, texts))
        self._left = _Centred.of(self._images, m, n, place=0, dtype=dtype)
        self._right = _Centred.of(self._texts, n, m, place=1, dtype=dtype)
        self._buffer = self._left.vectors.new_empty(0)

    def scores(self, start: int, stop: int) -> Tensor:
        """Products x . y - m . n of the images from `start` to `stop` with all texts, [B, T].

        The memory is used again by the next call.
        """
        shape = (stop - start, len(self._texts))
        if self._buffer.shape != shape:
            self._buffer = self._left.vectors.new_empty(shape)
        return torch.mm(self._left.vectors[start:stop], self._right.vectors.T, out=self._buffer)

    def exact(self, images: Tensor, texts: Tensor) -> Tensor:
        """Products x . y in float64, int64 [n] and [n] -> [n]; those of equal pairs are equal."""
        parts = zip(images.split(ROWS_AT_A_TIME), texts.split(ROWS_AT_A_TIME), strict=True)
        return torch.cat(
            [(self._images[i].double() * self._texts[t].double()).sum(dim=1) for i, t in parts]
        )

    def undecided(self, matches: Tensor, *, of_images: bool) -> tuple[Tensor, Tensor]:
        """Between which `scores` a candidate may be better or worse than the match.

        Args:
            matches: Exact scores of the queries' best matches, [N].
            of_images: Whether the queries are the images; else they are the texts.

        Returns:
            The lowest and the highest such score, [N] and [N].
        """
        own, others = (self._left, self._right) if of_images else (self._right, self._left)
        width = self._images.shape[1]
        bound = own.norms * others.norms.max() + own.shifts.abs() + others.shifts.abs().max()
        margin = _gamma(width + 8, self._unit) * bound
        margin += _gamma(4 * width + 16, 2.0**-53) * own.lengths() * others.lengths().max()
        middle = matches - self._left.center @ self._right.center
        dtype = own.vectors.dtype
        low, high = (middle - margin).to(dtype), (middle + margin).to(dtype)
        infinity = torch.full_like(low, torch.inf)
        return low.nextafter(-infinity), high.nextafter(infinity)


def _gamma(terms: int, unit: float) -> float:
    """Bound of the relative error of a sum of so many products."""
    return terms * unit / (1 - terms * unit)


def _at_least_float32(vectors: Tensor) -> Tensor:
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
    return vectors + 0.0  # -0.0 and 0.0 are equal


def _products_are_usual(vectors: Tensor) -> bool:
    """Whether the bound holds for products in float32: no TF32, no bfloat16, no overflow."""
    if vectors.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest":
        return False
    return USUAL[0] < float(vectors.abs().max()) < USUAL[1]


class _Counts:
    """How many candidates are better than the queries' best match, and how many tie with it.

    Args:
        pairs: The scores.
        matches: Exact scores of the queries' best matches, [N].
        matching: These matches, int64 [N].
        of_images: Whether the queries are the images; else they are the texts.
    """

    def __init__(
        self, pairs: _Pairs, matches: Tensor, matching: Tensor, *, of_images: bool
    ) -> None:
        self._pairs = pairs
        self._matches = matches
        self._matching = matching
        self._of_images = of_images
        self._equal = pairs.equal_texts if of_images else pairs.equal_images
        self._low, self._high = pairs.undecided(matches, of_images=of_images)
        self._better, self._tied = (torch.zeros_like(matching) for _ in range(2))

    def count(self, scores: Tensor, start: int) -> None:
        """Count the candidates among scores [B, T] of the images from `start` on."""
        if self._of_images:
            queries, dim = slice(start, start + len(scores)), 1
        else:
            queries, dim = slice(None), 0
        above = scores > self._high[queries].unsqueeze(dim)
        possible = scores >= self._low[queries].unsqueeze(dim)
        num_above = above.sum(dim=dim)
        self._better[queries] += num_above
        unsure = (possible.sum(dim=dim) > num_above).nonzero()[:, 0]
        near = (possible ^ above).index_select(1 - dim, unsure).nonzero()
        images, texts = near[:, 0], near[:, 1]
        if self._of_images:
            self._decide(start + unsure[images], texts)
        else:
            self._decide(unsure[texts], start + images)

    def _decide(self, queries: Tensor, candidates: Tensor) -> None:
        """Count candidates that are near the match of their query, int64 [n] each."""
        if self._equal is not None:
            same = self._equal[candidates] == self._equal[self._matching[queries]]
            self._tied.index_add_(0, queries[same], torch.ones_like(queries[same]))
            queries, candidates = queries[~same], candidates[~same]
        if len(queries) == 0:
            return
        images, texts = (queries, candidates) if self._of_images else (candidates, queries)
        gap = self._pairs.exact(images, texts) - self._matches[queries]
        self._better.index_add_(0, queries, (gap > 0).long())
        self._tied.index_add_(0, queries, (gap == 0).long())

    def ranks(self, ties_of_best: Tensor) -> Ranks:
        """All counts; `ties_of_best`: matches that tie with the best one, [N]."""
        better, tied, best = (
            counts.cpu().numpy() for counts in (self._better, self._tied, ties_of_best)
        )
        return Ranks(better=better, tied=tied, best=best)
