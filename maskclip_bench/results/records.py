"""One measured cell of the table: a JSON file, with its per-sample outcomes in Parquet beside it.

    records/{row}/{protocol}__{dataset}.json                 the record, and the commit point
    records/{row}/{protocol}__{dataset}.{sha256[:12]}.parquet    its outcomes, written before it

A record names its outcomes by their hash, so a process killed between the two writes leaves the
previous record whole. A failed cell is recorded as failed, never as a score.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError, model_validator

from maskclip_bench import storage
from maskclip_bench.config import Declaration, World
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.results import bootstrap
from maskclip_bench.results.measurement import Measurement, Metric, ratio_outcomes

SCHEMA_VERSION = 1


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]*")


def row_id(backbone: str, seed: int = 0) -> str:
    """Name of a row: the backbone's, with the seed where it is not 0."""
    return backbone if seed == 0 else f"{backbone}__seed{seed}"


class Cell(Declaration):
    """Which cell of the table: a row, a column, and the hash of all that its number depends on."""

    backbone: str
    seed: int = 0
    """Seed of the row's pretraining; 0 for weights that came from elsewhere."""
    protocol: str
    dataset: str
    world: World
    task_version: int = 1
    cell_fingerprint: str = Field(min_length=1)
    """Hash of weights, data, transform, protocol settings, preset version and task version."""

    @property
    def row_id(self) -> str:
        """Folder of the cell below `records/`."""
        return row_id(self.backbone, self.seed)

    @property
    def task(self) -> str:
        """`protocol/dataset`."""
        return f"{self.protocol}/{self.dataset}"


class MetricRecord(Declaration):
    """One metric of a record; all levels are fractions."""

    value: float = Field(ge=0, le=1)
    low: float | None = Field(default=None, ge=0, le=1)
    """Lower end of the 95 % bootstrap interval; None where the metric has no outcome column."""
    high: float | None = Field(default=None, ge=0, le=1)
    chance_level: float | None = Field(default=None, ge=0, le=1)
    higher_is_better: bool = True
    statistic: Literal["mean", "mean_per_class", "mean_ratio", "none"] = "mean"
    num_samples: int | None = None
    """Outcomes the metric is made of."""
    num_groups: int | None = None
    """Independent units among them; what the bootstrap resamples."""

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2


class Failure(Declaration):
    """Why a cell has no score."""

    type: str
    message: str
    traceback: str


class Record(Declaration):
    """A measured (or failed) cell with everything needed to trust it."""

    schema_version: int = SCHEMA_VERSION
    cell: Cell
    status: Literal["ok", "failed"]
    preset: str | None = None
    preset_version: int | None = None
    primary_metric: str | None = None
    metrics: dict[str, MetricRecord] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)
    """Chosen hyperparameters; hashes of transform, templates, classes, data."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """What the run was allowed to spend; empty = all of the data set, the whole schedule."""
    fingerprints: dict[str, str] = Field(default_factory=dict)
    """Hashes of the parts: weights, data, transform..."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Versions, code state, hardware, time (`runtime.provenance`)."""
    seconds: float | None = None
    """Wall-clock time the cell took."""
    outcomes_file: str | None = None
    outcomes_sha256: str | None = None
    error: Failure | None = None

    @model_validator(mode="after")
    def _whole(self) -> Record:
        if self.status == "ok" and self.primary_metric not in self.metrics:
            raise ValueError("an ok record needs metrics, its primary metric among them")
        if self.status == "failed" and (self.metrics or self.error is None):
            raise ValueError("a failed record has an error and no metric")
        return self

    @property
    def row_id(self) -> str:
        """Folder of the record below `records/`."""
        return self.cell.row_id

    @property
    def task(self) -> str:
        """`protocol/dataset`."""
        return self.cell.task

    @property
    def primary(self) -> MetricRecord:
        """The primary metric.

        Raises:
            DataError: The cell failed; the message tells why.
        """
        if self.primary_metric is None:
            reason = f"{self.error.type}: {self.error.message}" if self.error else "unknown"
            raise DataError(
                f"The cell {self.row_id} x {self.task} has no score: it failed with {reason}. "
                "Run it again: maskclip-bench run"
            )
        return self.metrics[self.primary_metric]


