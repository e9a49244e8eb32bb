from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from maskclip_bench.errors import ConfigError, DataError, UnknownNameError
from maskclip_bench.results.comparing import Comparisons, Side
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.records import Cell, Record, RecordStore, measured_record
from tests.results.conftest import outcome_table

Save = Callable[..., Record]
KNN, PROBE = "knn/demo_objects", "linear_probe/demo_objects"


def sides(store: RecordStore, first: str = "clip", second: str = "slip") -> tuple[Side, Side]:
    return Side.of_store(store, first), Side.of_store(store, second)


def test_compare__paired_by_sample_with_a_sentence(save: Save, store: RecordStore) -> None:
    for backbone, hits in (("clip", 2), ("slip", 38)):
        save(backbone, KNN, hits)
        save(backbone, PROBE, 10, preset="p")
    found = Comparisons.of(*sides(store))
    assert found.frame["task"].tolist() == [KNN, PROBE]
    assert found.frame["covers"].tolist() == ["samples", "samples"]
    assert found.frame["is_clear"].tolist() == [True, False]
    assert found.sentence == (
        f"clip is worse than slip on {KNN}; 1 of 2 tasks show no clear difference. Paired by "
        "sample, 95 %, corrected for the number of tasks (2, Holm). The noise of training with "
        "another seed is not in it."
    )
    p = found.frame.set_index("task")
    assert p.loc[KNN, "corrected_p_value"] == pytest.approx(2 * p.loc[KNN, "p_value"])


def test_compare__lower_is_better(save: Save, store: RecordStore) -> None:
    for backbone, hits in (("clip", 2), ("slip", 38)):
        save(backbone, KNN, hits, metric="error", higher_is_better=False)
    found = Comparisons.of(*sides(store))
    assert found.sentence.startswith(f"clip is better than slip on {KNN}.")
    assert found.as_json()["tasks"][0]["samples"]["better"]["number"] == 36


def test_compare__over_the_seeds_both_have(save: Save, store: RecordStore) -> None:
    for seed, noise in enumerate((0, 1, 0)):
        save("clip", hits=10 + noise, seed=seed)
        save("slip", hits=30 - noise, seed=seed)
    save("slip", hits=1, seed=7)
    line = Comparisons.of(*sides(store)).frame.iloc[0]
    assert (line["covers"], line["num_seeds"]) == ("seeds", 3)
    assert line["second"] == pytest.approx(np.mean([30, 29, 30]) / 40)
    assert "another seed" not in Comparisons.of(*sides(store)).sentence


def test_compare__one_seed_of_each_by_its_name(save: Save, store: RecordStore) -> None:
    for seed in range(2):
        save("clip", hits=10 + seed, seed=seed)
        save("slip", hits=20 + seed, seed=seed)
    line = Comparisons.of(*sides(store, "clip__seed1", "slip")).frame.iloc[0]
    assert (line["first"], line["second"], line["covers"]) == (11 / 40, 21 / 40, "samples")
    assert Side.of_store(store, "clip__seed1", names={"clip": "CLIP"}).name == "CLIP (seed 1)"


def test_compare__no_seed_in_common(save: Save, store: RecordStore) -> None:
    for backbone, seeds in (("clip", (0, 1)), ("slip", (2, 3))):
        for seed in seeds:
            save(backbone, seed=seed)
    with pytest.raises(ConfigError, match=r"seeds \[0, 1\] and slip \[2, 3\], none in common"):
        Comparisons.of(*sides(store))


def test_compare__a_metric_without_outcomes_has_no_test(save: Save, store: RecordStore) -> None:
    for backbone, hits in (("clip", 10), ("slip", 20)):
        save(backbone, KNN, hits, statistic="none")
        save(backbone, PROBE, hits, preset="p")
    found = Comparisons.of(*sides(store))
    line = found.frame.set_index("task").loc[KNN]
    assert np.isnan(line["p_value"])
    assert np.isnan(line["corrected_p_value"])
    assert not line["is_clear"]
    other = found.frame.set_index("task").loc[PROBE]
    assert other["corrected_p_value"] == other["p_value"]  # one test needs no correction
    assert "1 of 2 tasks have no test" in found.sentence
    assert "no test" in repr(found)
    assert found.differing(KNN).empty
    json.dumps(found.as_json(), allow_nan=False)


