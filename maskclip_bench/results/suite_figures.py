"""Two figures of a suite: mean ranks with their ties, and score against cost (needs matplotlib)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pandas as pd

from maskclip_bench import storage
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.escaping import one_line
from maskclip_bench.results.suite_statistics import SuiteStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cost = Literal["gpu_hours", "images_seen", "parameters"]

COST_LABELS: dict[str, str] = {
    "gpu_hours": "GPU-hours of pretraining",
    "images_seen": "images seen in pretraining",
    "parameters": "parameters of the image encoder",
}
INK, GREY = "#1f2328", "#6e7781"


@dataclass(frozen=True)
class CostPoint:
    """One row of a score-against-cost figure.

    Attributes:
        name: Of the row.
        cost: Above 0, in the unit of the figure.
        score: A fraction.
        low: Lower end of the interval of the score; the score itself without one.
        high: Its upper end.
    """

    name: str
    cost: float
    score: float
    low: float
    high: float


def draw_critical_difference(found: SuiteStatistics, path: Path) -> None:
    """Mean ranks on a line, best at the left; a bar joins rows that are not told apart.

    Demsar's diagram (2006); thin lines are the 95 % intervals over the test samples. The format is
    that of the suffix of `path`.
    """
    number = len(found.rows)
    order = sorted(range(number), key=lambda row: float(found.mean_ranks[row]))
    bars = [group for group in found.ties if len(group) > 1]
    height = 0.7 + 0.28 * number + 0.16 * len(bars)
    figure, axes = _figure(7.0, height)
    axes.set_xlim(0.7, number + 0.3)
    axes.set_ylim(-(number + 1 + 0.6 * len(bars)), 1.2)
    axes.xaxis.tick_top()
    axes.set_xticks(range(1, number + 1))
    axes.get_yaxis().set_visible(False)
    for side in ("left", "right", "bottom"):
        axes.spines[side].set_visible(False)
    for position, row in enumerate(order):
        y = -position - 0.5
        rank = float(found.mean_ranks[row])
        axes.plot([found.rank_low[row], found.rank_high[row]], [y, y], color=GREY, linewidth=1)
        axes.plot([rank], [y], "o", color=INK, markersize=4)
        left = position < number / 2
        axes.annotate(
            f"{one_line(found.rows[row])}  {rank:.2f}",
            (found.rank_high[row] if left else found.rank_low[row], y),
            xytext=(6 if left else -6, 0),
            textcoords="offset points",
            ha="left" if left else "right",
            va="center",
            fontsize=8,
            parse_math=False,
        )
    for index, group in enumerate(bars):
        ends = [float(found.mean_ranks[row]) for row in group]
        y = -number - 0.6 * (index + 1)
        axes.plot([min(ends) - 0.03, max(ends) + 0.03], [y, y], color=INK, linewidth=3)
    axes.set_title(
        f"Mean rank over {len(found.tasks)} tasks; critical difference "
        f"{found.critical_difference:.2f} (Nemenyi); bars join ties",
        fontsize=9,
    )
    _save(figure, path)


def draw_score_against_cost(
    points: Sequence[CostPoint], path: Path, *, cost: Cost, score: str
) -> None:
    """One point a row with its interval; a line joins the rows that none beats at lower cost.

    Args:
        points: The rows.
        path: Of the picture; its suffix says the format.
        cost: What the horizontal axis is, logarithmic.
        score: What the vertical axis is called.

    Raises:
        DataError: There is no point, or a cost is not above 0.
    """
    if not points or any(not point.cost > 0 for point in points):
        raise DataError(
            f"No {COST_LABELS[cost]} is known of some row, or it is not above 0. Leave the row out."
        )
    figure, axes = _figure(6.0, 4.0)
    axes.set_xscale("log")
    for point in points:
        axes.plot([point.cost] * 2, [100 * point.low, 100 * point.high], color=GREY, linewidth=1)
        axes.plot([point.cost], [100 * point.score], "o", color=INK, markersize=4)
        axes.annotate(
            one_line(point.name),
            (point.cost, 100 * point.score),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8,
            parse_math=False,
        )
    front = pareto_front(points)
    axes.plot(
        [point.cost for point in front],
        [100 * point.score for point in front],
        color=GREY,
        linewidth=0.8,
        linestyle="--",
    )
    axes.set_xlabel(COST_LABELS[cost])
    axes.set_ylabel(one_line(score), parse_math=False)
    axes.margins(x=0.15, y=0.15)
    _save(figure, path)


def read_costs(path: Path) -> tuple[Cost, dict[str, float]]:
    """The costs in a CSV file: which kind, and backbone -> cost.

    Args:
        path: Columns: backbone, and one of `COST_LABELS` (the first of them is taken).

    Raises:
        DataError: The file cannot be read, or lacks a column.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}.") from error
    kinds = [name for name in COST_LABELS if name in table]
    if "backbone" not in table or not kinds:
        raise DataError(
            f"{path} has the columns {list(table.columns)}; it needs backbone and one of "
            f"{', '.join(COST_LABELS)}."
        )
    costs = zip(table["backbone"], table[kinds[0]], strict=True)
    return cast("Cost", kinds[0]), {str(row): float(cost) for row, cost in costs}


def draw_costs(
    found: SuiteStatistics, costs: Mapping[str, float], path: Path, *, cost: Cost
) -> list[str]:
    """`draw_score_against_cost` with the mean score of each row.

    Args:
        found: The rows and their scores.
        costs: Backbone -> cost.
        path: Of the picture.
        cost: Which cost that is.

    Returns:
        Names of the rows that cost nothing, which a logarithmic axis has no place for.

    Raises:
        DataError: The cost of a row is missing, or no row has one above 0.
    """
    missing = [name for name in found.backbones if name not in costs]
    if missing:
        raise DataError(f"No cost is given of {', '.join(missing)}. Add a line for each.")
    scores = (found.mean_scores, found.mean_low, found.mean_high)
    points = [
        CostPoint(name, costs[backbone], *(float(each[index]) for each in scores))
        for index, (name, backbone) in enumerate(zip(found.rows, found.backbones, strict=True))
    ]
    drawn = [point for point in points if point.cost != 0]
    label = f"mean over {len(found.tasks)} tasks, %"
    draw_score_against_cost(drawn, path, cost=cost, score=label)
    return [point.name for point in points if point.cost == 0]


def pareto_front(points: Sequence[CostPoint]) -> list[CostPoint]:
    """Rows that no other beats at the same or lower cost, by cost.

    Example:
        >>> [p.name for p in pareto_front([CostPoint("a", 1, 0.5, 0.5, 0.5),
        ...     CostPoint("b", 2, 0.4, 0.4, 0.4), CostPoint("c", 3, 0.6, 0.6, 0.6)])]
        ['a', 'c']
    """
    front: list[CostPoint] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> None:
    import matplotlib as mpl

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "suite", "pdf.fonttype": 42}
    same = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise ConfigError(f"{path.name!r}: a figure is .png, .svg or .pdf; name one.")
    with warnings.catch_warnings(), mpl.rc_context(settings):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        with storage.atomic_file(path) as temporary:
            figure.savefig(
                temporary, format=kind, dpi=200, facecolor="white", metadata=same.get(kind)
            )
