"""Published numbers: one line of `results/reference/*.csv` a number, each with its source.

Values stand in the files as they were published (percent, mostly), so that they can be held
against the source; this module turns percentages into fractions. A user's own files join through
`MASKCLIP_BENCH_CATALOGUE`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from maskclip_bench import data_files, storage
from maskclip_bench.config import Declaration, load_declaration, validate
from maskclip_bench.errors import DataError, unknown_name

KIND = "results/reference"

UNKNOWN_PRESET = "unknown"
"""The source does not say under which preset it measured."""


class ReferenceRow(Declaration):
    """One published number; the fields are the columns of the CSV files."""

    table: str = Field(min_length=1)
    """Where it stands in the source ("MaskCLIP T5")."""
    method: str = Field(min_length=1)
    encoder: str = Field(min_length=1)
    pretrain_data: str = Field(min_length=1)
    epochs: float | None = None
    """Of pretraining; empty where the source does not say."""
    task: str = Field(pattern=r"^[a-z_]+/[a-z0-9_]+$")
    """`protocol/dataset`, our names."""
    metric: str = Field(min_length=1)
    value: float
    unit: Literal["percent", "ratio", "gigabyte"]
    preset: str
    """Our name of the preset, or "unknown"."""
    source: str = Field(min_length=1)
    directness: str = Field(min_length=1)
    """Whose number it is: the method's own, a follow-up's row, a note that quotes the table."""
    published_as: str
    """Task, data set and metric in the source's own words."""

    @model_validator(mode="after")
    def _in_range(self) -> ReferenceRow:
        if self.unit == "percent" and not 0 <= self.value <= 100:
            raise ValueError(f"a percentage lies in 0..100, not {self.value:g}")
        return self

    @property
    def fraction(self) -> float:
        """The value as records hold it, 0 to 1.

        Raises:
            DataError: The number is no percentage.
        """
        if self.unit != "percent":
            raise DataError(
                f"{self.table}, {self.method}, {self.metric}: a {self.unit} cannot stand in a "
                "table of scores. Choose a metric published in percent."
            )
        return self.value / 100


class PublishedSelector(Declaration):
    """Which published numbers make a row of a table; fields left out match anything."""

    table: str
    method: str
    encoder: str | None = None
    pretrain_data: str | None = None
    epochs: float | None = None

    def matches(self, row: ReferenceRow) -> bool:
        """True if every field that is given equals the row's."""
        return all(
            getattr(row, name) == wanted
            for name, wanted in self.model_dump(exclude_none=True).items()
        )


@dataclass(frozen=True)
class PublishedSource:
    """Where a published number comes from.

    Attributes:
        citation: The paper's own table, e.g. "Dong et al. 2023, Table 1".
        read_in: The place where the number was read.
    """

    citation: str
    read_in: str


class Papers(Declaration):
    """`results/reference/*.yaml`: who published the tables."""

    papers: dict[str, str]
    """First word of a table's name ("MaskCLIP") -> the paper ("Dong et al. 2023")."""


def load_papers() -> dict[str, str]:
    """First word of a table's name -> the paper, of all files of the catalogue.

    Raises:
        ConfigError: A file does not fit.
    """
    found: dict[str, str] = {}
    for path in data_files.declarations(KIND, suffix=".yaml").values():
        found |= load_declaration(path, Papers).papers
    return found


def source_of(row: ReferenceRow, papers: Mapping[str, str]) -> PublishedSource:
    """The source of a published number.

    Args:
        row: The number.
        papers: From `load_papers`; a table whose first word is not among them keeps its name.
    """
    name, _, place = row.table.partition(" ")
    if name not in papers:
        return PublishedSource(row.table, row.source)
    place = re.sub(r"^T(?=\d)", "Table ", place)
    return PublishedSource(f"{papers[name]}, {place}" if place else papers[name], row.source)


def load_references(paths: Iterable[Path] | None = None) -> list[ReferenceRow]:
    """Read reference files; by default all of the catalogue.

    Raises:
        DataError: A file is no CSV of this schema.
        ConfigError: A line does not fit; names the file and the line.
    """
    if paths is None:
        paths = data_files.declarations(KIND, suffix=".csv").values()
    return [row for path in paths for row in _read(path)]


def select(
    rows: Iterable[ReferenceRow],
    selector: PublishedSelector,
    *,
    task: str,
    metric: str,
    preset: str | None = None,
) -> ReferenceRow | None:
    """The first published number that fits, else None.

    A number whose source names no preset fits every preset.
    """
    for row in rows:
        if (
            row.task == task
            and row.metric == metric
            and (preset is None or row.preset in (preset, UNKNOWN_PRESET))
            and selector.matches(row)
        ):
            return row
    return None


def check_selector(selector: PublishedSelector, rows: list[ReferenceRow]) -> None:
    """Hold a selector against what there is, so that a misspelt one is not a silent gap.

    Raises:
        UnknownNameError: No published number fits it.
    """
    if any(selector.matches(row) for row in rows):
        return
    remedy = f"The lines stand in {KIND}/*.csv."
    tables = {row.table for row in rows}
    if selector.table not in tables:
        raise unknown_name("published table", selector.table, tables, remedy=remedy)
    fields = list(selector.model_dump(exclude_none=True, exclude={"table"}))

    def name(described: PublishedSelector | ReferenceRow) -> str:
        return ", ".join(str(getattr(described, field)) for field in fields)

    names = {name(row) for row in rows if row.table == selector.table}
    raise unknown_name(f"row of {selector.table}", name(selector), names, remedy=remedy)


def _read(path: Path) -> list[ReferenceRow]:
    expected = list(ReferenceRow.model_fields)
    rows = []
    try:
        # `utf-8-sig`: spreadsheets put a byte order mark before what they save as UTF-8.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or list(reader.fieldnames) != expected:
                raise DataError(
                    f"{path} has the columns {reader.fieldnames}; a reference file has "
                    f"{', '.join(expected)}."
                )
            for line in reader:
                if None in line:
                    raise DataError(
                        f"{path}, line {reader.line_num}: more fields than columns. Put text with "
                        "a comma in quotation marks."
                    )
                values = {**line, "epochs": line["epochs"] or None}
                where = f"{path}, line {reader.line_num}"
                rows.append(validate(values, ReferenceRow, where=where))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8 ({error}).") from None
    except OSError as error:
        raise storage.read_error(error, path) from error
    return rows
