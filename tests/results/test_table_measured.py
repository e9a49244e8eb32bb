from __future__ import annotations

from collections.abc import Callable

import pytest

from maskclip_bench.errors import ConfigError
from maskclip_bench.results.records import Cell, Record, RecordStore, failed_record
from maskclip_bench.results.tables import (
    build_table,
)
from tests.results.table_examples import (
    KNN,
    cells,
    declare,
)

Save = Callable[..., Record]


def test_build__seeds_are_averaged_and_paired(save: Save, store: RecordStore) -> None:
    for seed in range(3):
        save("clip", hits=10 + seed, seed=seed)
        save("slip", hits=20 + seed, seed=seed)
    table = build_table(declare(), store)
    (clip,), (slip,) = cells(table, "CLIP"), cells(table, "SLIP")
    assert clip.value == pytest.approx(11 / 40)
    assert clip.half_width == pytest.approx(1 / 40)  # standard deviation of 10, 11, 12 of 40
    assert clip.num_seeds == 3
    assert slip.delta_interval == pytest.approx((0.25, 0.25))
    assert any("over 3 training seeds" in note for note in table.notes)


def test_build__different_seeds_are_not_compared(save: Save, store: RecordStore) -> None:
    for seed in range(2):
        save("clip", hits=10 + seed, seed=seed)
    save("slip", hits=20)
    (cell,) = cells(build_table(declare(), store), "SLIP")
    assert cell.delta == pytest.approx(20 / 40 - 10.5 / 40)
    assert cell.delta_interval is None


def test_build__chosen_seeds(save: Save, store: RecordStore) -> None:
    save("clip", hits=10, seed=0)
    save("clip", hits=20, seed=1)
    rows = [{"name": "CLIP", "backbone": "clip", "seeds": [1]}]
    assert cells(build_table(declare(rows=rows), store), "CLIP")[0].value == 0.5


def test_build__demo_rows_never_enter_a_real_table(save: Save, store: RecordStore) -> None:
    save("clip", world="demo")
    with pytest.raises(ConfigError, match=r"clip x knn/demo_objects was measured in the 'demo' wo"):
        build_table(declare(world="real"), store)


def test_build__one_preset_a_column(save: Save, store: RecordStore) -> None:
    save("clip", preset="dino_knn")
    save("slip", preset="tti_knn")
    expected = r"more than one preset \(clip: dino_knn v1, slip: tti_knn v1\)"
    with pytest.raises(ConfigError, match=expected):
        build_table(declare(), store)


def test_build__the_preset_of_the_column(save: Save, store: RecordStore) -> None:
    save("clip", preset="tti_knn")
    with pytest.raises(ConfigError, match="shows preset 'dino_knn', but clip was measured under"):
        build_table(declare(columns=[{**KNN, "preset": "dino_knn"}]), store)


def test_build__one_task_version_a_column(save: Save, store: RecordStore) -> None:
    save("clip", task_version=1)
    save("slip", task_version=2)
    with pytest.raises(ConfigError, match=r"more than one task version \(clip: 1, slip: 2\)"):
        build_table(declare(), store)


def test_build__one_direction_a_column(save: Save, store: RecordStore) -> None:
    save("clip", higher_is_better=False)
    save("slip")
    with pytest.raises(ConfigError, match=r"direction that is better \(clip: lower, slip: higher"):
        build_table(declare(), store)


def test_build__one_budget_a_column(save: Save, store: RecordStore) -> None:
    save("clip", budget={"num_samples": 10})
    save("slip")
    with pytest.raises(ConfigError, match="more than one budget"):
        build_table(declare(), store)


def test_build__no_limited_run_in_a_real_table(save: Save, store: RecordStore) -> None:
    save("clip", world="real", budget={"num_samples": 10, "epochs": None})
    with pytest.raises(
        ConfigError, match=r"under the budget \{'num_samples': 10\}; a table of the"
    ):
        build_table(declare(world="real"), store)


def test_build__damaged_record(save: Save, store: RecordStore) -> None:
    save("clip")
    (store.root / "clip" / "knn__demo_objects.json").write_text("{")
    save("slip")
    table = build_table(declare(), store)
    assert [row.name for row in table.rows] == ["SLIP"]
    assert list((store.root / "clip").glob("knn__demo_objects.json.damaged-1"))