def measured_record(
    cell: Cell,
    measurement: Measurement,
    *,
    fingerprints: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    num_resamples: int = bootstrap.NUM_RESAMPLES,
) -> Record:
    """Make the record of a measurement; bootstraps the interval of every metric."""
    outcomes = measurement.outcomes
    return Record(
        cell=cell,
        status="ok",
        preset=measurement.preset,
        preset_version=measurement.preset_version,
        primary_metric=measurement.primary_metric,
        metrics={
            name: _metric_record(name, metric, outcomes, num_resamples)
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
) -> Record:
    """Make the record of a cell that raised `error`: no score, but its traceback."""
    return Record(
        cell=cell,
        status="failed",
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

    Safe against kill -9 at any moment and against a second process on the same folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, row: str, protocol: str, dataset: str) -> Path:
        """Where the JSON of a cell lies.

        Raises:
            ConfigError: A name could not be a file name.
        """
        for name in (row, protocol, dataset):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{name!r} cannot name a record: use letters, digits and _ . + = - only."
                )
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
        cell = record.cell
        path = self.path(cell.row_id, cell.protocol, cell.dataset)
        with storage.exclusive(path):
            if record.status == "failed":
                with contextlib.suppress(DataError):
                    standing = self.load(cell.row_id, cell.protocol, cell.dataset)
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
            storage.write_json(path, record.model_dump(mode="json"))
            self._remove_stale_outcomes(path, keep=record.outcomes_file)
        return record

    def load(self, row: str, protocol: str, dataset: str) -> Record | None:
        """The record of a cell, None if it was never recorded; its outcomes file is verified.

        Raises:
            DataError: The JSON or the Parquet file is damaged; says which and what to do.
        """
        path = self.path(row, protocol, dataset)
        return self._read(path) if path.exists() else None

    def recorded(self, cell: Cell) -> Record | None:
        """The ok record of exactly this cell (same fingerprint), else None.

        Raises:
            DataError: The record is damaged.
        """
        record = self.load(cell.row_id, cell.protocol, cell.dataset)
        if (
            record is None
            or record.status != "ok"
            or record.cell.cell_fingerprint != cell.cell_fingerprint
        ):
            return None
        return record

    def all(self) -> list[Record]:
        """Every record, ok and failed, sorted by row and task.

        Raises:
            DataError: One is damaged.
        """
        return [self._read(path) for path in self._paths()]

    def outcomes(self, record: Record) -> pd.DataFrame:
        """Per-sample outcomes of a record (see `Measurement.outcomes`).

        Raises:
            DataError: The record has none, or the file is missing or damaged.
        """
        cell = record.cell
        path = self.path(cell.row_id, cell.protocol, cell.dataset)
        if record.outcomes_file is None:
            raise DataError(f"{path} has no outcomes: its status is {record.status!r}.")
        _verify_outcomes(path, record)
        return pd.read_parquet(path.parent / record.outcomes_file)

    def _paths(self) -> Iterator[Path]:
        for path in sorted(self.root.glob("*/*.json")):
            if not path.name.startswith("."):
                yield path

    def _read(self, path: Path) -> Record:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.get("schema_version") if isinstance(values, dict) else None
            if version != SCHEMA_VERSION:
                raise DataError(
                    f"{path} has schema version {version!r}; this version reads {SCHEMA_VERSION}. "
                    "Delete the file and run the suite again: the cell is then measured anew."
                )
            record = Record.model_validate(values)
        except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path} is damaged ({reason}). Delete the file and run the suite again: "
                "the cell is then measured anew."
            ) from error
        if record.outcomes_file is not None:
            _verify_outcomes(path, record)
        return record

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
    name: str, metric: Metric, outcomes: pd.DataFrame, num_resamples: int
) -> MetricRecord:
    low = high = num_samples = num_groups = None
    if metric.statistic == "mean_ratio":
        low, high = bootstrap.ratio_interval(outcomes, name, num_resamples=num_resamples)
        _, _, measured = ratio_outcomes(outcomes, name)
        num_samples = int(measured.sum())
        num_groups = int(outcomes["group"][measured].nunique())
    elif metric.statistic != "none":
        values = outcomes[name].to_numpy(dtype=np.float64)
        groups = outcomes["group"].to_numpy()
        labels = outcomes["label"].to_numpy() if metric.statistic == "mean_per_class" else None
        low, high = bootstrap.interval(
            values,
            groups,
            statistic=metric.statistic,
            labels=labels,
            num_resamples=num_resamples,
        )
        measured = ~np.isnan(values)
        num_samples = int(measured.sum())
        num_groups = int(pd.Series(groups[measured]).nunique())
    return MetricRecord(
        value=metric.value,
        low=low if low is None else min(max(low, 0.0), 1.0),
        high=high if high is None else min(max(high, 0.0), 1.0),
        chance_level=metric.chance_level,
        higher_is_better=metric.higher_is_better,
        statistic=metric.statistic,
        num_samples=num_samples,
        num_groups=num_groups,
    )


def _is_part(parts: Mapping[str, str], whole: Mapping[str, str]) -> bool:
    """Whether `parts` are some of `whole`, but not all."""
    return bool(parts) and parts.items() < whole.items()


def _write_outcomes(record_path: Path, outcomes: pd.DataFrame) -> tuple[Path, str]:
    """Write the Parquet file under a name that holds its hash -> (path, SHA-256)."""
    content = outcomes.to_parquet(None, index=False, compression="zstd")
    digest = hashlib.sha256(content).hexdigest()
    path = record_path.with_name(f"{record_path.stem}.{digest[:12]}.parquet")
    with storage.atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path, digest


def _verify_outcomes(record_path: Path, record: Record) -> None:
    assert record.outcomes_file is not None
    file = record_path.parent / Path(record.outcomes_file).name
    problem = None
    if not file.is_file():
        problem = "is missing"
    elif storage.sha256_file(file) != record.outcomes_sha256:
        problem = "is damaged (its hash is not the one in the record)"
    if problem is not None:
        raise DataError(
            f"{file} {problem}. Delete {record_path.name} in the same folder and run the suite "
            "again: the cell is then measured anew."
        )
