"""A forest plot: paired differences of two rows, one line a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maskclip_bench.report.charts import LABEL, MAX_NAME, SMALL, nice_ticks, short
from maskclip_bench.report.drawing import Drawing, text_width
from maskclip_bench.results.table_model import signed_points

LINE = 22.0
TOP = 46.0
NUMBERS = 152.0
"""Width of the numbers at the right."""


@dataclass(frozen=True)
class Difference:
    """One line of the plot; numbers are fractions.

    Attributes:
        label: Of the data set, or of the column.
        value: First row minus second row.
        low: Lower end of its 95 % interval; None where there is no test.
        high: Upper end.
        is_clear: Whether the corrected test calls it clear.
        higher_is_better: Direction of the metric; False for errors.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    is_clear: bool = False
    higher_is_better: bool = True


def forest(
    differences: Sequence[Difference], *, first: str, second: str, width: float = 760
) -> Drawing:
    """Points with intervals around a line at zero; filled where the difference is clear.

    Args:
        differences: At least one.
        first: The row whose scores come first.
        second: The row that is subtracted.
        width: Of the drawing.
    """
    title = f"{short(first)} minus {short(second)}, in points"
    drawing = Drawing(width, TOP + LINE * len(differences) + 24, title)
    drawing.text(0, 14, title, size=LABEL, bold=True)
    note = "Lines: 95 % intervals, paired. Filled: clear after Holm's correction."
    drawing.text(0, 31, note, size=SMALL, fill="muted")
    left = min(0.4 * width, 14 + max(text_width(short(d.label), LABEL) for d in differences))
    right = width - NUMBERS
    ends = [abs(end) for d in differences for end in (d.value, d.low, d.high) if end is not None]
    extent = 100 * max([end for end in ends if math.isfinite(end)] or [0.0]) or 1.0
    ticks = nice_ticks(-extent, extent)

    def place(points: float) -> float:
        return left + (right - left) * (points - ticks[0]) / (ticks[-1] - ticks[0])

    bottom = TOP + LINE * len(differences)
    for tick in ticks:
        x = place(tick)
        drawing.line([(x, TOP - 4), (x, bottom)], stroke="muted" if tick == 0 else "faint")
        drawing.text(x, bottom + 15, f"{tick:g}", size=SMALL, fill="muted", anchor="middle")
    for index, difference in enumerate(differences):
        _draw_line(drawing, difference, place, TOP + LINE * (index + 0.5), right + 12)
    return drawing


def _draw_line(
    drawing: Drawing, difference: Difference, place: Callable[[float], float], y: float, x: float
) -> None:
    """One difference: its name, interval, point and numbers (from `x` on)."""
    better = (difference.value > 0) == difference.higher_is_better
    role = ("good" if better else "bad") if difference.is_clear else "muted"
    drawing.text(0, y + 4, short(difference.label, MAX_NAME), size=LABEL)
    text = signed_points(difference.value, 1) + ("*" if difference.is_clear else "")
    if difference.low is not None and difference.high is not None:
        low, high = (100 * end for end in (difference.low, difference.high))
        drawing.line([(place(low), y), (place(high), y)], stroke=role, width=2)
        ends = (signed_points(end, 1) for end in (difference.low, difference.high))
        text += f" ({' to '.join(ends)})"
    else:
        text += " (no test)"
    at = place(100 * difference.value)
    drawing.marker(at, y, fill=role, size=5, hint=f"{difference.label}: {text}")
    if not difference.is_clear:
        drawing.marker(at, y, fill="paper", size=3, hint=f"{difference.label}: {text}")
    drawing.text(x, y + 4, text, size=SMALL, fill="muted")
