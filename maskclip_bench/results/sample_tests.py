"""The paired test of two records on the same samples, made once however many tables show it."""

from __future__ import annotations

from collections.abc import Hashable

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
