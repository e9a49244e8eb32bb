from __future__ import annotations

import codecs
import csv
import errno
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskclip_bench.data import text_files
from maskclip_bench.data.text_files import BrokenRow, read_json, read_lines, read_table, read_text
from maskclip_bench.errors import ConfigError, DataError


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, columns: list[str], **options: Any) -> list[list[str]]:
    table = read_table(path, columns=columns, **options)
    return [list(row.values()) for row in table.to_pylist()]


# --- text and lines ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_read_text__encodings(tmp_path: Path, mark: bytes, encoding: str) -> None:
    text = "Café\r\n猫\n"
    assert read_text(write(tmp_path / "a.txt", mark + text.encode(encoding))) == "Café\n猫\n"
    table = write(tmp_path / "a.csv", mark + "image,caption\r\na.jpg,Café 猫\r\n".encode(encoding))
    assert rows(table, ["image", "caption"]) == [["a.jpg", "Café 猫"]]


def test_read_text__other_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"cat\ndog\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"Line 3 of .*a\.txt is not UTF-8.*iconv"):
        read_text(path)
    with pytest.raises(DataError, match="is not UTF-16"):
        read_text(write(path, codecs.BOM_UTF16_LE + b"\x00\xd8\x00"))


@pytest.mark.parametrize("content", [b"a\nb\0c\n", "a\nb".encode("utf-16-le")])
def test_read_text__nul_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"Line \d of .* holds a NUL"):
        read_text(write(tmp_path / "a.txt", content))


def test_read_text__disk_error_is_one_sentence(tmp_path: Path) -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    for call in (text_files._read, text_files._peek):
        with pytest.raises(DataError, match=r"Cannot read x \(Input/output error\)"):
            call(io.BufferedReader(Broken()), "x")


def test_read_lines__only_line_feeds_end_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\x0bstill\x0cone\x85\u2028\r\ntwo\x1c\n\nfour")
    assert read_lines(path) == ["one\x0bstill\x0cone\x85\u2028", "two\x1c", "", "four"]
    assert read_lines(write(path, "a\n")) == ["a"]
    assert read_lines(write(path, "")) == []


def test_read_json__value_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_json(write(path, codecs.BOM_UTF8 + b'{"a": [1]}')) == {"a": [1]}
    with pytest.raises(DataError, match=r"is no JSON: line 2, column 1"):
        read_json(write(path, '{"a": [1,\n'))
    with pytest.raises(DataError, match="the key 'a' is given twice; remove one"):
        read_json(write(path, '[{"b": 1, "a": 1, "a": 1}]'))
    for content in ("[" * 100_000, "9" * 5_000 + "0"):
        with pytest.raises(DataError, match="is no JSON that can be read here"):
            read_json(write(path, content))


@pytest.mark.parametrize("reader", [read_text, read_lines, read_json])
def test_missing_and_pipes_are_refused(tmp_path: Path, reader: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="named pipe"):
        reader(tmp_path / "pipe")
    with pytest.raises(DataError, match="There is no file"):
        reader(tmp_path / "nothing")
    with pytest.raises(DataError, match="named pipe"):
        read_table(tmp_path / "pipe", columns=["a"])


# --- tables --------------------------------------------------------------------------------------


def test_tsv__a_quote_is_a_character(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'image\tcaption\na\t"open\nb\t12" disk\nc\t""\nd\t"x"\n')
    expected = [["a", '"open'], ["b", '12" disk'], ["c", '""'], ["d", '"x"']]
    assert rows(path, ["image", "caption"]) == expected
    same = write(tmp_path / "a.txt", path.read_bytes())
    assert rows(same, ["image", "caption"], delimiter="\t") == expected


def test_tsv__quoting_can_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'image\tcaption\na\t"one ""two"""\n')
    assert rows(path, ["caption"], quoting=True) == [['one "two"']]


def test_csv__quotes_as_in_rfc_4180(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'image,caption\r\na,"one, ""two"""\r\nb,12" disk\r\n')
    assert rows(path, ["image", "caption"]) == [["a", 'one, "two"'], ["b", '12" disk']]
    assert rows(path, ["image"], quoting=False, on_broken=lambda row: None) == [["b"]]


def test_csv__line_break_in_a_field_is_kept_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.csv", 'image,caption\na,"one\r\ntwo"\nb,three\n')
    with caplog.at_level(logging.WARNING):
        assert rows(path, ["image", "caption"]) == [["a", "one\ntwo"], ["b", "three"]]
    assert "fields of 1 rows hold line breaks (the first in line 2)" in caplog.text


