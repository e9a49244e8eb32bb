"""What a table says about its rows: differences to the baseline with their tests, and the best."""

from __future__ import annotations

from dataclasses import replace

from maskclip_bench.results.paired import holm
from maskclip_bench.results.table_measured import MeasuredCells
from maskclip_bench.results.table_model import TableDeclaration, TableRow


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
    marked from three rows on.
    """
    cells = [list(row.cells) for row in rows]
    is_measured = [row.backbone is not None for row in rows]
    for index, column in enumerate(declaration.columns):
        sign = 1 if measured.higher_is_better(column) else -1
        for kind in (True, False):
            numbers = {}
            for position, row in enumerate(cells):
                value = row[index].value
                if is_measured[position] is kind and value is not None:
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
