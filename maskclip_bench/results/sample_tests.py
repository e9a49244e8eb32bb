"""The paired test of two records on the same samples, made once however many tables show it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence

from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.results.paired import Comparison, paired_test
from maskclip_bench.results.records import Record, RecordStore

_MADE: dict[tuple[Hashable, ...], Comparison] = {}
"""By the hashes of both outcome files and what was tested: nothing else decides a test."""


def compare_records(
    store: RecordStore, record: Record, other: Record, metric: str
) -> Comparison | None:
    """`record` minus `other` on one metric both have; None where outcomes do not tell.

    A test takes up to half a second, and a run shows the same two rows in several tables and in
    its report. A test and its reverse are one.

    Raises:
        DataError: The two were not measured on the same samples.
        DamagedFileError: A file of outcomes is missing or damaged.
        StorageError: It cannot be read.
    """
    measured = record.metrics[metric]
    if measured.statistic == "none" or not (record.outcomes_file and other.outcomes_file):
        return None
    if other.metrics[metric].statistic != measured.statistic:
        return None
    first, second = sorted((record, other), key=lambda side: side.outcomes_sha256 or "")
    hashes = (first.outcomes_sha256, second.outcomes_sha256)
    key = (*hashes, metric, measured.statistic, tuple(measured.columns))
    if key in _MADE:
        store.check_outcomes(first)
        store.check_outcomes(second)
    else:
        _MADE[key] = paired_test(
            store.outcomes(first),
            store.outcomes(second),
            metric,
            statistic=measured.statistic,
            columns=measured.columns,
        )
    return _MADE[key] if first is record else _MADE[key].reversed


def compare_all(
    store: RecordStore, records: Sequence[Record], *, between: Callable[[], None] = lambda: None
) -> int:
    """Make the tests that tables and a report of these records will ask for.

    Args:
        store: Of the records.
        records: Rows that have several seeds of a task are left out: seeds are compared otherwise.
        between: Called before each test; what it raises ends this.

    Returns:
        How many tests there are.
    """
    by_task: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.status == "ok":
            of_task = by_task.setdefault(record.task, {})
            of_task.setdefault(record.cell.backbone, []).append(record)
    number = 0
    for rows in by_task.values():
        alone = [seeds[0] for seeds in rows.values() if len(seeds) == 1]
        for record, other in itertools.combinations(alone, 2):
            for metric in record.shown_metrics:
                if metric not in record.metrics or metric not in other.metrics:
                    continue
                between()
                try:
                    number += compare_records(store, record, other, metric) is not None
                except MaskCLIPBenchError:  # who asks for this test says what is wrong
                    continue
    return number
