"""Every two rows of a report on every column: paired differences, corrected for each pair.

Tests of ratios take half a second each, so they are kept in the report's folder and made again
only where a record changed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskclip_bench import storage
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.report.selection import Selection
from maskclip_bench.results.paired import Comparison, compare_seeds, holm
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.sample_tests import compare_records
from maskclip_bench.results.table_catalogue import metric_label, protocol_title

CACHE = "data/pairs.json"
VERSION = 1


def columns_of(selection: Selection) -> list[dict[str, Any]]:
    """The columns of the page: metrics of tasks, with titles and direction."""
    columns = []
    for task in selection.tasks:
        shown = [record for record in selection.all() if record.task == task and _is_ok(record)]
        for metric in dict.fromkeys(name for record in shown for name in record.shown_metrics):
            holders = [record for record in shown if metric in record.metrics]
            if not metric or not holders:
                continue
            first = holders[-1]
            columns.append(
                {
                    "task": task,
                    "metric": metric,
                    "group": protocol_title(first),
                    "data_set": _display(selection, first.cell.dataset),
                    "label": metric_label(first, metric),
                    "higher_is_better": first.metrics[metric].higher_is_better,
                    "chance": first.metrics[metric].chance_level,
                }
            )
    return columns


def pairs_of(
    selection: Selection,
    columns: Sequence[Mapping[str, Any]],
    store: RecordStore,
    folder: Path,
    *,
    progress: Progress = no_progress,
) -> dict[str, list[dict[str, Any] | None]]:
    """Of every two rows, a minus b on each column, or None; keys are "a|b" in the rows' order.

    Args:
        selection: Rows and records.
        columns: From `columns_of`.
        store: Where outcomes are read.
        folder: Of the report.
        progress: Told of the tests.
    """
    known = _read(folder / CACHE)
    fresh: dict[str, Any] = {}
    result: dict[str, list[dict[str, Any] | None]] = {}
    couples = list(itertools.combinations([row.backbone for row in selection.rows], 2))
    for done, (first, second) in enumerate(couples):
        found: list[dict[str, Any] | None] = []
        for column in columns:
            ours, theirs = (selection.ok(name, column["task"]) for name in (first, second))
            key = _key(ours, theirs, selection, column)
            value = known[key] if key in known else _compare(ours, theirs, selection, column, store)
            fresh[key] = value
            found.append(None if value is None else dict(value))
        _correct(found)
        result[f"{first}|{second}"] = found
        progress("comparing rows", done + 1, len(couples))
    storage.write_json(folder / CACHE, {"version": VERSION, "tests": fresh})
    return result


def _correct(found: Sequence[dict[str, Any] | None]) -> None:
    """Holm over the columns of one pair."""
    tested = [value for value in found if value is not None and value["p_value"] is not None]
    adjusted = holm([value["p_value"] for value in tested])
    for value, corrected in zip(tested, adjusted, strict=True):
        value["corrected_p_value"] = corrected


def _compare(
    ours: dict[int, Record],
    theirs: dict[int, Record],
    selection: Selection,
    column: Mapping[str, Any],
    store: RecordStore,
) -> dict[str, Any] | None:
    metric = column["metric"]
    ours, theirs = _with_metric(ours, metric), _with_metric(theirs, metric)
    if not ours or not theirs or not _comparable([*ours.values(), *theirs.values()]):
        return None
    values = [_mean(side, metric) for side in (ours, theirs)]
    plain: dict[str, Any] = {"difference": values[0] - values[1], "p_value": None, "covers": ""}
    test = _test(ours, theirs, selection, column, store)
    if test is None:
        return plain
    comparison, covers = test
    return {
        "difference": comparison.difference,
        "low": comparison.low,
        "high": comparison.high,
        "p_value": comparison.p_value,
        "num_samples": comparison.num_samples,
        "num_groups": comparison.num_groups,
        "covers": covers,
    }


def _test(
    ours: dict[int, Record],
    theirs: dict[int, Record],
    selection: Selection,
    column: Mapping[str, Any],
    store: RecordStore,
) -> tuple[Comparison, str] | None:
    """By seed over two or more shared ones, else by sample; None where there is no test."""
    metric = column["metric"]
    if len(ours) >= 2 and ours.keys() == theirs.keys():
        others = []
        for row in selection.rows:
            side = _with_metric(selection.ok(row.backbone, column["task"]), metric)
            if side.keys() == ours.keys() and side not in (ours, theirs):
                others.append([record.metrics[metric].value for record in side.values()])
        a, b = ([r.metrics[metric].value for r in side.values()] for side in (ours, theirs))
        return compare_seeds(a, b, others=others), "seeds"
    shared = sorted(ours.keys() & theirs.keys()) or [min(ours)]
    record, other = ours[shared[0]], theirs.get(shared[0], theirs[min(theirs)])
    if len(ours) > 1 or len(theirs) > 1:
        return None
    try:
        test = compare_records(store, record, other, metric)
    except MaskCLIPBenchError:  # other samples, or outcomes that cannot be read
        return None
    return None if test is None else (test, "samples")


def _with_metric(side: dict[int, Record], metric: str) -> dict[int, Record]:
    return {seed: record for seed, record in side.items() if metric in record.metrics}


def _mean(side: dict[int, Record], metric: str) -> float:
    values = [record.metrics[metric].value for record in side.values()]
    return sum(values) / len(values)


def _comparable(records: Sequence[Record]) -> bool:
    """Whether all were measured under the same preset, version, limits and data."""
    states = {
        json.dumps(
            [
                r.preset,
                r.preset_version,
                r.cell.task_version,
                r.cell.world,
                dict(r.budget),
                r.fingerprints.get("data"),
            ],
            sort_keys=True,
            default=str,
        )
        for r in records
    }
    return len(states) == 1


def _key(
    ours: dict[int, Record],
    theirs: dict[int, Record],
    selection: Selection,
    column: Mapping[str, Any],
) -> str:
    """Hash of all that a test depends on: the records of both rows; with seeds, of all rows."""
    sides: list[Any] = [[r.seal or r.outcomes_sha256 for r in s.values()] for s in (ours, theirs)]
    if len(ours) > 1:
        sides.append(
            [
                [
                    r.seal or r.outcomes_sha256
                    for r in selection.ok(row.backbone, column["task"]).values()
                ]
                for row in selection.rows
            ]
        )
    return storage.fingerprint([VERSION, sides, column["task"], column["metric"]])


def _read(path: Path) -> dict[str, Any]:
    found = storage.read_object(path)
    if found is None or found.get("version") != VERSION:
        return {}
    tests = found.get("tests")
    return tests if isinstance(tests, dict) else {}


def _is_ok(record: Record) -> bool:
    return record.status == "ok"


def _display(selection: Selection, dataset: str) -> str:
    task = selection.datasets.get(dataset)
    return task.display_name if task else dataset
