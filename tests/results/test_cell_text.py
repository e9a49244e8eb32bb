from __future__ import annotations

import pytest

from maskclip_bench.results.cell_text import cell_delta, cell_number, cell_spread
from maskclip_bench.results.tables import ColumnDeclaration, TableCell

COLUMN = ColumnDeclaration(title="val", task="a/b", metric="m")


@pytest.mark.parametrize(
    ("cell", "number", "spread", "delta"),
    [
        (TableCell("synthetic", 0.445, 0.029, 1), "44.5", "±2.9", ""),
        (TableCell("measured", 0.445, delta=0.035), "44.5", "", "+3.5"),
        (TableCell("measured", 0.445, delta=-0.035, adjusted_p_value=0.01), "44.5", "", "−3.5*"),
        (TableCell("published", 0.445), "44.5†", "", ""),
        (TableCell("missing"), "-", "", ""),
        (TableCell("failed"), "failed", "", ""),
    ],
)
def test_parts_of_a_cell(cell: TableCell, number: str, spread: str, delta: str) -> None:
    assert cell_number(cell, COLUMN) == number
    assert cell_spread(cell, COLUMN) == spread
    assert cell_delta(cell, COLUMN) == delta
