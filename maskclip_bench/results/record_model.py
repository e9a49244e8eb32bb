"""The record of one cell: its fields, what they promise of each other, and its seal."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from maskclip_bench.config import Declaration, World
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.results.outcome_columns import Statistic

SCHEMA_VERSION = 1

SEAL = "seal"


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]*")
"""Names that can be those of files everywhere."""

SEED = re.compile(r"__seed\d+$")
"""What `row_id` puts behind a backbone's name."""


def check_name(name: str, what: str) -> str:
    """A name that records may have.

    Args:
        name: Of a backbone or a data set.
        what: Which of the two, for the message.

    Raises:
        ConfigError: Files cannot be called after it everywhere, or it reads as a row with a seed.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a {what}, because files are called after it. Use letters from a "
            "to z, digits, '-', '_', '.', '+' and '='; begin with a letter or digit."
        )
    if SEED.search(name):
        raise ConfigError(
            f"{name!r} cannot name a {what}: the row of {SEED.sub('', name)!r} with that seed has "
            "the same name. Call it otherwise."
        )
    return name


def row_id(backbone: str, seed: int = 0) -> str:
    """Name of a row: the backbone's, with the seed where it is not 0."""
    return backbone if seed == 0 else f"{backbone}__seed{seed}"


class Cell(Declaration):
    """Which cell of the table: a row, a column, and the hash of all that its number depends on."""

    backbone: str
    seed: int = Field(default=0, ge=0)
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
    """Lower end of the 95 % interval; None where the metric has no outcome column."""
    high: float | None = Field(default=None, ge=0, le=1)
    chance_level: float | None = Field(default=None, ge=0, le=1)
    higher_is_better: bool = True
    statistic: Statistic = "mean"
    columns: list[str] = Field(default_factory=list)
    """Outcome columns of the statistic, where it takes some."""
    interval: str | None = None
    """How the interval was made ("wilson", "cluster_bootstrap"...); None in old records."""
    label: str | None = None
    """What a table calls the metric ("top-1"); None in old records."""
    num_samples: int | None = None
    """Outcomes the metric is made of."""
    num_groups: int | None = None
    """Independent units among them; what a bootstrap resamples."""

    @model_validator(mode="after")
    def _value_within_interval(self) -> MetricRecord:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends")
        if (
            self.low is not None
            and self.high is not None
            and not (self.low - 1e-9 <= self.value <= self.high + 1e-9)
        ):
            raise ValueError(
                f"the value {self.value:g} lies outside of its interval "
                f"{self.low:g} to {self.high:g}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _no_chance_at_the_best_score(cls, values: Any) -> Any:
        """Records of before say 0 for errors, of which guessing has no level."""
        if isinstance(values, dict) and values.get("higher_is_better") is False:
            return {**values, "chance_level": values.get("chance_level") or None}
        return values

    @property
    def half_width(self) -> float | None:
        """Longer side of the interval, as seen from the value."""
        if self.low is None or self.high is None:
            return None
        return max(self.high - self.value, self.value - self.low)


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
    protocol_title: str | None = None
    """What a table calls the protocol ("Zero-shot"); None in old records."""
    table_columns: list[str] = Field(default_factory=list)
    """Metrics that get a column of a table by themselves; empty = the primary one."""
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
    seal: str | None = None
    """SHA-256 over everything else in the file; None in records made before there were seals."""

    @model_validator(mode="after")
    def _whole(self) -> Record:
        if self.status == "ok" and self.primary_metric not in self.metrics:
            raise ValueError("an ok record needs metrics, its primary metric among them")
        unknown = [name for name in self.table_columns if name not in self.metrics]
        if unknown:
            raise ValueError(f"table_columns names {unknown}, which are no metrics of the record")
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
    def shown_metrics(self) -> list[str]:
        """Names of the metrics that have a column in tables; an empty one of a failed cell."""
        return self.table_columns or [self.primary_metric or ""]

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


def seal_of(values: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over all values of a record's file but the seal, whatever their order.

    Args:
        values: The JSON mapping, as it is in the file.
    """
    text = json.dumps(
        {key: value for key, value in values.items() if key != SEAL},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()
