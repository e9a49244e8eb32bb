"""The figure of a study: scores against passes and against cost, with bands over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from maskclip_bench.errors import DataError, MissingDependencyError
from maskclip_bench.extras import install_command
from maskclip_bench.study.collecting import CURVES_FILE, HELD_OUT
from maskclip_bench.study.declaration import StudyDeclaration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#57606a", "#0969da", "#bf8700", "#8250df", "#1a7f37", "#cf222e", "#953800", "#1b7c83")
INK, FAINT = "#1f2328", "#d0d7de"
PANEL = (3.1, 2.5)
"""Width and height of a panel in inches."""


def draw_figure(
    study: StudyDeclaration, folder: Path, output: Path, *, rows: dict[str, str]
) -> None:
    """Draw `curves.csv` of a folder and write it as PNG.

    Above: the shown metrics and the held-out loss against passes. Below: against training cost, in
    passes of CLIP. The band is the mean plus and minus the standard deviation over the seeds that
    have the point; without a band a line is of one seed.

    Args:
        study: Whose.
        folder: Where `collect` wrote.
        output: The PNG.
        rows: Rows that are shown, and what they are called.

    Raises:
        DataError: There is no such table, or none of the rows is in it.
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            f"The figure needs matplotlib: {install_command('pictures')}"
        ) from None
    table = read_curves(folder, rows)
    panels = [(part.key, part.title) for part in study.curve.show] if study.curve else []
    panels = [(key, title) for key, title in panels if (table["metric"] == key).any()]
    if (table["metric"] == HELD_OUT).any():
        panels.append((HELD_OUT, "Held-out contrastive loss"))
    figure = Figure(figsize=(PANEL[0] * len(panels), 2 * PANEL[1] + 0.7), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False)
    for column, (metric, title) in enumerate(panels):
        for place, x, label in ((0, "passes", "passes"), (1, "cost", "cost in passes of CLIP")):
            _draw_panel(axes[place, column], table[table["metric"] == metric], x, rows)
            axes[place, column].set_xlabel(label, fontsize=8)
        axes[0, column].set_title(title, fontsize=9, loc="left", color=INK)
    lines = {line.get_label(): line for panel in axes.flat for line in panel.get_lines()}
    figure.legend(
        list(lines.values()), list(lines), loc="outside lower center", ncols=len(rows),
        frameon=False, fontsize=9,
    )  # fmt: skip
    FigureCanvasAgg(figure)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, format="png", dpi=150, facecolor="white")


def read_curves(folder: Path, rows: dict[str, str]) -> pd.DataFrame:
    """The lines of `curves.csv` of some rows.

    Raises:
        DataError: There is no such table, or none of the rows is in it.
    """
    path = folder / CURVES_FILE
    try:
        table = pd.read_csv(path)
        table = table[table["row"].isin(list(rows))]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Make it with: maskclip-bench study report"
        ) from error
    if table.empty:
        raise DataError(f"{path} has no line of {', '.join(rows)}; nothing can be drawn.")
    return table


def band(table: pd.DataFrame, x: str) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds at each `x`, of those that most seeds have.

    Args:
        table: Lines of one row and one metric.
        x: "passes" or "cost".
    """
    grouped = table.groupby(x)["value"]
    points = pd.DataFrame({"mean": grouped.mean(), "sd": grouped.std(), "n": grouped.count()})
    return points[points["n"] == points["n"].max()].reset_index()


def _draw_panel(axes: Axes, table: pd.DataFrame, x: str, rows: dict[str, str]) -> None:
    for (row, name), colour in zip(rows.items(), COLOURS, strict=False):
        of_row = table[table["row"] == row]
        if of_row.empty:
            continue
        points = band(of_row, x)
        scale = 1.0 if (of_row["metric"] == HELD_OUT).all() else 100.0
        seeds = int(points["n"].max())
        label = f"{name} ({seeds} seed{'s' if seeds > 1 else ''})"
        style: dict[str, Any] = {"color": colour, "linewidth": 1.4}
        axes.plot(points[x], scale * points["mean"], label=label, **style)
        if seeds > 1:
            low, high = points["mean"] - points["sd"], points["mean"] + points["sd"]
            axes.fill_between(points[x], scale * low, scale * high, color=colour, alpha=0.15, lw=0)
    axes.tick_params(labelsize=7, colors=INK)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
