"""The pieces of work that a plan leaves open, and their order.

The row that is pretrained soonest comes first, all the way to its numbers, so that a first table
is there early; then the other rows, those that take longest to pretrain first, so that the pool
does not wait for one long piece at the end. A row is measured as soon as its weights are there.
What trains through a backbone (dense heads, finetuning) comes last, the longest first, and of equal
ones the first of every row before the second of one, which can use the maps of the first. Of tasks
that share a training the first does it; the others wait for it here, not on a lock of its folder.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from maskclip_bench.pretrain.recipe import load_recipe
from maskclip_bench.progress import Unit
from maskclip_bench.storage import temporary_path
from maskclip_bench.tasks.cell import PlannedCell, Row
from maskclip_bench.tasks.plan import Plan

SECONDS_PER_PAIR = 1 / 400
"""Of CLIP on the demo world on one core; only weighs the pieces of a run against each other."""


@dataclass(frozen=True)
class Piece:
    """A piece of work of the pool; begins when those named in `after` are done.

    Attributes:
        kind: What is done: record why a cell is `refused`, prepare the `demo` world, `pretrain` a
            row, measure the cells of a `row` in this process, or one cell as a `job`.
        key: Its name, unique in a run.
        row: What it is about; None for the demo world.
        cells: Those that it measures.
    """

    kind: Literal["refused", "demo", "pretrain", "row", "job"]
    key: str
    row: Row | None = None
    cells: list[PlannedCell] = field(default_factory=list)
    after: frozenset[str] = frozenset()


def pieces_of(plan: Plan, demo_key: str) -> list[Piece]:
    """All pieces of a plan in the order in which they are to begin.

    Args:
        plan: Recorded cells of it make no piece.
        demo_key: Key of the piece that prepares the demo world, if the plan needs it.
    """
    pieces = [
        Piece("refused", cell.unit.key, cell.row, [cell])
        for cell in plan.open_cells
        if cell.refused is not None
    ]
    first: frozenset[str] = frozenset()
    if plan.needs_demo:
        pieces.append(Piece("demo", demo_key))
        first = frozenset({demo_key})
    cells_of_row: dict[tuple[str, int], list[PlannedCell]] = {}
    for cell in plan.open_cells:
        if cell.is_to_measure:
            cells_of_row.setdefault((cell.row.name, cell.row.seed), []).append(cell)
    jobs: list[Piece] = []
    for row, weights in _rows_in_order(plan, list(cells_of_row)):
        after = first
        if weights is not None:
            pieces.append(Piece("pretrain", weights.key, row, after=first))
            after = frozenset({weights.key})
        cells = cells_of_row.get((row.name, row.seed), [])
        here = [cell for cell in cells if not cell.column.protocol.runs_as_job]
        if here:
            pieces.append(Piece("row", f"row/{row.name}/{row.seed}", row, here, after))
        jobs += _jobs(row, cells, after)
    turns: Counter[tuple[str, int, str]] = Counter()
    order: dict[str, tuple[float, int]] = {}
    for job in jobs:
        cell = job.cells[0]
        of_row = (cell.row.name, cell.row.seed, cell.column.protocol.name)
        order[job.key] = (-cell.unit.expected_seconds, turns[of_row])
        turns[of_row] += 1
    return [*pieces, *sorted(jobs, key=lambda job: order[job.key])]


def _jobs(row: Row, cells: list[PlannedCell], after: frozenset[str]) -> list[Piece]:
    """The cells of a row that run as jobs, a piece each."""
    pieces = []
    trained: dict[str, frozenset[str]] = {}  # protocol -> the cell that trains for the others
    for cell in cells:
        protocol = cell.column.protocol
        if not protocol.runs_as_job:
            continue
        needed = after | trained.get(protocol.name, frozenset())
        pieces.append(Piece("job", cell.unit.key, row, [cell], needed))
        if protocol.shares_training:
            trained.setdefault(protocol.name, frozenset({cell.unit.key}))
    return pieces


def files_of_maps(plan: Plan, folder: Path) -> dict[str, Path]:
    """Key of a cell -> the file by which jobs of its row and protocol hand on maps.

    Only of cells that have such company. The files are temporary ones of this process, which the
    caller removes; those of a killed process go with `storage.remove_leftovers(folder)`.
    """
    groups: dict[str, list[str]] = {}
    for cell in plan.open_cells:
        protocol = cell.column.protocol
        if protocol.shares_maps and cell.is_to_measure:
            name = f"{protocol.name}-{cell.row.name}-{cell.row.seed}"
            groups.setdefault(name, []).append(cell.unit.key)
    files = {name: temporary_path(folder / name) for name in groups}
    return {key: files[name] for name, keys in groups.items() if len(keys) > 1 for key in keys}


def _rows_in_order(plan: Plan, open_rows: list[tuple[str, int]]) -> list[tuple[Row, Unit | None]]:
    """Rows with something to do, each with its pretraining where its weights are to be made."""
    units = {(row.name, row.seed): pretraining_unit(row) for row in plan.pretraining}
    rows = {(row.name, row.seed): row for row in plan.pretraining}
    rows = {(cell.row.name, cell.row.seed): cell.row for cell in plan.open_cells} | rows
    wanted = [key for key in rows if key in units or key in open_rows]

    soonest = min(units, key=lambda key: units[key].expected_seconds, default=None)

    def order(key: tuple[str, int]) -> tuple[bool, float]:
        unit = units.get(key)
        return key != soonest, -unit.expected_seconds if unit is not None else 0.0

    return [(rows[key], units.get(key)) for key in sorted(wanted, key=order)]


def pretraining_unit(row: Row) -> Unit:
    """The pretraining of a row, as the display shows it."""
    name = row.declaration.recipe
    assert name is not None
    recipe = load_recipe(name)
    return Unit(
        key=f"pretrain/{row.name}/{row.seed}",
        label=f"pretraining {row.label}",
        expected_seconds=(recipe.num_pairs or 0) * recipe.method.relative_cost * SECONDS_PER_PAIR,
    )
