"""Read a record's files and check them: bytes, JSON, seal, fields, outcomes, values.

Whatever is not as it was written is a `DamagedFileError` that says what is wrong; what the disk
does not let us read is a `StorageError`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from maskclip_bench import storage
from maskclip_bench.errors import DamagedFileError, DataError
from maskclip_bench.results.measurement import statistic_value
from maskclip_bench.results.outcome_columns import check_outcomes
from maskclip_bench.results.record_model import SCHEMA_VERSION, SEAL, Record, seal_of

MAX_RECORD_BYTES = 64 * 2**20
"""A larger file is no record; the largest of ours are under 1 MB."""

KEPT_BYTES = 1 << 18
"""Files of outcomes up to this size are parsed once as long as 128 others have not come since."""

VALUE_TOLERANCE = 1e-9
"""How far a recorded value may be from the statistic of the recorded outcomes."""


def read_record(path: Path) -> Record:
    """Read the JSON of a record, and check its seal, its fields and its place.

    Raises:
        DamagedFileError: It is not as it was written; says why.
        DataError: It was written by a newer version of this package.
        StorageError: The disk does not let us read it.
    """
    values = _read_json(path)
    version = values.get("schema_version")
    sealed = values.get(SEAL) is not None
    if sealed and values[SEAL] != seal_of(values):
        raise damaged(path, "its content differs from its seal")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {version}; this version reads up to {SCHEMA_VERSION}. "
            "Update maskclip-bench, or measure the cell into another workspace."
        )
    if version != SCHEMA_VERSION:
        raise damaged(path, f"its schema version is {version!r}, not {SCHEMA_VERSION}")
    try:
        record = Record.model_validate(values)
    except (ValidationError, RecursionError) as error:
        raise damaged(path, _first_problem(error)) from None
    place = f"{record.row_id}/{record.cell.protocol}__{record.cell.dataset}.json"
    if Path(place) != Path(path.parent.name, path.name):
        raise damaged(path, f"it is the record of {place}")
    return record


def read_outcomes(path: Path, record: Record) -> pd.DataFrame:
    """Read the outcomes of the record at `path`; their hash and their columns are checked.

    Raises:
        DataError: The record has none: its cell failed.
        DamagedFileError: The file is missing or not as it was written.
        StorageError: The disk does not let us read it.
    """
    content = read_content(path, record)
    try:
        parse = _kept if len(content) <= KEPT_BYTES else _parse
        return parse(content).copy()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(outcomes_path(path, record), _first_problem(error)) from error


def read_content(path: Path, record: Record) -> bytes:
    """The bytes of the outcomes of the record at `path`; their hash is checked.

    Raises:
        DataError, DamagedFileError, StorageError: See `read_outcomes`.
    """
    if record.outcomes_file is None:
        raise DataError(f"{path} has no outcomes: its status is {record.status!r}.")
    file = outcomes_path(path, record)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise damaged(file, "it is missing") from None
    except OSError as error:
        raise storage.read_error(error, file) from error
    if hashlib.sha256(content).hexdigest() != record.outcomes_sha256:
        raise damaged(file, "its hash is not the one in the record")
    return content


def _parse(content: bytes) -> pd.DataFrame:
    outcomes = pd.read_parquet(io.BytesIO(content))
    check_outcomes(outcomes)
    return outcomes


_kept = functools.lru_cache(maxsize=128)(_parse)  # a table compares one row with many


def check_outcomes_file(path: Path, record: Record) -> None:
    """Check the bytes of the record's outcomes file against the hash in the record.

    Raises:
        DamagedFileError: The file is missing or not as it was written.
        StorageError: The disk does not let us read it.
    """
    if record.outcomes_file is None:
        return
    file = outcomes_path(path, record)
    if not file.is_file():
        raise damaged(file, "it is missing")
    try:
        digest = storage.sha256_file(file)
    except OSError as error:
        raise storage.read_error(error, file) from error
    if digest != record.outcomes_sha256:
        raise damaged(file, "its hash is not the one in the record")


def check_values(path: Path, record: Record) -> None:
    """Compute every value of the record again from its outcomes, and compare.

    Raises:
        DamagedFileError: A value is not what its outcomes give, or the outcomes are damaged.
    """
    if record.outcomes_file is None:
        return
    outcomes = read_outcomes(path, record)
    for name, metric in record.metrics.items():
        try:
            expected = statistic_value(outcomes, name, metric.statistic, metric.columns)
        except ValueError as error:
            raise damaged(path, _first_problem(error)) from None
        if expected is not None and abs(expected - metric.value) > VALUE_TOLERANCE:
            raise damaged(
                path,
                f"it says {name} = {metric.value:.6f}, and its outcomes give {expected:.6f}",
            )


def outcomes_path(path: Path, record: Record) -> Path:
    """The outcomes file of the record at `path`: always in the same folder."""
    assert record.outcomes_file is not None
    return path.parent / Path(record.outcomes_file).name


def damaged(path: Path, reason: str) -> DamagedFileError:
    """The error for a file that is not as it was written."""
    return DamagedFileError(
        f"{path} is damaged: {reason}. Run the suite again: the file is set aside and the cell is "
        "measured again."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.is_dir():
            raise damaged(path, "it is a folder")
        if not path.is_file():
            raise damaged(path, "it is no regular file")
        size = path.stat().st_size
        if size > MAX_RECORD_BYTES:
            raise damaged(path, f"it has {size} bytes, more than any record")
        content = path.read_bytes()
    except OSError as error:
        raise storage.read_error(error, path) from error
    try:
        values = json.loads(
            content.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_refuse
        )
    except RecursionError:
        raise damaged(path, "it is nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, a number of thousands of digits
        raise damaged(path, _first_problem(error)) from None
    if not isinstance(values, dict):
        raise damaged(path, f"it holds a {type(values).__name__}, not a record")
    return values


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} is given twice")
    return values


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of a record")


def _first_problem(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        return f"{where}: {detail['msg']}" if where else str(detail["msg"])
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
