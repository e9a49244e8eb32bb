"""Measured cells on the disk: a JSON file each, with its per-sample outcomes in Parquet beside it.

    records/{row}/{protocol}__{dataset}.json                 the record, and the commit point
    records/{row}/{protocol}__{dataset}.{sha256[:12]}.parquet    its outcomes, written before it

A record names its outcomes by their hash, so a process killed between the two writes leaves the
previous record whole. A failed cell is recorded as failed, never as a score. The fields are in
`record_model.py`, the checks in `record_reading.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from maskclip_bench import storage
from maskclip_bench.errors import DamagedFileError, StorageError
from maskclip_bench.results import bootstrap
from maskclip_bench.results.intervals import metric_interval
from maskclip_bench.results.measurement import Measurement, Metric, statistic_value
from maskclip_bench.results.record_model import (
    SCHEMA_VERSION,
    SEAL,
    SEED,
    Cell,
    Failure,
    MetricRecord,
    Record,
    check_name,
    row_id,
    seal_of,
)
from maskclip_bench.results.record_reading import (
    check_outcomes_file,
    check_values,
    read_content,
    read_outcomes,
    read_record,
)

__all__ = [
    "SCHEMA_VERSION",
    "Cell",
    "Failure",
    "MetricRecord",
    "Record",
    "RecordStore",
    "failed_record",
    "measured_record",
    "plain",
    "row_id",
]

logger = logging.getLogger(__name__)

LOCK_SECONDS = 60.0
"""How long a reader waits for a process that is replacing a record it found damaged."""


def measured_record(
    cell: Cell,
    measurement: Measurement,
    *,
    fingerprints: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    protocol_title: str | None = None,
    labels: Mapping[str, str] | None = None,
    table_columns: Sequence[str] = (),
    num_resamples: int = bootstrap.NUM_RESAMPLES,
) -> Record:
    """Make the record of a measurement, with the interval of every metric.

    Args:
        cell: Which cell was measured.
        measurement: What the protocol returned.
        fingerprints: Hashes of the parts its fingerprint is made of.
        provenance: From `runtime.provenance`.
        seconds: Wall-clock time the cell took.
        protocol_title: What tables call the protocol.
        labels: What tables call the metrics, by name; a metric's own label otherwise.
        table_columns: Metrics that get a column of a table by themselves; those that the
            measurement does not have are left out. Empty = the primary one.
        num_resamples: Of the intervals that need resampling.
    """
    outcomes = measurement.outcomes
    labels = labels or {}
    return Record(
        cell=cell,
        status="ok",
        preset=measurement.preset,
        preset_version=measurement.preset_version,
        protocol_title=protocol_title,
        table_columns=[name for name in table_columns if name in measurement.metrics],
        primary_metric=measurement.primary_metric,
        metrics={
            name: _metric_record(
                name, metric, outcomes, num_resamples, label=labels.get(name, metric.label)
            )
            for name, metric in measurement.metrics.items()
        },
        details=plain(measurement.details),
        budget=plain(measurement.budget),
        fingerprints=dict(fingerprints or {}),
        provenance=plain(provenance or {}),
        seconds=seconds,
    )


def failed_record(
    cell: Cell,
    error: BaseException,
    *,
    fingerprints: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    protocol_title: str | None = None,
) -> Record:
    """Make the record of a cell that raised `error`: no score, but its traceback."""
    return Record(
        cell=cell,
        status="failed",
        protocol_title=protocol_title,
        error=Failure(
            type=type(error).__name__,
            message=str(error),
            traceback="".join(traceback.format_exception(error)),
        ),
        fingerprints=dict(fingerprints or {}),
        provenance=plain(provenance or {}),
        seconds=seconds,
    )


class RecordStore:
    """All records of a workspace (`Workspace.records`).

    Safe against kill -9 at any moment and against a second process on the same folder. A damaged
    record is set aside as `<name>.damaged-N` with a warning, and its cell counts as not measured.
    Opening the store removes the temporary files of dead processes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        storage.remove_leftovers(root, recursive=True)

    def path(self, row: str, protocol: str, dataset: str) -> Path:
        """Where the JSON of a cell lies.

        Raises:
            ConfigError: A name could not be a file name.
        """
        check_name(SEED.sub("", row), "row")
        for name in (protocol, dataset):
            check_name(name, "record")
        return self.root / row / f"{protocol}__{dataset}.json"

    def save(self, record: Record, outcomes: pd.DataFrame | None = None) -> Record:
        """Write a record, its outcomes first; replaces the cell's previous record.

        A failed record does not replace an ok record of the same cell fingerprint, nor one of
        which it knows a part (it could not read the data, say) that is still the same.

        Args:
            record: From `measured_record` or `failed_record`.
            outcomes: Of the measurement; None for a failed cell.

        Returns:
            The record as it now stands on the disk.

        Raises:
            StorageError: The disk refused; the previous record stands.
        """
        if outcomes is None:
            return self._save(record, None)
        return self._save(record, outcomes.to_parquet(None, index=False, compression="zstd"))

    def take(self, record: Record, source: RecordStore) -> Record:
        """Write a record of another store as `save` does; its outcomes are copied byte by byte.

        (Another version of pandas writes the same outcomes as other bytes, with another hash.)

        Raises:
            DamagedFileError: The other store's outcomes are missing or damaged.
            StorageError: See `save`; or the other store cannot be read.
        """
        cell = record.cell
        path = source.path(cell.row_id, cell.protocol, cell.dataset)
        return self._save(record, read_content(path, record) if record.outcomes_file else None)

    def _save(self, record: Record, outcomes: bytes | None) -> Record:
        """`save`, with the bytes of the file of outcomes."""
        cell = record.cell
        check_name(cell.backbone, "row")
        path = self.path(cell.row_id, cell.protocol, cell.dataset)
        with storage.exclusive(path):
            if record.status == "failed":
                standing = self._whole(path)
                if (
                    standing is not None
                    and standing.status == "ok"
                    and (
                        standing.cell.cell_fingerprint == cell.cell_fingerprint
                        or _is_part(record.fingerprints, standing.fingerprints)
                    )
                ):
                    return standing
            if outcomes is not None:
                file, digest = _write_outcomes(path, outcomes)
                record = record.model_copy(
                    update={"outcomes_file": file.name, "outcomes_sha256": digest}
                )
            values = record.model_dump(mode="json", exclude={SEAL})
            record = record.model_copy(update={SEAL: seal_of(values)})
            storage.write_json(path, {**values, SEAL: record.seal})
            self._remove_stale_outcomes(path, keep=record.outcomes_file)
        return record

    def load(self, row: str, protocol: str, dataset: str) -> Record | None:
        """The record of a cell; None if it was never recorded, or if it was damaged.

        Seal, fields and the hash of the outcomes are checked; the values of a record without a
        seal are computed again from its outcomes. What is damaged is set aside with a warning.

        Raises:
            DataError: It was written by a newer version.
            StorageError: It cannot be read (no permission, an error of the disk).
        """
        path = self.path(row, protocol, dataset)
        return self._read(path) if os.path.lexists(path) else None

    def recorded(self, cell: Cell) -> Record | None:
        """The ok record of exactly this cell (same fingerprint), else None.

        Raises:
            DataError: It was written by a newer version.
            StorageError: It cannot be read.
        """
        record = self.load(cell.row_id, cell.protocol, cell.dataset)
        if (
            record is None
            or record.status != "ok"
            or record.cell.cell_fingerprint != cell.cell_fingerprint
        ):
            return None
        return record

    def all(
        self, *, backbones: Collection[str] | None = None, tasks: Collection[str] | None = None
    ) -> list[Record]:
        """Every whole record, ok and failed, sorted by row and task; damaged ones are set aside.

        Args:
            backbones: Only rows of these, with all their seeds; None = all.
            tasks: Only these columns ("protocol/dataset"); None = all.

        Raises:
            DataError: One was written by a newer version.
            StorageError: One cannot be read.
        """
        records = (
            self._read(path)
            for path in self.paths()
            if (backbones is None or SEED.sub("", path.parent.name) in backbones)
            and (tasks is None or path.stem.replace("__", "/", 1) in tasks)
        )
        return [record for record in records if record is not None]

    def outcomes(self, record: Record) -> pd.DataFrame:
        """Per-sample outcomes of a record (see `Measurement.outcomes`).

        Raises:
            DataError: The record has none.
            DamagedFileError: The file is missing or damaged.
            StorageError: The file cannot be read.
        """
        cell = record.cell
        return read_outcomes(self.path(cell.row_id, cell.protocol, cell.dataset), record)

    def check_outcomes(self, record: Record) -> None:
        """Compare a record's file of outcomes with its hash, and no more.

        Raises:
            DamagedFileError: The file is missing or damaged.
            StorageError: The file cannot be read.
        """
        cell = record.cell
        check_outcomes_file(self.path(cell.row_id, cell.protocol, cell.dataset), record)

    def paths(self) -> list[Path]:
        """Files of all records, sorted."""
        return [path for path in sorted(self.root.glob("*/*.json")) if path.name[0] != "."]

    def check(self, path: Path, *, values: bool = True) -> Record:
        """Read and check the record at `path` and its outcomes; nothing is changed.

        Args:
            path: One of `paths()`.
            values: Compute all values again from the outcomes; else only where there is no seal.

        Raises:
            DamagedFileError: Something is not as it was written.
            DataError: It was written by a newer version.
            StorageError: Something cannot be read.
        """
        record = read_record(path)
        if values or record.seal is None:
            check_values(path, record)
        else:
            check_outcomes_file(path, record)
        return record

    def _read(self, path: Path) -> Record | None:
        """The record at `path`; a damaged one is set aside, unless another process mends it."""
        try:
            return self.check(path, values=False)
        except DamagedFileError as error:
            first = error
        try:
            # A process that is replacing the record holds the lock: look again when it is done.
            with storage.exclusive(path, timeout=LOCK_SECONDS):
                return self._whole(path, warn=True)
        except StorageError:
            logger.warning("%s It cannot be set aside here, and is left out.", first)
            return None

    def _whole(self, path: Path, *, warn: bool = False) -> Record | None:
        """The record at `path` if there is one and it is whole; the caller holds its lock."""
        if not os.path.lexists(path):
            return None
        try:
            return self.check(path, values=False)
        except DamagedFileError as error:
            if not warn:
                return None
            aside = storage.set_aside(path)
            if aside is None:
                logger.warning("%s It cannot be set aside here, and is left out.", error)
            else:
                logger.warning("%s It is now %s.", error, aside.name)
            return None

    @staticmethod
    def _remove_stale_outcomes(path: Path, *, keep: str | None) -> None:
        for file in path.parent.glob(f"{path.stem}.*.parquet"):
            if file.name != keep:
                with contextlib.suppress(OSError):
                    file.unlink()


