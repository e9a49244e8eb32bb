r"""Text, JSON and tables (CSV, TSV) of data sets: one way to read them, with one set of rules.

* UTF-8, with or without a byte order mark; UTF-16 and UTF-32 with one. Anything else is refused
  with the line it is in: guessing an encoding changes captions and class names.
* Lines end with `\n` or `\r\n`. No other character ends a line (`str.splitlines` also splits at
  U+2028, form feeds and others, which occur inside captions).
* A NUL makes a line broken.
* In a table quoting is on or off, and off for tab separated files: there a `"` is a character like
  any other. With quoting on, text behind a closing quote and a quote that is never closed are
  errors, because they mean that following rows were swallowed.
* A row is broken if it has more or fewer fields than the header. `read_table` refuses the table,
  or reports the row to its caller, which counts it; no row is left out silently.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from maskclip_bench.errors import ConfigError, DataError, did_you_mean
from maskclip_bench.regular_file import open_regular

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

MAX_LINE = 1 << 24
"""Characters of the longest line of a table; a longer one means that it is no table."""

ROWS_TOGETHER = 1 << 16

_MARKS = (  # UTF-32's first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path | str) -> str:
    """The text of a file; every line ends with a line feed alone.

    Raises:
        DataError: It is missing, no regular file, unreadable, in another encoding, or binary.
    """
    with open_regular(path) as file:
        return decode_text(_read(file, path), what=path)


def decode_text(content: bytes, *, what: object) -> str:
    """The bytes of a text file as text; every line ends with a line feed alone.

    Args:
        content: The bytes.
        what: Name for messages.

    Raises:
        DataError: They are in another encoding, or binary.
    """
    encoding = _encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _wrong_encoding(what, line, encoding) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(
            f"Line {line} of {what} holds a NUL, so the file is no text, or is UTF-16 without a "
            "byte order mark. Save it as UTF-8."
        )
    return text.replace("\r\n", "\n")


def read_lines(path: Path | str) -> list[str]:
    """The lines of a text file without their ends; the last needs no end.

    Raises:
        DataError: As `read_text`.
    """
    lines = read_text(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_json(path: Path | str) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: As `read_text`, or the text is no JSON.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is no JSON: line {error.lineno}, column {error.colno}: {error.msg}. It may be "
            "cut off; copy it again."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        raise DataError(f"{path} is no JSON that can be read here ({error}).") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text in which no object gives a key twice: one of the two would be lost.

    Raises:
        ValueError: It is no JSON, or a key is given twice.
        RecursionError: It nests too deeply.
    """
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated!r} is given twice; remove one")
    return found


class BrokenRow(NamedTuple):
    """Lines of a table that give no row.

    Attributes:
        line: The first of them, counted from 1; the header is line 1.
        num_lines: How many there are: an open quote swallows several.
        reason: What is wrong, in words.
    """

    line: int
    num_lines: int
    reason: str


def read_table(
    path: Path | str,
    *,
    columns: Sequence[str],
    delimiter: str | None = None,
    quoting: bool | None = None,
    on_broken: Callable[[BrokenRow], None] | None = None,
) -> pa.Table:
    """Columns of a delimited text file with a header line, as texts (`large_string`, no nulls).

    Args:
        path: The file.
        columns: Which columns to return, in this order; others are skipped.
        delimiter: One character; by default a tab for `.tsv` and `.tab`, else a comma.
        quoting: Whether `"` quotes a field (`""` inside it is one quote; it may hold line ends);
            by default unless the delimiter is a tab.
        on_broken: Called for each broken row, which is then left out. Without it the first broken
            row is an error.

    Raises:
        DataError: As `read_text`; or a column is missing or occurs twice, or there is no header,
            or a row is broken.
        ConfigError: The delimiter is not one usable character.
    """
    import pyarrow as pa

    if delimiter is None:
        delimiter = "\t" if Path(path).suffix.lower() in (".tsv", ".tab") else ","
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise ConfigError(
            f"The delimiter {delimiter!r} of {path} cannot be used. It is one character, e.g. ',', "
            "';', '|' or a tab."
        )
    quoting = delimiter != "\t" if quoting is None else quoting

    def broken(row: BrokenRow) -> None:
        if on_broken is None:
            raise DataError(
                f"Line {row.line} of {path} is broken: {row.reason}. Correct the table, or its "
                f"delimiter ({delimiter!r}) and quoting ({'on' if quoting else 'off'})."
            )
        on_broken(row)

    schema = pa.schema([(name, pa.large_string()) for name in columns])
    with open_regular(path) as binary, _Lines(binary, path) as lines:
        records = _records(lines, path, delimiter, quoting)
        header = next(records, None)
        if header is None or isinstance(header, BrokenRow):
            reason = f" ({header.reason})" if header else ""
            raise DataError(f"{path} has no header line with column names{reason}.")
        indices = _column_indices(header[1], columns, path, delimiter)
        batches = [
            pa.record_batch([pa.array(part, pa.large_string()) for part in parts], schema=schema)
            for parts in _batches(records, indices, len(header[1]), broken)
        ]
    return pa.Table.from_batches(batches, schema=schema)