@pytest.mark.parametrize(
    ("content", "expected", "kept"),
    [
        ('a,"open\nb,"two\nc,3\n', (2, 2, "text follows a closing quote"), ["c"]),
        ('a,1\nb,"open\nc,3\n', (3, 2, "a quote is opened and never closed"), ["a"]),
        ("a,1,2\nb,3\n", (2, 1, "3 fields, and the header has 2"), ["b"]),
        ("a\nb,3\n", (2, 1, "1 fields, and the header has 2"), ["b"]),
        ("a,1\0\nb,3\n", (2, 1, "NUL"), ["b"]),
        (b"a,caf\xe9\nb,3\n", (2, 1, "it is not UTF-8"), ["b"]),
        (b'a,"caf\xe9\nx"\nb,3\n', (2, 2, "it is not UTF-8"), ["b"]),
        ("a,one\rtwo\nb,3\n", (2, 1, "new-line character"), ["b"]),
        (f"a,{'x' * 200_000}\nb,3\n", (2, 1, "field larger than field limit"), ["b"]),
    ],
)
def test_csv__broken_rows_are_reported_or_refused(
    tmp_path: Path, content: str | bytes, expected: tuple[int, int, str], kept: list[str]
) -> None:
    encoded = content.encode() if isinstance(content, str) else content
    path = write(tmp_path / "a.csv", b"image,caption\n" + encoded)
    reported: list[BrokenRow] = []
    assert [row[0] for row in rows(path, ["image"], on_broken=reported.append)] == kept
    assert [(row.line, row.num_lines) for row in reported] == [expected[:2]]
    assert expected[2] in reported[0].reason
    with pytest.raises(DataError, match=r"Line \d of .* is broken: .*quoting \(on\)"):
        rows(path, ["image"])


def test_tsv__broken_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"i\tc\na\t1\t2\nb\tcaf\xe9\nc\t\0\nd\tx\ry\n")
    reported: list[BrokenRow] = []
    assert rows(path, ["i", "c"], on_broken=reported.append) == [["d", "x\ry"]]
    assert [row.line for row in reported] == [2, 3, 4]
    with pytest.raises(DataError, match=r"Line 2 of .* quoting \(off\)"):
        rows(path, ["i"])


def test_empty_lines_are_skipped_and_empty_fields_are_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "\n\ni,c\n\na,1\n  \n,\n\n")
    assert rows(path, ["i", "c"]) == [["a", "1"], ["", ""]]
    path = write(tmp_path / "a.tsv", "\ni\tc\n\na\t1\n  \n\t\n\n")
    assert rows(path, ["i", "c"]) == [["a", "1"], ["", ""]]


def test_columns__order_missing_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "caption,image,x,x\n1,a,2,3\n")
    assert rows(path, ["image", "caption"]) == [["a", "1"]]
    with pytest.raises(DataError, match=r"no column 'captions'\. Did you mean 'caption'\?"):
        rows(path, ["captions"])
    with pytest.raises(DataError, match="has 2 columns named 'x'"):
        rows(path, ["x"])


@pytest.mark.parametrize("content", ["", "\n\n", '"open\n', "image\0\n"])
def test_header__needed(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="has no header line"):
        rows(write(tmp_path / "a.csv", content), ["image"])


def test_header_alone__is_a_table_without_rows(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", "image,caption"), columns=["image"])
    assert (table.num_rows, table.column_names) == (0, ["image"])


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n", "\0"])
def test_delimiter__one_usable_character(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        read_table(write(tmp_path / "a.csv", "a\n"), columns=["a"], delimiter=delimiter)


def test_line_without_end__is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE", 100)
    with pytest.raises(DataError, match=r"Line 2 of .* has more than 100 characters"):
        rows(write(tmp_path / "a.csv", f"a,b\n{'x' * 200}"), ["a"])


def test_utf16_table__cut_in_a_character(tmp_path: Path) -> None:
    content = codecs.BOM_UTF16_LE + "a,b\n1,2\n".encode("utf-16-le") + b"\x00\xd8"
    with pytest.raises(DataError, match="is not UTF-16"):
        rows(write(tmp_path / "a.csv", content), ["a"])


def test_many_rows__in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "ROWS_TOGETHER", 3)
    content = "".join(f"{i},{i * i}\n" for i in range(10))
    path = write(tmp_path / "a.csv", "a,b\n" + content)
    assert rows(path, ["b"]) == [[str(i * i)] for i in range(10)]


fields = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)


@settings(max_examples=100, deadline=None)
@given(
    table=st.lists(st.tuples(fields, fields), max_size=8),
    delimiter=st.sampled_from([",", ";", "|", "\t"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_quoted_tables__equal_csv_module(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[tuple[str, str]],
    delimiter: str,
    end: str,
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *table])
    path = tmp_path_factory.getbasetemp() / "oracle.csv"
    write(path, text.getvalue())
    with path.open(encoding="utf-8", newline="") as file:
        expected = list(csv.reader(file, delimiter=delimiter))[1:]
    assert rows(path, ["a", "b"], delimiter=delimiter, quoting=True) == expected


plain = st.text(st.characters(codec="utf-8", exclude_characters="\r\0\n\t"), max_size=8)


@settings(max_examples=100, deadline=None)
@given(table=st.lists(st.tuples(plain, plain), max_size=8))
def test_plain_tables__equal_split(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str]]
) -> None:
    lines = ["a\tb", *(f"{a}\t{b}" for a, b in table)]
    path = write(tmp_path_factory.getbasetemp() / "oracle.tsv", "\n".join(lines))
    assert rows(path, ["a", "b"]) == [list(row) for row in table]


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60), suffix=st.sampled_from(["csv", "tsv", "json", "txt"]))
def test_any_bytes__give_a_value_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = write(tmp_path_factory.getbasetemp() / f"any.{suffix}", content)
    readers: dict[str, Any] = {"json": read_json, "txt": read_lines}
    reader = readers.get(suffix, lambda p: rows(p, ["a"]))
    try:
        json.dumps(reader(path))
    except DataError as error:
        assert str(path) in str(error)
