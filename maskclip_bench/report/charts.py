"""The charts of the report, from plain values: intervals, curves, scatters, classes, confusion.

All values of scores are fractions and are drawn in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskclip_bench.report.drawing import MARKERS, Drawing, series_role, text_width

LABEL = 12.0
SMALL = 10.5
MAX_NAME = 34
"""Characters of a name; longer ones are cut with a sign that says so."""
MAX_CLASSES = 24
"""Bars of a chart over classes; of more, the lowest and the highest are drawn."""
MAX_HINTS = 4_000
"""Fields of a confusion matrix up to which each says its numbers; more make a page slow."""


@dataclass(frozen=True)
class Estimate:
    """A score with what is known of it.

    Attributes:
        label: Its name.
        value: A fraction.
        low: Lower end of its interval, if there is one.
        high: Upper end.
        chance: Score of guessing.
        series: Place of its row among the rows, which decides colour and marker.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    series: int = 0


@dataclass(frozen=True)
class Curve:
    """Values over a number.

    Attributes:
        label: Its name.
        x: Numbers, rising.
        y: Values.
        series: Place of its row among the rows.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    series: int = 0


def short(text: str, length: int = MAX_NAME) -> str:
    """A name cut to a length, with an ellipsis where it was cut."""
    return text if len(text) <= length else text[: length - 1] + "…"


def intervals(
    title: str, estimates: Sequence[Estimate], *, width: float = 640, small: bool = False
) -> Drawing:
    """A dot and an interval for each score, one below the other; a tick where guessing is.

    Args:
        title: What it shows.
        estimates: At least one.
        width: Of the drawing.
        small: One of several beside each other: its title is drawn, numbers are without intervals.
    """
    left = min(0.45 * width, 14 + max(text_width(short(e.label), LABEL) for e in estimates))
    right, line = width - (46 if small else 124), 19.0 if small else 22.0
    top = 28.0 if small else 10.0
    drawing = Drawing(width, top + line * len(estimates) + (20 if small else 28), title)
    if small:
        drawing.text(0, 14, short(title, int(width / (0.62 * LABEL))), size=LABEL, bold=True)
    ends = [v for e in estimates for v in (e.value, e.low, e.high, e.chance) if v is not None]
    ticks = nice_ticks(100 * min(0.0, *ends), 100 * max(ends), number=3 if small else 5)
    low, high = ticks[0], ticks[-1]

    def place(value: float) -> float:
        return left + (right - left) * (100 * value - low) / ((high - low) or 1)

    bottom = top + line * len(estimates)
    for tick in ticks:
        x = place(tick / 100)
        drawing.line([(x, top - 2), (x, bottom)], stroke="faint")
        drawing.text(x, bottom + 15, f"{tick:g}", size=SMALL, fill="muted", anchor="middle")
    for index, estimate in enumerate(estimates):
        y = top + line * (index + 0.5)
        role = series_role(estimate.series)
        drawing.text(0, y + 4, short(estimate.label, 18 if small else MAX_NAME), size=LABEL)
        if estimate.low is not None and estimate.high is not None:
            ends_of = [(place(estimate.low), y), (place(estimate.high), y)]
            drawing.line(ends_of, stroke=role, width=2)
        if estimate.chance is not None:
            x = place(estimate.chance)
            drawing.line([(x, y - 6), (x, y + 6)], stroke="muted", width=1.5, dashed=True)
        shape = MARKERS[estimate.series % len(MARKERS)]
        hint = _hint(estimate)
        drawing.marker(place(estimate.value), y, shape=shape, fill=role, size=4.5, hint=hint)
        text = f"{100 * estimate.value:.1f}" if small else _estimate_text(estimate)
        drawing.text(right + 10, y + 4, text, size=SMALL, fill="muted")
    if not small:
        drawing.text(0, bottom + 15, "percent", size=SMALL, fill="muted")
    return drawing


def _estimate_text(estimate: Estimate) -> str:
    number = f"{100 * estimate.value:.1f}"
    if estimate.low is None or estimate.high is None:
        return number
    return f"{number} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def _hint(estimate: Estimate) -> str:
    """What a page says where the pointer is over the marker: the whole name, all that is known."""
    chance = "" if estimate.chance is None else f"; guessing {100 * estimate.chance:.1f}"
    return f"{estimate.label}: {_estimate_text(estimate)}{chance}"


def curves(
    title: str,
    lines: Sequence[Curve],
    *,
    x_label: str,
    percent: bool = False,
    marked: bool = False,
    log_x: bool = False,
    width: float = 360,
    height: float = 210,
) -> Drawing:
    """Curves in one frame.

    Args:
        title: Also drawn above the frame.
        lines: At least one, each of at least one point; points that are not finite are left out.
        x_label: Below the frame.
        percent: Whether the values are fractions, to be drawn in percent.
        marked: Whether points get markers.
        log_x: Whether x is logarithmic (then all x are above 0).
        width: Of the drawing.
        height: Of the drawing.
    """
    drawing = Drawing(width, height, title)
    factor = 100 if percent else 1
    known = [
        [(x, factor * y) for x, y in zip(c.x, c.y, strict=True) if math.isfinite(y)] for c in lines
    ]
    values = [y for points in known for _, y in points] or [0.0]
    xs = [math.log10(x) if log_x else x for points in known for x, _ in points] or [0.0]
    ticks = nice_ticks(min(values), max(values))
    left = 12 + max(text_width(f"{t:g}", SMALL) for t in ticks)
    frame = _Frame(left, 26, width - 20, height - 34, min(xs), max(xs), ticks[0], ticks[-1])
    _rules(drawing, frame, title, ticks)
    for x, text in _x_ticks(lines, log_x=log_x):
        drawing.text(frame.x(x), frame.bottom + 15, text, size=SMALL, fill="muted", anchor="middle")
    _x_label(drawing, frame, x_label)
    drawing.scale = {
        "x": [frame.x_low, frame.x_high, frame.left, frame.right],
        "y": [frame.y_low, frame.y_high, frame.bottom, frame.top],
        "x_label": x_label,
        "log": log_x,
    }
    for curve, points in zip(lines, known, strict=True):
        role = series_role(curve.series)
        placed = [(frame.x(math.log10(x) if log_x else x), frame.y(y)) for x, y in points]
        drawing.line(placed, stroke=role, width=1.8, name=curve.label)
        for x, y in placed if marked else placed[-1:]:  # one marker tells rows apart without colour
            shape = MARKERS[curve.series % len(MARKERS)]
            drawing.marker(x, y, shape=shape, fill=role, size=3.5)
    return drawing


def scatter(
    title: str,
    points: Sequence[tuple[float, Estimate]],
    *,
    x_label: str,
    width: float = 420,
    height: float = 260,
) -> Drawing:
    """Scores with intervals over a cost; each point carries its name.

    Args:
        title: Also drawn above the frame.
        points: (cost, score), at least one.
        x_label: Below the frame.
        width: Of the drawing.
        height: Of the drawing.
    """
    drawing = Drawing(width, height, title)
    ends = [100 * v for _, e in points for v in (e.value, e.low, e.high) if v is not None]
    ticks = nice_ticks(min(ends), max(ends))
    x_ticks = nice_ticks(0.0, max(x for x, _ in points))
    left = 12 + max(text_width(f"{t:g}", SMALL) for t in ticks)
    frame = _Frame(left, 26, width - 70, height - 38, 0.0, x_ticks[-1], ticks[0], ticks[-1])
    _rules(drawing, frame, title, ticks)
    for tick in x_ticks:
        drawing.text(
            frame.x(tick), frame.bottom + 15, f"{tick:g}", size=SMALL, fill="muted", anchor="middle"
        )
    _x_label(drawing, frame, x_label)
    taken = [(frame.x(x) - 7, frame.y(100 * e.value) - 7, 14.0, 14.0) for x, e in points]
    for x, estimate in sorted(points, key=lambda point: -point[1].value):
        role = series_role(estimate.series)
        at = (frame.x(x), frame.y(100 * estimate.value))
        if estimate.low is not None and estimate.high is not None:
            low, high = frame.y(100 * estimate.low), frame.y(100 * estimate.high)
            drawing.line([(at[0], low), (at[0], high)], stroke=role, width=1.5, opacity=0.6)
        shape = MARKERS[estimate.series % len(MARKERS)]
        hint = f"{_hint(estimate)}; {x_label}: {x:.4g}"
        drawing.marker(*at, shape=shape, fill=role, size=5, hint=hint)
        text = short(estimate.label, 20)
        box = _free_box(at, text_width(text, SMALL), taken, width)
        taken.append(box)
        drawing.text(box[0], box[1] + 10, text, size=SMALL)
    return drawing


_Box = tuple[float, float, float, float]
"""Left, top, width, height."""


def _free_box(at: tuple[float, float], length: float, taken: Sequence[_Box], width: float) -> _Box:
    """Where a label of a length goes: beside its point, where it covers nothing."""
    x, y = at
    sides = [(x + 9, y - 7), (x - 9 - length, y - 7), (x - length / 2, y - 22)]
    sides += [(x - length / 2, y + 8), (x + 6, y - 20), (x + 6, y + 7), (x - length - 4, y + 7)]
    for left, top in sides:
        inside = left >= 0 and left + length <= width
        box = (left, top, length, 13.0)
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    return (*sides[0], length, 13.0)


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def class_bars(
    title: str,
    names: Sequence[str],
    values: Sequence[float],
    *,
    series: int = 0,
    width: float = 520,
    name_length: int = 26,
) -> Drawing:
    """A bar for each class, the highest first; of many classes the highest and the lowest ones.

    Args:
        title: What it shows.
        names: Of the classes.
        values: Fractions; NaN for classes without a sample, which are left out.
        series: Place of the row among the rows.
        width: Of the drawing.
        name_length: Characters of a name that are drawn.
    """
    known = [(n, v) for n, v in zip(names, values, strict=True) if math.isfinite(v)]
    ordered = sorted(known, key=lambda pair: (-pair[1], pair[0]))
    half = MAX_CLASSES // 2
    left_out = max(0, len(ordered) - MAX_CLASSES)
    rows: list[tuple[str, float | None]] = [*ordered]
    if left_out:
        gap = (f"… {left_out} classes between", None)
        rows = [*ordered[:half], gap, *ordered[-half:]]
    line = 17.0
    drawing = Drawing(width, 6 + line * max(len(rows), 1), title)
    longest = max((text_width(short(name, name_length), SMALL) for name, _ in rows), default=0)
    left = min(0.5 * width, 10 + longest)
    extent = width - left - 46
    highest = max((v for _, v in rows if v is not None), default=0.0) or 1.0
    for index, (name, value) in enumerate(rows):
        y = 4 + line * index
        fill = "ink" if value is not None else "muted"
        drawing.text(
            left - 8, y + 11, short(name, name_length), size=SMALL, anchor="end", fill=fill
        )
        if value is not None:
            length = extent * value / highest
            text = f"{100 * value:.1f}"
            drawing.rect(
                left,
                y + 2,
                max(length, 0.5),
                line - 5,
                fill=series_role(series),
                hint=f"{name}: {text}",
            )
            drawing.text(left + length + 6, y + 11, text, size=SMALL, fill="muted")
    return drawing


def confusion(title: str, counts: NDArray[np.int64], names: Sequence[str]) -> Drawing:
    """A matrix of classes: rows are the truth, columns what was said; darker is more.

    Args:
        title: What it shows.
        counts: [C, C].
        names: Of the classes; drawn where there is room for them.
    """
    number = len(counts)
    size = max(4.0, min(22.0, 440.0 / number))
    named = number <= 40 and size >= 10
    left = 12 + max((text_width(short(n, 18), SMALL) for n in names), default=0) if named else 26
    drawing = Drawing(left + size * number + 6, size * number + 30, title)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    drawing.rect(left, 4, size * number, size * number, fill="faint", opacity=0.35)
    hinted = np.count_nonzero(counts) <= MAX_HINTS
    for row, column in zip(*np.nonzero(counts), strict=True):
        fill = "good" if row == column else "bad"
        opacity = round(0.12 + 0.88 * float(shares[row, column]), 2)
        x, y = left + size * column, 4 + size * row
        hint = f"{names[row]} → {names[column]}: {counts[row, column]}" if hinted else ""
        drawing.rect(x, y, size, size, fill=fill, opacity=opacity, hint=hint)
    if named:
        for index, name in enumerate(names):
            y = 4 + size * (index + 0.5) + 4
            drawing.text(left - 6, y, short(name, 18), size=min(SMALL, size), anchor="end")
    else:
        drawing.text(0, 4 + SMALL, "truth", size=SMALL, fill="muted")
    drawing.text(
        left, size * number + 22, "said: same order, left to right", size=SMALL, fill="muted"
    )
    return drawing


def calibration(
    title: str, confidence: Sequence[float], right: Sequence[float], *, num_bins: int = 15
) -> tuple[Drawing, float]:
    """Accuracy over confidence in bins of equal width, and the expected calibration error.

    The error is the mean over samples of |accuracy - confidence| of their bin (Guo et al. 2017).

    Args:
        title: What it shows.
        confidence: Of each prediction, 0 to 1.
        right: 1 where it is right.
        num_bins: Bins between 0 and 1.

    Returns:
        The drawing, and the error as a fraction.
    """
    sure = np.asarray(confidence, dtype=np.float64)
    good = np.asarray(right, dtype=np.float64)
    index = np.clip(np.ceil(sure * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(index, minlength=num_bins)
    mean_sure = np.bincount(index, sure, num_bins) / np.maximum(counts, 1)
    mean_good = np.bincount(index, good, num_bins) / np.maximum(counts, 1)
    error = float((counts * np.abs(mean_good - mean_sure)).sum() / max(len(sure), 1))
    drawing = Drawing(300, 300, f"{title}; expected calibration error {100 * error:.1f} percent")
    frame = _Frame(40, 12, 288, 256, 0, 1, 0, 100)
    drawing.line(
        [(frame.x(0), frame.y(0)), (frame.x(1), frame.y(100))], stroke="muted", dashed=True
    )
    for tick in (0, 25, 50, 75, 100):
        drawing.line([(frame.left, frame.y(tick)), (frame.right, frame.y(tick))], stroke="faint")
        drawing.text(34, frame.y(tick) + 4, tick, size=SMALL, fill="muted", anchor="end")
        drawing.text(frame.x(tick / 100), 272, tick, size=SMALL, fill="muted", anchor="middle")
    for b in np.flatnonzero(counts):
        x0, x1 = frame.x(b / num_bins), frame.x((b + 1) / num_bins)
        top = frame.y(100 * mean_good[b])
        hint = (
            f"confidence {100 * mean_sure[b]:.1f}: accuracy {100 * mean_good[b]:.1f}, "
            f"{counts[b]} predictions"
        )
        height = frame.bottom - top
        drawing.rect(x0 + 1, top, x1 - x0 - 2, height, fill="good", opacity=0.75, hint=hint)
    drawing.text(
        164, 292, "confidence, percent (bars: accuracy)", size=SMALL, fill="muted", anchor="middle"
    )
    return drawing, error


@dataclass(frozen=True)
class _Frame:
    left: float
    top: float
    right: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        extent = (self.x_high - self.x_low) or 1
        return self.left + (self.right - self.left) * (value - self.x_low) / extent

    def y(self, value: float) -> float:
        extent = (self.y_high - self.y_low) or 1
        return self.bottom - (self.bottom - self.top) * (value - self.y_low) / extent


def _rules(drawing: Drawing, frame: _Frame, title: str, ticks: Sequence[float]) -> None:
    """The title, and a line with its number for each tick of y."""
    name = short(title, int(drawing.width / (0.62 * LABEL)))
    drawing.text(0, 14, name, size=LABEL, bold=True)
    for tick in ticks:
        y = frame.y(tick)
        drawing.line([(frame.left, y), (frame.right, y)], stroke="faint")
        drawing.text(frame.left - 6, y + 4, f"{tick:g}", size=SMALL, fill="muted", anchor="end")


def _x_label(drawing: Drawing, frame: _Frame, text: str) -> None:
    x, y = (frame.left + frame.right) / 2, drawing.height - 4
    drawing.text(x, y, text, size=SMALL, fill="muted", anchor="middle")


def nice_ticks(low: float, high: float, *, number: int = 5) -> list[float]:
    """Round numbers that span low to high, about `number` of them, at least two.

    Example:
        >>> nice_ticks(0, 47)
        [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    raw = (high - low) / number
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _x_ticks(lines: Sequence[Curve], *, log_x: bool) -> list[tuple[float, str]]:
    xs = sorted({x for curve in lines for x in curve.x})
    if not xs:
        return []
    if len(xs) <= 6:
        return [(math.log10(x) if log_x else x, f"{x:g}") for x in xs]
    if log_x:
        return [(math.log10(xs[0]), f"{xs[0]:g}"), (math.log10(xs[-1]), f"{xs[-1]:g}")]
    inside = [t for t in nice_ticks(xs[0], xs[-1], number=4) if xs[0] <= t <= xs[-1]]
    return [(tick, f"{tick:g}") for tick in inside]