def _batches(
    records: Iterator[tuple[int, list[str]] | BrokenRow],
    indices: Sequence[int],
    width: int,
    broken: Callable[[BrokenRow], None],
) -> Iterator[list[list[str]]]:
    """The wanted fields, column by column, `ROWS_TOGETHER` rows at a time."""
    parts: list[list[str]] = [[] for _ in indices]
    for record in records:
        if isinstance(record, BrokenRow):
            broken(record)
            continue
        line, fields = record
        if len(fields) != width:
            if len(fields) == 1 and not fields[0].strip():
                continue  # an empty line
            broken(BrokenRow(line, 1, f"{len(fields)} fields, and the header has {width}"))
            continue
        for part, index in zip(parts, indices, strict=True):
            part.append(fields[index])
        if len(parts[0]) >= ROWS_TOGETHER:
            yield parts
            parts = [[] for _ in indices]
    yield parts


def _column_indices(
    header: Sequence[str], columns: Sequence[str], path: Path | str, delimiter: str
) -> list[int]:
    for name in columns:
        if name not in header:
            raise DataError(
                f"{path} has no column {name!r}.{did_you_mean(name, header)} It has, separated by "
                f"{delimiter!r}: {', '.join(map(repr, header[:20]))}."
            )
        if header.count(name) > 1:
            raise DataError(
                f"{path} has {header.count(name)} columns named {name!r}, so it is not clear which "
                "is meant. Rename all but one."
            )
    return [header.index(name) for name in columns]


def _records(
    lines: _Lines, path: Path | str, delimiter: str, quoting: bool
) -> Iterator[tuple[int, list[str]] | BrokenRow]:
    """(line, fields) of each row, broken rows between them; empty lines may give `[]` or `[""]`."""
    if not quoting:
        for line in lines:
            if lines.problem:
                yield BrokenRow(lines.number, 1, lines.problem)
            elif line:
                yield lines.number, line.split(delimiter)
            lines.problem = None
        return
    reader = csv.reader(_with_ends(lines), delimiter=delimiter, strict=True)
    spanning: list[int] = []
    while True:
        first = lines.number + 1
        lines.problem = None
        try:
            fields = next(reader)
            reason = lines.problem
        except StopIteration:
            break
        except csv.Error as error:
            fields, reason = [], _csv_reason(str(error))
        if reason:
            yield BrokenRow(first, max(1, lines.number - first + 1), reason)
        elif fields:
            if lines.number > first:
                spanning.append(first)
            yield first, fields
    if spanning:
        logger.warning(
            "%s: fields of %d rows hold line breaks (the first in line %d). If that is wrong, a "
            "quote is opened there and swallows rows: correct it, or read without quoting.",
            path,
            len(spanning),
            spanning[0],
        )


def _csv_reason(message: str) -> str:
    if "unexpected end of data" in message:
        return "a quote is opened and never closed"
    if "expected after" in message:
        return "text follows a closing quote (is a quote inside a field not doubled?)"
    return message


def _with_ends(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line + "\n"


class _Lines:
    """Lines of a text file without their ends.

    Attributes:
        number: Of the line returned last, counted from 1.
        problem: What is wrong with a line returned since it was last cleared.
    """

    def __init__(self, binary: io.BufferedReader, path: Path | str) -> None:
        self._path = path
        self._encoding = _encoding(_peek(binary, path))
        # Bytes that are no UTF-8 come as lone surrogates, so that only their line is broken.
        errors = "surrogateescape" if self._encoding.startswith("utf-8") else "strict"
        self._text = io.TextIOWrapper(
            binary,
            encoding=self._encoding,
            errors=errors,
            newline="\n",
        )
        self.number = 0
        self.problem: str | None = None

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._text.close()

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                line = self._text.readline(MAX_LINE)
            except OSError as error:
                raise DataError(f"Cannot read {self._path} ({error.strerror}).") from None
            except UnicodeDecodeError:
                raise _wrong_encoding(self._path, self.number + 1, self._encoding) from None
            if not line:
                return
            self.number += 1
            if len(line) >= MAX_LINE:
                raise DataError(
                    f"Line {self.number} of {self._path} has more than {MAX_LINE:,} characters, so "
                    "the file is no table of captions. Check the path."
                )
            line = line.removesuffix("\n").removesuffix("\r")
            self.problem = self.problem or self._check(line)
            yield line

    def _check(self, line: str) -> str | None:
        if "\0" in line:
            return "it holds a NUL"
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError:
                return "it is not UTF-8"
        return None


def _read(file: io.BufferedReader, path: Path | str) -> bytes:
    try:
        return bytes(file.read())
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error.strerror}). Check the disk.") from None


def _peek(binary: io.BufferedReader, path: Path | str) -> bytes:
    try:
        return bytes(binary.peek(4)[:4])
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error.strerror}). Check the disk.") from None


def _encoding(content: bytes) -> str:
    return next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")


def _wrong_encoding(path: object, line: int, encoding: str) -> DataError:
    name = encoding.removesuffix("-sig").upper()
    return DataError(
        f"Line {line} of {path} is not {name}. Save the file as UTF-8 (for a file in Latin-1: "
        "iconv -f LATIN1 -t UTF-8)."
    )
