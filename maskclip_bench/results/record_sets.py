"""Whole sets of records: as a table of numbers, compared with another set, merged into one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from maskclip_bench import storage
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.escaping import csv_cell
from maskclip_bench.results.record_model import Record
from maskclip_bench.results.records import RecordStore

Change = Literal["only first", "only second", "same", "value", "outcomes", "inputs", "status"]
"""How a cell of two stores differs: the value of a metric; the outcomes behind equal values; only
what it was measured from (weights, data, settings); or one of the two failed."""

COLUMNS = (
    "backbone", "seed", "task", "metric", "is_primary", "value", "low", "high", "chance_level",
    "higher_is_better", "statistic", "num_samples", "num_groups", "preset", "preset_version",
    "task_version", "world", "status", "limit", "seconds", "time", "cell_fingerprint",
)  # fmt: skip
"""Of `metric_table`."""
OF_METRIC = COLUMNS[5:13]
"""Those that are fields of a metric."""


@dataclass(frozen=True)
class Difference:
    """One cell of two stores.

    Attributes:
        row_id: Its row.
        task: Its column.
        change: How it differs.
        first: Its primary value in the first store, a fraction; None without one.
        second: In the second store.
        parts: What it was measured from that differs ("weights", "data"...).
        largest: The largest difference of a metric, a fraction; infinite for one that only one of
            the two has; None without metrics.
        metric: Which metric that is.
    """

    row_id: str
    task: str
    change: Change
    first: float | None
    second: float | None
    parts: tuple[str, ...] = ()
    largest: float | None = None
    metric: str | None = None

    @property
    def of_both(self) -> bool:
        """Whether both stores have the cell."""
        return not self.change.startswith("only")

    def is_within(self, tolerance: float) -> bool:
        """Whether both have scores of the same metrics that differ by so much at most."""
        if self.change == "same":
            return True
        if not self.of_both or self.change == "status" or self.largest is None:
            return False
        return self.largest <= tolerance


@dataclass
class Merged:
    """What a merge did, by cell ("row/protocol/dataset").

    Attributes:
        copied: Records that were not there, or took the place of a failed one.
        same: Records that were there already.
        kept: Cells that differ, of which this store's record stands.
        replaced: Cells that differ, whose record was replaced.
    """

    copied: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)


def cell_name(record: Record) -> str:
    """`row/protocol/dataset`, as `plan --why` and `results show` take it."""
    return f"{record.row_id}/{record.task}"


def metric_table(records: Iterable[Record]) -> pd.DataFrame:
    """One line a metric, fractions; a failed record is one line without a metric. See `COLUMNS`."""
    lines = []
    for record in records:
        common = {
            "backbone": record.cell.backbone,
            "seed": record.cell.seed,
            "task": record.task,
            "preset": record.preset,
            "preset_version": record.preset_version,
            "task_version": record.cell.task_version,
            "world": record.cell.world,
            "status": record.status,
            "limit": record.budget.get("limit"),
            "seconds": record.seconds,
            "time": record.provenance.get("time"),
            "cell_fingerprint": record.cell.cell_fingerprint,
        }
        for name, metric in record.metrics.items():
            values = metric.model_dump(include=set(OF_METRIC))
            is_primary = name == record.primary_metric
            lines.append({**common, "metric": name, "is_primary": is_primary, **values})
        if not record.metrics:
            lines.append(common)
    return pd.DataFrame(lines, columns=list(COLUMNS))


def export_metrics(records: Sequence[Record], path: Path) -> Path:
    """Write `metric_table` as CSV, JSON (a list of lines) or Parquet, by the suffix of `path`.

    Raises:
        ConfigError: The suffix names none of these.
        StorageError: The disk refused.
    """
    table = metric_table(records)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        texts = [name for name in table if any(isinstance(value, str) for value in table[name])]
        table = table.assign(
            **{name: table[name].map(csv_cell, na_action="ignore") for name in texts}
        )
        storage.write_text(path, table.to_csv(index=False, lineterminator="\n"))
    elif suffix == ".json":
        storage.write_text(path, f"{table.to_json(orient='records', indent=2)}\n")
    elif suffix == ".parquet":
        with storage.atomic_file(path) as temporary:
            table.to_parquet(temporary, index=False)
    else:
        raise ConfigError(f"{path.name!r}: export writes .csv, .json or .parquet; name one.")
    return path


def differences(first: RecordStore, second: RecordStore) -> list[Difference]:
    """All cells of two stores, sorted by row and task; those that are the same included.

    Raises:
        DataError: A record was written by a newer version.
        StorageError: One cannot be read.
    """
    ours = {(record.row_id, record.task): record for record in first.all()}
    theirs = {(record.row_id, record.task): record for record in second.all()}

    def same_outcomes(ours: Record, theirs: Record) -> bool:
        if ours.outcomes_sha256 == theirs.outcomes_sha256:
            return True
        if ours.outcomes_file is None or theirs.outcomes_file is None:
            return False
        return _plain_columns(first.outcomes(ours)) == _plain_columns(second.outcomes(theirs))

    return [
        _difference(*key, ours.get(key), theirs.get(key), same_outcomes)
        for key in sorted({*ours, *theirs})
    ]


def _plain_columns(outcomes: pd.DataFrame) -> dict[str, str]:
    """The values of each column, written exactly: other bytes of a file may hold the same."""
    return {
        name: repr([v.tolist() if isinstance(v, np.ndarray) else v for v in column.tolist()])
        for name, column in outcomes.items()
    }


def _difference(
    row_id: str,
    task: str,
    first: Record | None,
    second: Record | None,
    same_outcomes: Callable[[Record, Record], bool],
) -> Difference:
    values = [
        record.primary.value if record is not None and record.status == "ok" else None
        for record in (first, second)
    ]
    if first is None or second is None:
        change: Change = "only first" if second is None else "only second"
        return Difference(row_id, task, change, values[0], values[1])
    parts = tuple(
        part
        for part in sorted({*first.fingerprints, *second.fingerprints})
        if first.fingerprints.get(part) != second.fingerprints.get(part)
    )
    largest, metric = _largest(first, second)
    if first.status != second.status:
        change = "status"
    elif first.primary_metric != second.primary_metric or (largest or 0.0) > ROUNDING:
        change = "value"
    elif not same_outcomes(first, second):
        change = "outcomes"
    elif parts or first.cell.cell_fingerprint != second.cell.cell_fingerprint:
        change = "inputs"
    else:
        change = "same"
    return Difference(row_id, task, change, values[0], values[1], parts, largest, metric)


ROUNDING = 1e-9
"""Difference of two metrics that only tells in which order a sum was made."""


def _largest(first: Record, second: Record) -> tuple[float | None, str | None]:
    """The largest difference of a metric, and its name; infinite where only one has it."""
    found: tuple[float | None, str | None] = (None, None)
    for name in dict.fromkeys([*first.metrics, *second.metrics]):
        ours, theirs = first.metrics.get(name), second.metrics.get(name)
        apart = math.inf if ours is None or theirs is None else abs(ours.value - theirs.value)
        if found[0] is None or apart > found[0]:
            found = (apart, name)
    return found


def merge(source: RecordStore, target: RecordStore, *, replace: bool = False) -> Merged:
    """Copy the records of another store, with their outcomes.

    Both are verified while they are read. A score takes the place of a failed record, never the
    other way round. Where both have a score and it is not the same measurement, the target's record
    stands, unless `replace`.

    Args:
        source: Is not changed (but that damaged records are set aside).
        target: Takes the records.
        replace: Take the source's record where both have one.

    Raises:
        DataError: A record was written by a newer version, or both are one store.
        StorageError: Something cannot be read or written; what was copied before is whole.
    """
    if source.root.resolve() == target.root.resolve():
        raise DataError(f"{source.root} cannot be merged into itself. Name another workspace.")
    done = Merged()
    for record in source.all():
        standing = target.load(record.row_id, record.cell.protocol, record.cell.dataset)
        name = cell_name(record)
        if standing is not None and _is_same(standing, record):
            done.same.append(name)
            continue
        if standing is None or (standing.status == "failed" and record.status == "ok"):
            done.copied.append(name)
        elif replace and record.status == "ok":
            done.replaced.append(name)
        else:
            done.kept.append(name)
            continue
        target.take(record, source)
    return done


def _is_same(ours: Record, theirs: Record) -> bool:
    """One measurement: the same fields, whenever and wherever they were written."""
    varying = {"seal", "outcomes_file", "outcomes_sha256"}
    return ours.model_dump(exclude=varying) == theirs.model_dump(exclude=varying)


def show_record(record: Record) -> dict[str, Any]:
    """A record as plain values, as its file has it."""
    return record.model_dump(mode="json")
