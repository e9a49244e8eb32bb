from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.reference import load_references
from maskclip_bench.results.rendering import to_markdown
from maskclip_bench.results.table_comparisons import with_ties
from maskclip_bench.results.table_html import to_html
from maskclip_bench.results.table_latex import to_latex
from maskclip_bench.results.table_model import TableRow
from maskclip_bench.results.tables import (
    TableCell,
    build_table,
)
from tests.results.table_examples import (
    KNN,
    MEAN,
    PROBE,
    PUBLISHED,
    cells,
    declare,
    paper_table,
)

Save = Callable[..., Record]


def test_build__values_intervals_deltas_best(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("slip", hits=30)
    table = build_table(declare(), store)
    (clip,), (slip,) = cells(table, "CLIP"), cells(table, "SLIP")
    assert (clip.value, slip.value) == (0.25, 0.75)
    assert clip.origin == "synthetic"
    assert clip.delta is None
    assert slip.delta == 0.5
    assert slip.is_clear
    assert slip.best
    assert not clip.best
    assert slip.half_width is not None
    assert slip.half_width > 0


def test_build__difference_inside_the_noise_is_not_clear(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("slip", hits=11)
    (cell,) = cells(build_table(declare(), store), "SLIP")
    assert cell.delta == pytest.approx(0.025)
    assert cell.delta_interval is not None
    assert not cell.is_clear


def test_build__without_comparison(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("slip", hits=30)
    (cell,) = cells(build_table(declare(), store, compare=False), "SLIP")
    assert cell.delta == 0.5
    assert cell.delta_interval is None


def test_build__equal_as_printed_share_the_mark(save: Save, store: RecordStore) -> None:
    save("clip", hits=20)
    save("slip", hits=20)
    table = build_table(declare(), store)
    assert all(row.cells[0].best for row in table.rows)


def test_build__lower_is_better(save: Save, store: RecordStore) -> None:
    column = {**KNN, "metric": "error"}
    for backbone, hits in (("clip", 10), ("slip", 30)):
        save(backbone, hits=hits, metric="error", higher_is_better=False)
    table = build_table(declare(columns=[column]), store)
    assert cells(table, "CLIP")[0].best
    assert not cells(table, "SLIP")[0].best


def test_build__one_row_has_no_best(save: Save, store: RecordStore) -> None:
    save("clip")
    table = build_table(declare(), store)
    assert not table.rows[0].cells[0].best


def test_build__metric_without_outcomes_has_no_test(save: Save, store: RecordStore) -> None:
    save("clip", hits=10, statistic="none")
    save("slip", hits=20, statistic="none")
    (cell,) = cells(build_table(declare(), store), "SLIP")
    assert cell.delta == 0.25
    assert cell.half_width is None
    assert cell.delta_interval is None


def test_build__published_rows_compete_across_groups() -> None:
    def row(name: str, method: str, epochs: int) -> dict[str, Any]:
        selector = {"table": "SLIP README", "method": method, "encoder": "ViT-B/16"}
        selector |= {"pretrain_data": "YFCC15M-V1", "epochs": epochs}  # type: ignore[dict-item]
        return {"name": name, "group": str(epochs), "published": [selector]}

    declaration = paper_table(
        row("CLIP 25", "CLIP", 25), row("SLIP 25", "SLIP", 25), row("SLIP 50", "SLIP", 50)
    )
    table = build_table(declaration, references=load_references())
    assert [row.cells[0].best for row in table.rows] == [False, False, True]
    assert [row.cells[0].second for row in table.rows] == [False, True, False]


def test_build__a_star_is_corrected_for_all_differences_of_the_table(
    save: Save, store: RecordStore
) -> None:
    save("clip", hits=10)
    save("slip", hits=38)
    (alone,) = cells(build_table(declare(), store), "SLIP")
    assert alone.p_value == alone.adjusted_p_value
    for number in range(3):
        save(f"other{number}", hits=10)
    rows = [{"name": name, "backbone": name} for name in ("clip", "slip", "other0", "other1")]
    (cell,) = cells(build_table(declare(rows=rows), store), "slip")
    assert cell.p_value == alone.p_value
    assert cell.adjusted_p_value == pytest.approx(3 * alone.p_value)


def test_build__the_p_value_decides_and_not_the_interval() -> None:
    clear = TableCell(
        "synthetic", 0.5, delta=0.1, delta_interval=(-0.1, 0.3), adjusted_p_value=0.05
    )
    unclear = TableCell(
        "synthetic", 0.5, delta=0.1, delta_interval=(0.01, 0.2), adjusted_p_value=0.06
    )
    assert clear.is_clear
    assert not unclear.is_clear
    assert not TableCell("synthetic", 0.5, delta=0.1, delta_interval=(0.01, 0.2)).is_clear


def test_build__second_best_from_three_rows_on(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("slip", hits=20)
    rows = [{"name": name, "backbone": name, "group": name} for name in ("clip", "slip", "mae")]
    two = build_table(declare(rows=rows), store)
    assert not any(row.cells[0].second for row in two.rows)
    save("mae", hits=20)
    tied = build_table(declare(rows=rows), store)
    assert [(r.cells[0].best, r.cells[0].second) for r in tied.rows] == [
        (False, True),
        (True, False),
        (True, False),
    ]


def test_build__measured_and_published_do_not_compete(save: Save, store: RecordStore) -> None:
    save("clip", "zero_shot_classification/imagenet", hits=2, world="real", preset="slip_7_prompts")
    save("slip", "zero_shot_classification/imagenet", hits=1, world="real", preset="slip_7_prompts")
    declaration = paper_table({"name": "SLIP", "backbone": "slip"}, PUBLISHED)
    table = build_table(declaration, store, references=load_references())
    assert [row.cells[0].best for row in table.rows] == [True, False, False]
    assert not any("among themselves" in note for note in build_table(declaration, store).notes)
    assert any("published rows among themselves" in note for note in table.notes)


def test_build__an_average_of_two_directions_is_missing(save: Save, store: RecordStore) -> None:
    error = {**KNN, "task": "linear_probe/demo_objects", "metric": "error"}
    for backbone, hits in (("clip", 10), ("slip", 30)):
        save(backbone, hits=hits)
        save(backbone, error["task"], hits, metric="error", higher_is_better=False)
    mixed = build_table(declare(columns=[KNN, error, MEAN]), store)
    assert [column.title for column in mixed.columns] == ["val", "val"]
    down = build_table(declare(columns=[error, MEAN]), store)
    assert [row.cells[1].best for row in down.rows] == [True, False]


THREE = [{"name": name.upper(), "backbone": name} for name in ("clip", "slip", "mae")]


def test_ties__not_told_apart_from_the_best(save: Save, store: RecordStore) -> None:
    save("clip", hits=4)
    save("slip", hits=35)
    save("mae", hits=36)
    table = build_table(declare(rows=THREE), store)
    (clip,), (slip,), (mae,) = (cells(table, name) for name in ("CLIP", "SLIP", "MAE"))
    assert mae.best
    assert (clip.tied, slip.tied, mae.tied) == (False, True, False)
    assert any(note.startswith("≈ Not told apart from the best") for note in table.notes)
    for text in (to_markdown(table), to_html(table), to_latex(table)):
        assert ("87.5≈" in text) or (r"87.5$\approx$" in text)
    assert "tied with the best" in to_html(table)


def test_ties__need_three_rows_a_test_and_a_comparison(save: Save, store: RecordStore) -> None:
    for row, hits in (("clip", 20), ("slip", 21), ("mae", 22)):
        save(row, hits=hits)
        save(row, "linear_probe/demo_objects", hits=hits, statistic="none")
    two = build_table(declare(rows=THREE[:2]), store)
    assert not any(cell.tied for row in two.rows for cell in row.cells)
    untested = build_table(declare(rows=THREE, columns=[PROBE, MEAN]), store)
    assert not any(cell.tied for row in untested.rows for cell in row.cells)
    quick = build_table(declare(rows=THREE), store, compare=False)
    assert not any(cell.tied for row in quick.rows for cell in row.cells)


def test_ties__a_star_is_told_apart_whatever_the_correction_for_pairs_says() -> None:
    """Of ten equal rows, one is clearly behind the best by the star's correction alone."""

    def row(name: str, cell: TableCell) -> TableRow:
        return TableRow(name, "", (cell,), name)

    best = TableCell("measured", 0.9, best=True)
    starred = TableCell("measured", 0.5, delta=-0.4, p_value=0.02, adjusted_p_value=0.04)
    open_ = TableCell("measured", 0.8, delta=-0.1, p_value=0.04, adjusted_p_value=0.08)
    rows = [row("base", best), row("starred", starred), row("open", open_)]
    found = with_ties(rows, lambda *_: 0.04, baseline="base")
    assert [each.cells[0].tied for each in found] == [False, False, True]
    found = with_ties(rows, lambda *_: 0.01, baseline=None)  # three pairs: 0.03
    assert [each.cells[0].tied for each in found] == [False, False, False]
    found = with_ties(rows, lambda *_: 0.02, baseline=None)  # 0.06, and 0.04 at least as large
    assert [each.cells[0].tied for each in found] == [False, True, True]


def test_ties__equal_rows_are_marked_in_nineteen_of_twenty_tables_by_simulation() -> None:
    """Normal scores of five equal rows in four columns; the best is chosen after looking."""
    generator = np.random.default_rng(0)
    wrong, number = 0, 400
    for _ in range(number):
        scores = generator.standard_normal((5, 4))
        best = scores.argmax(axis=0)
        rows = [
            TableRow(
                str(position),
                "",
                tuple(
                    TableCell("measured", 0.5, best=bool(best[index] == position))
                    for index in range(4)
                ),
                str(position),
            )
            for position in range(5)
        ]

        def p_value(a: int, b: int, index: int, scores: Any = scores) -> float:
            return float(2 * special.ndtr(-abs(scores[a, index] - scores[b, index]) / 2**0.5))

        found = with_ties(rows, p_value)
        wrong += any(not cell.tied and not cell.best for row in found for cell in row.cells)
    assert wrong / number <= 0.05
