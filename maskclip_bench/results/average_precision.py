"""Average precision under any weights of the images: COCO's of detections, and of class scores.

Precision is only looked at where something right is found: what comes after the last right one
changes nothing, and between two right ones only the number of wrong ones counts. So one pass of
cumulated weights over the ranking gives the AP of all resamples at once.

Shapes: S images, G groups of images, D ranked entries of a class (detections, or images with a
score), E ends (places in the ranking where precision is read), C classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from maskclip_bench.results.bootstrap import FloatArray, IntArray
from maskclip_bench.results.outcome_columns import measured_rows, stacked
from maskclip_bench.results.weighted import Weighted, effective_number

NUM_THRESHOLDS = 10
"""IoU 0.5, 0.55, ... 0.95, COCO's."""

COCO_RECALLS: FloatArray = np.asarray(np.linspace(0.0, 1.0, 101), dtype=np.float64)
"""Recalls at which COCO reads precision."""

VOC_RECALLS: FloatArray = np.asarray(np.linspace(0.0, 1.0, 11), dtype=np.float64) - 1e-9
"""VOC2007's. A recall of 3/10 is not the float 0.3."""

_BLOCK = 4_000_000
"""Upper bound of the elements of a block [D, R']: 16 MB."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ranking:
    """What is right among the entries of a class, best first, up to the last that is right.

    Attributes:
        right: Places of the right ones, ascending [T].
        skipped: Places of those that count neither as right nor as wrong, ascending.
        ends: Places after which precision is read, ascending [E].
    """

    right: IntArray
    skipped: IntArray
    ends: IntArray

    @classmethod
    def of(cls, right: BoolArray, counted: BoolArray, is_end: BoolArray) -> Ranking:
        """Precision is read after those entries that end a run, where one of it is right.

        Args:
            right: [D].
            counted: Which entries count, as right or wrong [D].
            is_end: Which entries end a run of equal scores [D].
        """
        places = np.flatnonzero(is_end)
        ends = places[np.diff(np.cumsum(right)[places], prepend=0) > 0]
        stop = int(ends[-1]) + 1 if len(ends) else 0
        return cls(np.flatnonzero(right[:stop]), np.flatnonzero(~counted[:stop]), ends)

    @property
    def length(self) -> int:
        """How many entries matter, D."""
        return int(self.ends[-1]) + 1 if len(self.ends) else 0

    def counts(
        self, drawn: npt.NDArray[Any], cumulated: npt.NDArray[Any]
    ) -> tuple[FloatArray, FloatArray]:
        """Right ones, and all that count, up to each end [E, R].

        Args:
            drawn: Weights of the entries [D, R].
            cumulated: Their sums from the first on [D, R].
        """
        found = np.cumsum(drawn[self.right], axis=0)
        found = found[np.searchsorted(self.right, self.ends, side="right") - 1]
        every = cumulated[self.ends].astype(np.float64)
        if len(self.skipped):
            without = np.cumsum(drawn[self.skipped], axis=0)
            number = np.searchsorted(self.skipped, self.ends, side="right")
            every[number > 0] -= without[number[number > 0] - 1]
        return found.astype(np.float64), every


@dataclass(frozen=True)
class ClassRankings:
    """The rankings of one class, one an IoU threshold.

    Attributes:
        images: Group of each entry's image, best entry first [D].
        rankings: Of these entries.
    """

    images: IntArray
    rankings: tuple[Ranking, ...]

    @classmethod
    def of(cls, images: IntArray, rankings: Sequence[Ranking]) -> ClassRankings:
        """Without the entries that matter to none of the rankings."""
        return cls(images[: max(ranking.length for ranking in rankings)], tuple(rankings))


def area(right: FloatArray, counted: FloatArray, total: FloatArray) -> FloatArray:
    """Area under the steps of the curve [R] (scikit-learn's), of counts at the ends [E, R].

    Args:
        right: Right ones up to each end.
        counted: All up to each end.
        total: Right ones that there are [R].
    """
    steps = np.diff(right, axis=0, prepend=0.0)
    return np.asarray((steps * _precision(right, counted)).sum(axis=0) / np.maximum(total, 1))


def interpolated(
    right: FloatArray, counted: FloatArray, total: FloatArray, recalls: FloatArray
) -> FloatArray:
    """Mean over `recalls` of the highest precision at that recall or above [R]; see `area`."""
    highest = np.maximum.accumulate(_precision(right, counted)[::-1], axis=0)[::-1]
    reached = np.searchsorted(recalls, right / np.maximum(total, 1), side="right")
    first = np.diff(reached, axis=0, prepend=0)  # recalls that this end is the first to reach
    return np.asarray((first * highest).sum(axis=0) / len(recalls))


def _precision(right: FloatArray, counted: FloatArray) -> FloatArray:
    return np.divide(right, counted, out=np.zeros_like(right), where=counted > 0)


def entry_influence(ranking: Ranking, total: float, *, highest: bool) -> tuple[FloatArray, float]:
    """Derivative of the area under a curve with respect to the weight of each entry [D], and it.

    The part of the weights of what is to be found, -area / total each, is not in it.

    Args:
        ranking: Of one class.
        total: Right ones that there are.
        highest: Of the curve of the highest precision at a recall or above. COCO and VOC read it
            at some recalls; their mean is close to the area.
    """
    is_right, counts = np.zeros(ranking.length), np.ones(ranking.length)
    is_right[ranking.right], counts[ranking.skipped] = 1, 0
    right, counted = (np.cumsum(each)[ranking.ends] for each in (is_right, counts))
    precision: FloatArray = right / counted
    read_at: IntArray = np.arange(len(precision))
    if highest:
        best = np.maximum.accumulate(precision[::-1])[::-1]
        is_best = precision == best
        read_at = np.minimum.accumulate(np.where(is_best, read_at, len(precision))[::-1])[
            ::-1
        ]  # the first end from here on that has it
        precision = best
    steps = np.diff(right, prepend=0)
    mass = np.bincount(read_at, steps, minlength=len(precision))  # read at this end
    for_right = np.cumsum((mass / counted)[::-1])[::-1]
    for_counted = np.cumsum((mass * right / counted**2)[::-1])[::-1]
    end = np.searchsorted(ranking.ends, np.arange(ranking.length))  # first end at or after
    moved = is_right * (precision[end] + for_right[end]) - counts * for_counted[end]
    return np.asarray(moved / total), float((steps * precision).sum() / total)


class _MeanOverClasses(Weighted):
    """What both kinds share: a mean over classes of something read from rankings."""

    _classes: list[ClassRankings]
    _objects: FloatArray
    """What is to be found in each group [C, G]."""
    _recalls: FloatArray | None = None
    """Where the highest precision is read; None = the area under the curve."""

    def values(self, weights: FloatArray) -> FloatArray:
        """See `Weighted`; classes of which nothing was drawn are left out."""
        longest = max((len(own.images) for own in self._classes), default=0)
        width = max(1, _BLOCK // max(longest, 1))
        starts = range(0, weights.shape[1], width)
        return np.concatenate([self._block(weights[:, at : at + width]) for at in starts])

    def _block(self, weights: FloatArray) -> FloatArray:
        small = weights.astype(np.float32)  # whole numbers: exact to 2^24
        objects = self._objects @ weights  # [C, R]
        total = np.zeros(weights.shape[1])
        for own, there in zip(self._classes, objects, strict=True):
            drawn = small[own.images]  # [D, R]
            cumulated = np.cumsum(drawn, axis=0)
            precision = np.zeros_like(total)
            for ranking in own.rankings:
                if not ranking.length:
                    continue
                counts = ranking.counts(drawn, cumulated)
                if self._recalls is None:
                    precision += area(*counts, there)
                else:
                    precision += interpolated(*counts, there, self._recalls)
            total += np.where(there > 0, precision, 0.0) / len(own.rankings)
        return np.asarray(total / np.maximum((objects > 0).sum(axis=0), 1))

    def influence(self) -> FloatArray:
        """See `Weighted`; of the area where precision is read at some recalls."""
        moved = np.zeros(self.num_groups)
        totals = self._objects.sum(axis=1)
        for own, objects, total in zip(self._classes, self._objects, totals, strict=True):
            for ranking in own.rankings:
                if total == 0 or not ranking.length:
                    continue
                entries, value = entry_influence(
                    ranking, float(total), highest=self._recalls is not None
                )
                images = own.images[: ranking.length]
                share = np.bincount(images, entries, minlength=self.num_groups)
                moved += (share - value * objects / total) / len(own.rankings)
        return moved / max(int((totals > 0).sum()), 1)


class MultiLabelAP(_MeanOverClasses):
    """Mean over classes of the average precision of images with several classes.

    Images of equal scores count together. A class without an image that shows it is left out.

    Args:
        scores: [S', C].
        labels: 1 = shows the class, 0 = does not, -1 = not scored for it [S', C].
        groups: See `Weighted`.
        measured: See `Weighted`.
        recalls: Where the highest precision is read; None = the area under the curve.
    """

    def __init__(
        self,
        scores: FloatArray,
        labels: IntArray,
        groups: npt.ArrayLike,
        measured: BoolArray,
        recalls: FloatArray | None = None,
    ) -> None:
        super().__init__(groups, measured)
        self._recalls = recalls
        self._objects = np.zeros((scores.shape[1], self.num_groups))
        self._classes = []
        for label in range(scores.shape[1]):
            shows = labels[:, label] == 1
            np.add.at(self._objects[label], self.index[shows], 1.0)
            order = np.argsort(-scores[:, label], kind="stable")
            order = order[labels[order, label] >= 0]
            ranked = scores[order, label]
            last = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]  # of equal scores
            ranking = Ranking.of(shows[order], np.ones(len(order), bool), last)
            self._classes.append(ClassRankings.of(self.index[order], [ranking]))

    @classmethod
    def of(cls, outcomes: pd.DataFrame, columns: Sequence[str]) -> MultiLabelAP:
        """From the columns of scores and of labels, lists [C].

        Raises:
            ValueError: One is missing, or holds what is not made of numbers, one a class.
        """
        return cls(*_scores_and_labels(outcomes, columns))

    @classmethod
    def of_11_points(cls, outcomes: pd.DataFrame, columns: Sequence[str]) -> MultiLabelAP:
        """VOC2007's, with 11 recalls; see `of`."""
        return cls(*_scores_and_labels(outcomes, columns), recalls=VOC_RECALLS)


class CocoAP(_MeanOverClasses):
    """COCO's AP (mean over IoU thresholds and classes) of detections that are already matched.

    Args:
        entries: Of all detections: position of the image [D], class, score; bit t of `hits` is set
            where it is right at threshold t, of `ignored` where it counts neither way.
        objects: Objects to be found in each image [S', C].
        groups: See `Weighted`.
        measured: See `Weighted`.
        order: Place of each image among images where scores are equal [S'].
        thresholds: Which of the ten IoU thresholds.
    """

    def __init__(
        self,
        entries: dict[str, npt.NDArray[Any]],
        objects: IntArray,
        groups: npt.ArrayLike,
        measured: BoolArray,
        *,
        order: IntArray,
        thresholds: Sequence[int] = range(NUM_THRESHOLDS),
    ) -> None:
        super().__init__(groups, measured)
        self._recalls = COCO_RECALLS
        self._objects = np.zeros((objects.shape[1], self.num_groups))
        np.add.at(self._objects.T, self.index, objects)
        rank = np.lexsort((order[entries["images"]], -entries["scores"]))
        entries = {name: values[rank] for name, values in entries.items()}
        self._classes = []
        self._found = np.zeros(self.num_groups)
        for label in range(objects.shape[1]):
            own = entries["classes"] == label
            images, hits, ignored = (entries[name][own] for name in ("images", "hits", "ignored"))
            rankings = []
            for threshold in thresholds:
                counted = (ignored >> threshold) & 1 == 0
                right = counted & ((hits >> threshold) & 1 == 1)
                rankings.append(Ranking.of(right, counted, right))
                np.add.at(self._found, self.index[images[right]], 1 / len(thresholds))
            self._classes.append(ClassRankings.of(self.index[images], rankings))

    @property
    def num_informative(self) -> float:
        """See `Weighted`: by what was found in them, or by what was not."""
        missed = self._objects.sum(axis=0) - self._found
        return min(effective_number(self._found), effective_number(missed))

    @classmethod
    def of(
        cls,
        outcomes: pd.DataFrame,
        columns: Sequence[str],
        thresholds: Sequence[int] = range(NUM_THRESHOLDS),
    ) -> CocoAP:
        """From list columns (see `tasks.dense_outcomes`).

        Args:
            outcomes: See `Measurement`.
            columns: Prefix of the columns of detections (`.scores`, `.classes`), and of their
                matches (`.hits`, `.ignored`, `.objects`), which differ with the size of objects.
            thresholds: See `CocoAP`.

        Raises:
            ValueError: One is missing, or the lists do not fit each other.
        """
        detections, matches = columns
        names = {
            "scores": f"{detections}.scores",
            "classes": f"{detections}.classes",
            "hits": f"{matches}.hits",
            "ignored": f"{matches}.ignored",
        }
        rows, measured = measured_rows(outcomes, [*names.values(), f"{matches}.objects"])
        objects = stacked(rows, f"{matches}.objects", np.int64)
        lengths = rows[names["scores"]].map(len).to_numpy()
        entries: dict[str, npt.NDArray[Any]] = {"images": np.repeat(np.arange(len(rows)), lengths)}
        for part, column in names.items():
            if (rows[column].map(len).to_numpy() != lengths).any():
                raise ValueError(f"{column!r} and {names['scores']!r} are of different detections.")
            kind = np.float64 if part == "scores" else np.int64
            entries[part] = np.concatenate([np.asarray(row, dtype=kind) for row in rows[column]])
        if not np.isfinite(entries["scores"]).all():
            raise ValueError(f"{names['scores']!r} holds numbers that are not finite.")
        if ((entries["classes"] < 0) | (entries["classes"] >= objects.shape[1])).any():
            raise ValueError(
                f"{names['classes']!r} holds what is none of {objects.shape[1]} classes."
            )
        ids = rows["sample_id"].astype(str)
        order = pd.DataFrame({"length": ids.map(len), "id": ids}).reset_index(drop=True)
        place = order.sort_values(["length", "id"]).index.to_numpy().argsort()
        groups = rows["group"].to_numpy()
        return cls(entries, objects, groups, measured, order=place, thresholds=thresholds)

    @classmethod
    def of_50(cls, outcomes: pd.DataFrame, columns: Sequence[str]) -> CocoAP:
        """At IoU 0.5; see `of`."""
        return cls.of(outcomes, columns, (0,))

    @classmethod
    def of_75(cls, outcomes: pd.DataFrame, columns: Sequence[str]) -> CocoAP:
        """At IoU 0.75; see `of`."""
        return cls.of(outcomes, columns, (5,))


def _scores_and_labels(
    outcomes: pd.DataFrame, columns: Sequence[str]
) -> tuple[FloatArray, IntArray, npt.NDArray[Any], BoolArray]:
    rows, measured = measured_rows(outcomes, columns)
    scores = stacked(rows, columns[0], np.float64)
    labels = stacked(rows, columns[1], np.int64)
    if scores.shape != labels.shape:
        raise ValueError(f"{columns[0]!r} and {columns[1]!r} are lists of different lengths.")
    return scores, labels, rows["group"].to_numpy(), measured