def test_compare__what_cannot_be(save: Save, store: RecordStore) -> None:
    save("clip")
    save("slip", PROBE, preset="p")
    with pytest.raises(DataError, match=r"share no task that matches \*: the first has knn"):
        Comparisons.of(*sides(store))
    with pytest.raises(UnknownNameError, match=r"No recorded row 'clap'\. Did you mean 'clip'"):
        Side.of_store(store, "clap")
    save("slip", preset="other")
    with pytest.raises(ConfigError, match="different presets, dino_knn v1 and other v1"):
        Comparisons.of(*sides(store))


def test_compare__directions_that_differ(save: Save, store: RecordStore) -> None:
    save("clip", higher_is_better=False)
    save("slip", hits=30)
    with pytest.raises(ConfigError, match="different directions of the metric, lower is better"):
        Comparisons.of(*sides(store))


def test_differing__which_samples_and_in_whose_favour(save: Save, store: RecordStore) -> None:
    save("clip", hits=10)
    save("slip", hits=13)
    found = Comparisons.of(*sides(store))
    table = found.differing(KNN)
    assert table["sample_id"].tolist() == ["image010", "image011", "image012"]
    assert table["difference"].tolist() == [-1.0] * 3
    with pytest.raises(UnknownNameError, match="No compared task 'knn/birds'"):
        found.differing("knn/birds")
    worse = found.as_json(num_samples=2)["tasks"][0]["samples"]["worse"]
    assert worse == {"number": 3, "ids": ["image010", "image011"]}


def test_differing__means_over_seeds(save: Save, store: RecordStore) -> None:
    for seed in range(2):
        save("clip", hits=10 + seed, seed=seed)
        save("slip", hits=10, seed=seed)
    table = Comparisons.of(*sides(store)).differing(KNN)
    assert table["sample_id"].tolist() == ["image010"]
    assert table["difference"].tolist() == [0.5]


def ratio_record(store: RecordStore, backbone: str, right: int) -> None:
    columns = {
        "mean_iou.numerator": [[right, 1], [0, 0]],
        "mean_iou.denominator": [[4, 4], [0, 2]],
    }
    outcomes = pd.DataFrame({"sample_id": ["a", "b"], "group": ["a", "b"], **columns})
    value = (right / 4 + 1 / 6) / 2
    measurement = Measurement(
        {"mean_iou": Metric(value, statistic="mean_ratio")}, "mean_iou", outcomes, "p"
    )
    cell = Cell(backbone=backbone, protocol="seg", dataset="d", world="demo", cell_fingerprint="f")
    store.save(measured_record(cell, measurement, num_resamples=50), outcomes)


def test_differing__of_a_mean_ratio_image_by_image(store: RecordStore) -> None:
    ratio_record(store, "clip", 1)
    ratio_record(store, "slip", 3)
    table = Comparisons.of(*sides(store)).differing("seg/d")
    assert table["sample_id"].tolist() == ["a"]
    assert table["first"].tolist() == [pytest.approx((1 / 4 + 1 / 4) / 2)]
    assert table["second"].tolist() == [pytest.approx((3 / 4 + 1 / 4) / 2)]


def test_views__names_are_text(save: Save, store: RecordStore) -> None:
    save("clip")
    save("slip")
    records = store.all()
    names = {"clip": "<script>\x1b[31m", "slip": "x[/bold]"}
    both = [Side.of_store(store, row, records=records, names=names) for row in names]
    found = Comparisons.of(*both)
    assert "\x1b" not in repr(found)
    assert "x[/bold]" in repr(found)
    assert "<script" not in found._repr_html_()


def test_outcome_table_of_the_tests_is_in_order() -> None:
    assert outcome_table({"m": np.zeros(2)})["sample_id"].tolist() == ["image000", "image001"]
