"""What a table says about its rows: differences to the baseline with tests, the best, ties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from maskclip_bench.results.paired import holm
from maskclip_bench.results.table_measured import MeasuredCells
from maskclip_bench.results.table_model import SIGNIFICANCE, TableDeclaration, TableRow


def with_differences(
    rows: list[TableRow], declaration: TableDeclaration, measured: MeasuredCells, *, compare: bool
) -> list[TableRow]:
    """Add the differences to the baseline row to every other measured row, and test them.

    The p-values are corrected over all differences of the table (Holm), so that a table in which
    nothing differs shows a star at most once in twenty.
    """
    baseline = declaration.baseline
    base = next((row for row in rows if baseline and row.backbone == baseline), None)
    if base is None or baseline is None:
        return rows
    cells = [list(row.cells) for row in rows]
    tested: list[tuple[int, int]] = []
    for position, row in enumerate(rows):
        if row is base or row.backbone is None:
            continue
        for index, column in enumerate(declaration.columns):
            value, base_value = row.cells[index].value, base.cells[index].value
            if value is None or base_value is None:
                continue
            if not measured.is_comparable(row.backbone, baseline, column):
                continue
            cell = replace(row.cells[index], delta=value - base_value)
            found = measured.comparison(row.backbone, baseline, column) if compare else None
            if found is not None:
                comparison, covers = found
                cell = replace(
                    cell,
                    delta_interval=(comparison.low, comparison.high),
                    p_value=comparison.p_value,
                    covers=covers,
                )
                tested.append((position, index))
            cells[position][index] = cell
    adjusted = holm([cells[position][index].p_value or 0.0 for position, index in tested])
    for (position, index), p_value in zip(tested, adjusted, strict=True):
        cells[position][index] = replace(cells[position][index], adjusted_p_value=p_value)
    return [replace(row, cells=tuple(new)) for row, new in zip(rows, cells, strict=True)]


def with_marks(
    rows: list[TableRow], declaration: TableDeclaration, measured: MeasuredCells
) -> list[TableRow]:
    """Mark the best and the second best of each column.

    One rule: measured rows compete with all measured rows of the table, whatever their group, so
    that a longer trained baseline shows; published rows compete with published rows. Cells that
    read the same share a mark: a digit that is not shown decides nothing. The second best is
    marked from three rows on. Where each seed has data of its own, rows of other seeds than the
    baseline (or the first row) have no mark.
    """
    names = [row.backbone for row in rows if row.backbone is not None]
    reference = declaration.baseline if declaration.baseline in names else next(iter(names), None)
    cells = [list(row.cells) for row in rows]
    is_measured = [row.backbone is not None for row in rows]
    for index, column in enumerate(declaration.columns):
        sign = 1 if measured.higher_is_better(column) else -1
        for kind in (True, False):
            numbers = {}
            for position, row in enumerate(cells):
                value, backbone = row[index].value, rows[position].backbone
                if is_measured[position] is not kind or value is None:
                    continue
                of_other_worlds = (
                    backbone is not None
                    and reference is not None
                    and not measured.is_comparable(backbone, reference, column)
                )
                if not of_other_worlds:
                    numbers[position] = sign * round(100 * value, column.decimals)
            if len(numbers) < 2:
                continue
            ranking = sorted(set(numbers.values()), reverse=True)
            second = ranking[1] if len(numbers) > 2 and len(ranking) > 1 else None
            for position, number in numbers.items():
                cells[position][index] = replace(
                    cells[position][index], best=number == ranking[0], second=number == second
                )
    return [replace(row, cells=tuple(new)) for row, new in zip(rows, cells, strict=True)]


PValueOf = Callable[[int, int, int], float | None]
"""(position of a row, of another, index of a column) -> p-value of their difference, if tested."""


def with_ties(
    rows: list[TableRow], p_value: PValueOf, *, baseline: str | None = None
) -> list[TableRow]:
    """Mark the cells that are not told apart from the best measured one of their column.

    The best row of a column was chosen after looking, so its tests are corrected for all pairs of
    measured rows in all columns (Holm, as if every pair that is not needed had p = 1), as ranks
    are. A difference to the baseline that has a star is told apart: a table says one thing. From
    three rows on; with two, the star says it.

    Args:
        rows: With marks and differences (`with_marks`, `with_differences`).
        p_value: Test of any two rows.
        baseline: Backbone whose differences have stars.
    """
    cells = [list(row.cells) for row in rows]
    tested: list[tuple[int, int, float]] = []
    num_pairs = 0
    for index in range(len(rows[0].cells) if rows else 0):
        measured = [p for p, row in enumerate(rows) if _is_measured(row, index)]
        best = next((p for p in measured if cells[p][index].best), None)
        if best is None or len(measured) < 3:
            continue
        pairs = len(measured) * (len(measured) - 1) // 2
        found = [
            (position, index, value)
            for position in measured
            if not cells[position][index].best
            and not _star_between(rows, position, best, index, baseline)
            and (value := p_value(position, best, index)) is not None
        ]
        tested += found
        num_pairs += pairs if found else 0
    others = [1.0] * (num_pairs - len(tested))
    adjusted = holm([*(value for _, _, value in tested), *others])
    for (position, index, _), corrected in zip(tested, adjusted, strict=False):
        if corrected > SIGNIFICANCE:
            cells[position][index] = replace(cells[position][index], tied=True)
    return [replace(row, cells=tuple(new)) for row, new in zip(rows, cells, strict=True)]


def _is_measured(row: TableRow, index: int) -> bool:
    return row.backbone is not None and row.cells[index].value is not None


def _star_between(
    rows: list[TableRow], position: int, best: int, index: int, baseline: str | None
) -> bool:
    """Whether one of the two is the baseline, and their difference has a star."""
    pair = {rows[position].backbone: position, rows[best].backbone: best}
    if baseline is None or baseline not in pair:
        return False
    return any(
        rows[place].cells[index].is_clear for name, place in pair.items() if name != baseline
    )


def measured_p_values(
    rows: list[TableRow], declaration: TableDeclaration, measured: MeasuredCells
) -> PValueOf:
    """The tests of any two rows; those with the baseline are in the cells already.

    Args:
        rows: With differences.
        declaration: Of the table.
        measured: Its records.
    """

    def p_value(position: int, other: int, index: int) -> float | None:
        first, second = rows[position], rows[other]
        if declaration.baseline == second.backbone:
            return first.cells[index].p_value
        if declaration.baseline == first.backbone:
            return second.cells[index].p_value
        if first.backbone is None or second.backbone is None:
            return None
        found = measured.comparison(first.backbone, second.backbone, declaration.columns[index])
        return None if found is None else found[0].p_value

    return p_value