def test_build__failed_cell_is_no_score(save: Save, store: RecordStore) -> None:
    save("clip")
    cell = Cell(
        backbone="slip", protocol="knn", dataset="demo_objects", world="demo", cell_fingerprint="f"
    )
    store.save(failed_record(cell, RuntimeError("out of memory")))
    table = build_table(declare(), store)
    (failed,) = cells(table, "SLIP")
    assert failed.origin == "failed"
    assert failed.value is None
    assert any("SLIP in kNN val (RuntimeError: out of memory)" in note for note in table.notes)


def test_build__one_state_of_the_data_a_column(save: Save, store: RecordStore) -> None:
    for backbone, data in (("clip", "old"), ("slip", "new")):
        record = save(backbone)
        store.save(
            record.model_copy(update={"fingerprints": {"data": data}}), store.outcomes(record)
        )
    with pytest.raises(
        ConfigError, match=r"more than one state of the data \(clip: old, slip: new\)\. Files were"
    ):
        build_table(declare(), store)


def test_build__each_seed_may_have_data_of_its_own(save: Save, store: RecordStore) -> None:
    def measured(backbone: str, seed: int, data: str) -> None:
        record = save(backbone, seed=seed)
        changed = record.model_copy(update={"fingerprints": {"data": data}})
        store.save(changed, store.outcomes(record))

    for seed in range(2):
        for backbone in ("clip", "slip"):
            measured(backbone, seed, f"world {seed}")
    with pytest.raises(ConfigError, match="more than one state of the data"):
        build_table(declare(), store)
    table = build_table(declare(data_by_seed=True), store)
    assert any("2 training seeds, each with a world of its own" in note for note in table.notes)
    measured("slip", 1, "changed")
    expected = r"more than one state of the data \(clip__seed1: world 1, slip__seed1: changed\)"
    with pytest.raises(ConfigError, match=expected):
        build_table(declare(data_by_seed=True), store)


def test_build__rows_of_other_worlds_are_not_compared(save: Save, store: RecordStore) -> None:
    """The best of all rows is of one seed, and the baseline of two."""
    measured = {("clip", 0): 10, ("clip", 1): 20, ("slip", 0): 12, ("slip", 1): 21, ("mae", 1): 30}
    for (backbone, seed), hits in measured.items():
        record = save(backbone, seed=seed, hits=hits)
        changed = record.model_copy(update={"fingerprints": {"data": f"world {seed}"}})
        store.save(changed, store.outcomes(record))
    names = {"clip": "CLIP", "slip": "SLIP", "mae": "MAE"}
    rows = [{"name": name, "backbone": backbone} for backbone, name in names.items()]
    table = build_table(declare(rows=rows, data_by_seed=True), store)
    (mae,), (slip,) = cells(table, "MAE"), cells(table, "SLIP")
    assert (mae.value, mae.delta, mae.best, mae.tied) == (30 / 40, None, False, False)
    assert slip.delta == pytest.approx(1.5 / 40)
    assert slip.best
    assert any("Of other seeds than CLIP" in note and "MAE" in note for note in table.notes)


def test_build__one_other_seed_a_row_is_no_pair(save: Save, store: RecordStore) -> None:
    """Two worlds have the same sample ids."""
    save("clip", seed=0, hits=10)
    save("slip", seed=1, hits=30)
    table = build_table(declare(data_by_seed=True), store)
    (slip,) = cells(table, "SLIP")
    assert (slip.delta, slip.p_value, slip.best) == (None, None, False)


def test_build__seeds_share_the_spread_of_the_column(save: Save, store: RecordStore) -> None:
    for seed, noise in enumerate((0, 1, 0)):
        save("clip", hits=10 + noise, seed=seed)
        save("slip", hits=20, seed=seed)
        save("other", hits=15 + 2 * noise, seed=seed)
    rows = [{"name": name, "backbone": name} for name in ("clip", "slip", "other")]
    few = cells(build_table(declare(rows=rows[:2]), store), "slip")[0]
    many = cells(build_table(declare(rows=rows), store), "slip")[0]
    assert few.covers == many.covers == "seeds"
    assert few.p_value is not None and many.p_value is not None
    assert many.p_value < few.p_value
