from __future__ import annotations

from collections.abc import Callable

from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.tables import (
    build_table,
)
from tests.results.table_examples import (
    cells,
    declare,
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
