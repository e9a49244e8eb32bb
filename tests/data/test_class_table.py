"""One class table: keys, names, and what two splits must agree in."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from maskclip_bench.data.class_table import (
    ClassTable,
    parse_index,
    read_class_table,
    same_classes,
    table_of_indices,
    table_of_labels,
)
from maskclip_bench.errors import DataError


@dataclass
class Split:
    name: str
    split: str
    classes: ClassTable | None
    labels: np.ndarray | None = None


def table(*keys: str) -> ClassTable:
    return ClassTable(keys, keys, source="list")


def test_table__a_class_twice_or_without_a_name() -> None:
    with pytest.raises(DataError, match=r"listed twice, e\.g\. 'b' as class 1 and as class 3"):
        table("a", "b", "c", "b")
    with pytest.raises(DataError, match="2 classes have 1 names"):
        ClassTable(("a", "b"), ("a",), source="list")


def test_labels_of__unknown_key() -> None:
    assert table("ant", "bee").labels_of(["bee", "ant", "bee"], what="X") == [1, 0, 1]
    with pytest.raises(DataError, match=r"X: 1 classes are no class of list, e.g. 'be'. Did you"):
        table("ant", "bee").labels_of(["be"], what="X")


def test_same_classes(caplog: pytest.LogCaptureFixture) -> None:
    train = Split("Birds", "train", table("a", "b", "c"), np.array([0, 2]))
    val = Split("Birds", "val", table("a", "b", "c"), np.array([0, 1]))
    with caplog.at_level(logging.WARNING):
        assert len(same_classes(train, val)) == 3
    assert "1 classes of val have no image in train (b)" in caplog.text
    other = Split("Birds", "val", table("a", "c"))
    with pytest.raises(DataError, match=r"train and val have other classes \(only in one: b\)"):
        same_classes(train, other)
    with pytest.raises(DataError, match="in another order or with other names"):
        same_classes(train, Split("Birds", "val", table("a", "c", "b")))
    with pytest.raises(DataError, match=r"Birds \(val\) has no classes"):
        same_classes(train, Split("Birds", "val", None))


def test_fingerprint__follows_order_and_names() -> None:
    prints = {
        table("a", "b").fingerprint,
        table("b", "a").fingerprint,
        ClassTable(("a", "b"), ("a", "c")).fingerprint,
        ClassTable(("a", "b"), ("a", "b"), kinds=("x", "y")).fingerprint,
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    "text", ["-1", "1e3", "1_0", "", "٣", "1" * 5000, "1000000000000", "0x1", "2.0"]
)
def test_index__that_is_none(text: str) -> None:
    with pytest.raises(DataError, match=r"a\.cls: .* is no class index"):
        parse_index(text, where="a.cls")


def test_indices() -> None:
    assert parse_index(" 7\n", where="a.cls") == 7
    assert table_of_indices([2, 0], source="x").names == ("0", "1", "2")
    with pytest.raises(DataError, match="-1 is no class index"):
        table_of_indices([-1], source="x")
    with pytest.raises(DataError, match="100000 is no class index"):
        table_of_indices([100_000], source="x")


def test_list__kinds(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(
        json.dumps([{"name": "sky", "kind": "stuff"}, {"name": "owl", "kind": "thing"}])
    )
    found = read_class_table(path)
    assert (found.keys, found.kinds) == (("sky", "owl"), ("stuff", "thing"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "is no class list"),
        ("a.json", b'[{"title": "owl"}]', "is no class list"),
        ("a.json", b"[1, 2]", "is no class list"),
        ("a.json", b'{"owl": 1}', "is no class list"),
        ("a.txt", b"# birds\nn01 owl\n", "a line begins with #"),
        ("a.json", b"[" * 100_000, "is no class list"),
        ("a.json", b"[]", "lists no class"),
        ("a.json", b'[{"name": null}]', "None names no class"),
        ("a.json", b'[{"name": ["owl", "bird"]}]', "is no text and no whole number"),
        ("a.json", b'[{"name": "owl", "name": "jay"}]', "the key 'name' is given twice"),
        ("a.json", b'["owl", "owl "]', "'owl' and 'owl ' look the same"),
        ("a.txt", b"owl\n\xfaw\n", "Line 2 of .*a.txt is not UTF-8"),
        ("a.json", b'["owl", "jay", "owl"]', "listed twice, e.g. 'owl' as class 0 and as class 2"),
        ("a.txt", b"n1 owl\nn2 jay\nn1 kite\n", "listed twice, e.g. 'n1'"),
    ],
)
def test_list__broken(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_class_table(tmp_path / name)
    with pytest.raises(DataError, match="No class list"):
        read_class_table(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"2", "0"}, ("0", "1", "2")),
        ({"owl", "10", "2"}, ("10", "2", "owl")),
        ({"100000000001", "7"}, ("100000000001", "7")),
    ],
)
def test_table_of_labels(labels: set[str], names: tuple[str, ...]) -> None:
    assert table_of_labels(labels, source="x").names == names


def test_table_of_labels__a_negative_one() -> None:
    with pytest.raises(DataError, match="x: -1 is no class index, and -1 often means"):
        table_of_labels({"-1", "0"}, source="x")
