from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from maskclip_bench.report.cell_charts import cell_charts, class_ratios, class_words
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.tasks.protocols import PROTOCOLS
from tests.report.measurements import MADE

COMMITTED = Path(__file__).resolve().parents[2] / "results" / "records"


def keys(record: Record, store: RecordStore) -> set[str]:
    return {chart.key for chart in cell_charts(record, store.outcomes(record), None)}


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            "knn/objects",
            {"metrics", "curve-top1-accuracy", "classes", "confusions", "confusion", "calibration"},
        ),
        ("retrieval/captions", {"metrics"}),
        ("linear_segmentation/scenes", {"metrics", "classes"}),
        ("detection/things", {"metrics", "precision-recall"}),
    ],
)
def test_charts__by_what_the_outcomes_hold(
    task: str, expected: set[str], store: RecordStore, save: Callable[..., Record]
) -> None:
    record = save("first", task, MADE[task](3))
    assert keys(record, store) == expected


def one_of_each_protocol() -> list[tuple[str, Path]]:
    found = []
    for protocol in PROTOCOLS.names():
        records = sorted(COMMITTED.glob(f"*/{protocol}__*.json"))
        if records:
            found.append((protocol, records[0]))
    return found


@pytest.mark.parametrize(("protocol", "path"), one_of_each_protocol())
def test_every_protocol_can_be_drawn(protocol: str, path: Path, tmp_path: Path) -> None:
    """Of the records that are committed; read from a copy, as reading may tidy up."""
    import shutil

    row = tmp_path / path.parent.name
    shutil.copytree(path.parent, row)
    store = RecordStore(tmp_path)
    record = next(r for r in store.all() if r.cell.protocol == protocol)
    charts = cell_charts(record, store.outcomes(record), None)
    assert "metrics" in {chart.key for chart in charts}
    for chart in charts:
        assert chart.drawing.items
        assert chart.drawing.to_svg().startswith("<svg")
        assert chart.caption.endswith(".")


@pytest.mark.parametrize("protocol", PROTOCOLS.names())
def test_every_protocol_can_be_drawn__without_outcomes(
    protocol: str, save: Callable[..., Record]
) -> None:
    """Also those of which no record is committed yet: the scores are always drawn."""
    record = save("row", f"{protocol}/toy", MADE["knn/objects"](1))
    charts = cell_charts(record, None, None)
    assert [chart.key for chart in charts] == ["metrics", "curve-top1-accuracy"]


def test_class_ratios__by_hand() -> None:
    outcomes = pd.DataFrame(
        {
            "mean_iou.numerator": [[1, 0], None, [2, 0]],
            "mean_iou.denominator": [[2, 0], None, [4, 0]],
        }
    )
    ratios = class_ratios(outcomes, "mean_iou")
    assert ratios[0] == 0.5
    assert np.isnan(ratios[1])


def test_class_words__numbers_where_no_name_is_known() -> None:
    assert class_words(["a"], 3) == ["a", "class 1", "class 2"]
    assert class_words(None, 1) == ["class 0"]
    assert class_words(["a", "b", "c"], 2) == ["a", "b"]
