from __future__ import annotations

from collections.abc import Callable

from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.reference import PublishedSource, load_references
from maskclip_bench.results.table_notes import table_notes
from maskclip_bench.results.tables import (
    TableCell,
    TableRow,
    build_table,
)
from tests.results.table_examples import (
    KNN,
    PROBE,
    PUBLISHED,
    cells,
    declare,
    paper_table,
)

Save = Callable[..., Record]


def test_notes__one_training_run_says_what_the_star_does_not_cover(
    save: Save, store: RecordStore
) -> None:
    save("clip", hits=2)
    save("slip", hits=38)
    table = build_table(declare(), store)
    assert cells(table, "SLIP")[0].is_clear
    assert "Signed: difference to CLIP, in points; * p ≤ 0.05, paired by sample." in table.notes
    assert any(
        "one training run a row: * covers the noise of the test images, not that of training"
        in note
        for note in table.notes
    )


def test_notes__seeds_need_no_such_words_and_corrections_are_said(
    save: Save, store: RecordStore
) -> None:
    for seed in range(2):
        for backbone, hits in (("clip", 10), ("slip", 20), ("other", 30)):
            save(backbone, hits=hits + seed, seed=seed)
    rows = [{"name": name, "backbone": name} for name in ("clip", "slip", "other")]
    notes = build_table(declare(rows=rows), store).notes
    assert (
        "Signed: difference to clip, in points; * p ≤ 0.05, paired by training seed, corrected "
        "for 2 comparisons (Holm)." in notes
    )
    assert not any("one training run" in note for note in notes)


def test_notes__differences_without_a_test_have_no_star(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("slip", hits=30)
    notes = build_table(declare(), store, compare=False).notes
    assert "Signed: difference to CLIP, in points." in notes


def test_notes__which_differences_have_no_test(save: Save, store: RecordStore) -> None:
    rows = [{"name": name, "backbone": name} for name in ("clip", "slip", "other")]
    for seed in range(2):
        for backbone, hits in (("clip", 10), ("slip", 20)):
            save(backbone, hits=hits + seed, seed=seed)
    save("other", hits=30)
    notes = build_table(declare(rows=rows), store).notes
    assert "No test of the differences of other in: kNN val." in notes
    for backbone in ("clip", "slip", "other"):
        save(backbone, "linear_probe/demo_objects", hits=9, preset="p", statistic="none")
    notes = build_table(declare(columns=[KNN, PROBE], rows=rows), store).notes
    assert "No test of the differences in: Probe val." in notes


def test_notes__a_row_left_out_is_told_from_a_shown_one_of_its_name(store: RecordStore) -> None:
    published = {**PUBLISHED, "name": "CLIP", "group": "published"}
    declaration = paper_table(published)
    ours = declaration.rows[0].model_copy(update={"group": "measured here"})
    declaration = declaration.model_copy(update={"rows": [ours, declaration.rows[1]]})
    table = build_table(declaration, store, references=load_references())
    assert [row.name for row in table.rows] == ["CLIP"]
    assert "Not measured here, so left out: CLIP (measured here)." in table.notes


def test_notes__marks_are_explained_where_there_are_some(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    assert not any("Bold" in note for note in build_table(declare(), store).notes)
    save("slip", hits=20)
    notes = build_table(declare(), store).notes
    assert "Bold: best of its column. Equal numbers share a mark." in notes


def test_notes__a_long_error_ends_with_a_sign_of_it() -> None:
    declaration = declare(columns=[KNN])
    row = TableRow("CLIP", "", (TableCell("failed", error="no folder " * 40),), "clip")
    notes = table_notes(declaration, [row], absent_rows=[], absent_columns=[], limits="")
    assert notes[-1].endswith(" no folder…).")
    assert len(notes[-1]) < 220


def test_notes__a_failure_names_row_column_and_error_once() -> None:
    declaration = declare(columns=[KNN, PROBE])
    failed = TableCell("failed", error="ValueError: odd\nmore")
    row = TableRow("CLIP", "", (failed, failed), "clip")
    notes = table_notes(declaration, [row], absent_rows=[], absent_columns=[], limits="")
    assert notes[-1] == (
        "Failed, so without a score: CLIP in kNN val, Probe val (ValueError: odd)."
    )


def test_notes__one_paper_once_with_all_its_tables() -> None:
    sources = [PublishedSource(f"Dong et al. 2023, Table {n}", "its README") for n in (1, 5)]
    sources.append(PublishedSource("My own notes", "a notebook"))
    cells = tuple(TableCell("published", 0.5, sources=(s,), preset="p") for s in sources)
    columns = [KNN, PROBE, {**KNN, "title": "other"}]
    row = TableRow("CLIP", "", cells)
    notes = table_notes(
        declare(columns=columns), [row], absent_rows=[], absent_columns=[], limits=""
    )
    assert (
        "† Published, not measured here: Dong et al. 2023, Table 1, Table 5 (read in its README); "
        "My own notes (read in a notebook)." in notes
    )