def plain(value: Any) -> Any:
    """JSON-like copy of `value`: numpy scalars and arrays, tuples, paths made plain.

    Not-a-number and infinity become None: JSON has no word for them.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def _metric_record(
    name: str, metric: Metric, outcomes: pd.DataFrame, num_resamples: int, *, label: str | None
) -> MetricRecord:
    interval = metric_interval(
        outcomes, name, metric.statistic, metric.columns, num_resamples=num_resamples
    )
    expected = statistic_value(outcomes, name, metric.statistic, metric.columns)
    value = metric.value if expected is None else min(max(expected, 0.0), 1.0)
    record = MetricRecord(
        value=value,
        chance_level=metric.chance_level,
        higher_is_better=metric.higher_is_better,
        statistic=metric.statistic,
        columns=list(metric.columns),
        label=label,
    )
    if interval is None:
        return record
    return record.model_copy(
        update={
            "low": min(interval.low, value),
            "high": max(interval.high, value),
            "interval": interval.method,
            "num_samples": interval.num_samples,
            "num_groups": interval.num_groups,
        }
    )


def _is_part(parts: Mapping[str, str], whole: Mapping[str, str]) -> bool:
    """Whether `parts` are some of `whole`, but not all."""
    return bool(parts) and parts.items() < whole.items()


def _write_outcomes(record_path: Path, content: bytes) -> tuple[Path, str]:
    """Write the Parquet file under a name that holds its hash -> (path, SHA-256)."""
    digest = hashlib.sha256(content).hexdigest()
    path = record_path.with_name(f"{record_path.stem}.{digest[:12]}.parquet")
    with storage.atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path, digest
