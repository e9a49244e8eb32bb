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


def with_best(
    rows: list[TableRow], declaration: TableDeclaration, measured: MeasuredCells
) -> list[TableRow]:
    """Mark the best of each column: of all measured rows, and of each group of published rows.

    Groups of published rows differ in their training budget; measured rows are compared across
    groups, so that a longer trained baseline shows. Cells that read the same share the mark: a
    digit that is not shown decides nothing.
    """
    cells = [list(row.cells) for row in rows]
    rivals = [row.backbone is not None or row.group for row in rows]
    for index, column in enumerate(declaration.columns):
        sign = 1 if measured.higher_is_better(column) else -1
        for rival in dict.fromkeys(rivals):
            numbers = {}
            for position, row in enumerate(cells):
                value = row[index].value
                if rivals[position] == rival and value is not None:
                    numbers[position] = sign * round(100 * value, column.decimals)
            if len(numbers) < 2:
                continue
            best = max(numbers.values())
            for position, number in numbers.items():
                if number == best:
                    cells[position][index] = replace(cells[position][index], best=True)
    return [replace(row, cells=tuple(new)) for row, new in zip(rows, cells, strict=True)]
