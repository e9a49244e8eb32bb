"""A table, declared (rows x columns, `configs/tables/*.yaml`) and filled (cells with an origin)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from maskclip_bench.config import Declaration, World
from maskclip_bench.results.reference import PublishedSelector, PublishedSource

SIGNIFICANCE = 0.05
"""Corrected p-value at which a difference is called clear."""

Origin = Literal["measured", "synthetic", "published", "chance", "failed", "missing"]
"""Where a cell's number comes from. Synthetic: measured here, on the demo world."""


class ColumnDeclaration(Declaration):
    """One column: a metric of a task, or an average of other columns."""

    title: str
    """Header, e.g. "R@1"."""
    group: str = ""
    """Header above the headers of neighbouring columns of the same group, e.g. "Zero-shot"."""
    task: str | None = None
    """`protocol/dataset`; left out for an average."""
    metric: str | None = None
    """Name of the metric in the records; left out for an average."""
    preset: str | None = None
    """Show only this preset; None = whichever the records have, as long as it is one."""
    average: Literal["all", "group"] | None = None
    """Mean over all task columns of the table, or over those of the same group."""
    decimals: int = Field(default=1, ge=0, le=3)
    """Of the percentage."""

    @property
    def one_line(self) -> str:
        """Group and title in one line, e.g. "Zero-shot val"."""
        return f"{self.group} {self.title}".replace("\n", " ").strip()

    @model_validator(mode="after")
    def _task_or_average(self) -> ColumnDeclaration:
        if self.average is None and (self.task is None or self.metric is None):
            raise ValueError("a column needs a task and a metric, or an average")
        if self.average is not None and (self.task or self.metric or self.preset):
            raise ValueError("an average has no task, metric or preset of its own")
        return self


class RowDeclaration(Declaration):
    """One row: a backbone measured here, or numbers published elsewhere."""

    name: str
    """What the table calls it."""
    backbone: str | None = None
    """Name of a file in `backbones/`."""
    seeds: list[int] | None = None
    """Pretraining seeds to average over; None = all that are recorded."""
    published: list[PublishedSelector] = Field(default_factory=list)
    """Where published numbers of the row stand; the first that has a column's number wins."""
    group: str = ""
    """Rows of one group stand together, ruled off from the next."""

    @model_validator(mode="after")
    def _one_origin(self) -> RowDeclaration:
        if (self.backbone is None) == (not self.published):
            raise ValueError("a row is measured (backbone) or published, one of the two")
        return self


class TableDeclaration(Declaration):
    """What a table shows; `configs/tables/<name>.yaml`."""

    title: str
    caption: str = ""
    """A sentence below the table."""
    world: World
    """Records of another world are refused."""
    columns: list[ColumnDeclaration] = Field(min_length=1)
    rows: list[RowDeclaration] = Field(min_length=1)
    baseline: str | None = None
    """Backbone of the row that measured rows are compared with."""
    data_by_seed: bool = False
    """Each seed has data of its own (a study's worlds): only rows of one seed must share them."""
    limited: bool = False
    """Show cells that were measured under a limit (all of a column under the same), and say so."""

    @model_validator(mode="after")
    def _consistent(self) -> TableDeclaration:
        names = [(row.group, row.name) for row in self.rows]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"a row stands twice in its group: {repeated}")
        backbones = [row.backbone for row in self.rows if row.backbone]
        if self.baseline is not None and self.baseline not in backbones:
            raise ValueError(f"the baseline {self.baseline!r} is not among the rows {backbones}")
        if self.world != "real" and any(row.published for row in self.rows):
            raise ValueError(f"published numbers cannot stand in a table of the {self.world} world")
        return self


@dataclass(frozen=True)
class TableCell:
    """One cell; numbers are fractions.

    Attributes:
        origin: Where the number comes from.
        value: The score (mean over seeds); None where there is none.
        low: Lower end of the 95 % interval over the test samples, of one seed.
        high: Upper end.
        half_width: Longer side of the 95 % interval (one seed), or the standard deviation over
            seeds.
        num_seeds: Seeds behind the value.
        delta: Difference to the baseline row; None for the baseline itself.
        delta_interval: 95 % interval of the difference, paired by sample or by seed.
        p_value: Of "no difference", by itself.
        adjusted_p_value: The same after Holm's correction over all differences of the table.
        covers: Which noise the test covers: "samples" of the test set (one training run a row) or
            training "seeds"; empty where there is no test.
        best: Whether the value is the best of its column, as displayed (see `with_marks`).
        second: Whether it is the second best.
        tied: Whether it is not the best of its column and not told apart from it (`with_ties`).
        sources: For a published cell, where it stands: the paper's table, and where that was read.
        error: For a failed cell, what went wrong.
        preset: Of the protocol, where it is known.
    """

    origin: Origin
    value: float | None = None
    half_width: float | None = None
    num_seeds: int = 0
    delta: float | None = None
    delta_interval: tuple[float, float] | None = None
    p_value: float | None = None
    adjusted_p_value: float | None = None
    covers: Literal["samples", "seeds", ""] = ""
    best: bool = False
    second: bool = False
    tied: bool = False
    sources: tuple[PublishedSource, ...] = ()
    error: str = ""
    preset: str | None = None
    low: float | None = None
    high: float | None = None

    @property
    def is_clear(self) -> bool:
        """True if the corrected p-value of the difference is at most 0.05."""
        return self.adjusted_p_value is not None and self.adjusted_p_value <= SIGNIFICANCE


MISSING_CELL = TableCell("missing")


@dataclass(frozen=True)
class TableRow:
    """One row of a filled table."""

    name: str
    group: str
    cells: tuple[TableCell, ...]
    backbone: str | None = None

    @property
    def is_published(self) -> bool:
        """True if the numbers of the row were published elsewhere."""
        return any(cell.origin == "published" for cell in self.cells)

    @property
    def label(self) -> str:
        """The name, with a mark if its numbers were published elsewhere."""
        return f"{self.name} †" if self.is_published else self.name


@dataclass(frozen=True)
class Table:
    """A filled table, ready to be rendered.

    Attributes:
        title: Heading.
        caption: Sentence below.
        world: Of all its numbers.
        columns: As declared, without those that no row has.
        rows: Those that have a number.
        notes: What the marks mean, what was left out, where published numbers stand.
        baseline: Backbone of the row that the others are compared with; None = no comparison.
    """

    title: str
    caption: str
    world: World
    columns: tuple[ColumnDeclaration, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]
    baseline: str | None = None

    @property
    def is_empty(self) -> bool:
        """True if nothing was measured or published."""
        return not self.rows or not self.columns

    @property
    def remarks(self) -> list[str]:
        """What stands below the rows: the caption, then the notes."""
        return [remark for remark in (self.caption, *self.notes) if remark]


def runs(names: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    """Runs of equal neighbours: (first index, last index, name).

    Example:
        >>> list(runs(["a", "a", "b"]))
        [(0, 1, 'a'), (2, 2, 'b')]
    """
    start = 0
    for name, run in itertools.groupby(names):
        length = len(list(run))
        yield start, start + length - 1, name
        start += length


def percent(value: float, decimals: int) -> str:
    """A fraction as a percentage without its sign, e.g. 0.376 -> "37.6"."""
    return f"{100 * value:.{decimals}f}"


def signed_points(value: float, decimals: int) -> str:
    """A difference of fractions in percentage points with its sign, e.g. "+1.2", "−0.4"."""
    text = f"{100 * value:+.{decimals}f}"
    return text.replace("-", "−")
