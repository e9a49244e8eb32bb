from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from maskclip_bench.config import (
    Declaration,
    World,
    decisive,
    load_declaration,
    merge,
    read_yaml,
    validate,
    with_overrides,
)
from maskclip_bench.errors import ConfigError


class Inner(Declaration):
    learning_rate: float = 0.1
    kind: Literal["a", "b"] = "a"


class Outer(Declaration):
    name: str
    inner: Inner = Inner()
    parts: list[Inner] = Field(default_factory=list)
    choice: Inner | None = None


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_load__values_and_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "name: x\ninner: {learning_rate: 0.5}\n")
    assert load_declaration(path, Outer) == Outer(name="x", inner=Inner(learning_rate=0.5))


def test_load__base_files_merge_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, "one.yaml", "name: one\ninner: {learning_rate: 1, kind: b}\n")
    write(tmp_path, "two.yaml", "_base_: one.yaml\ninner: {learning_rate: 2}\n")
    path = write(tmp_path, "three.yaml", "_base_: [two.yaml]\nname: three\n")
    assert load_declaration(path, Outer) == Outer(
        name="three", inner=Inner(learning_rate=2, kind="b")
    )


def test_load__bases_in_circles(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "_base_: b.yaml\n")
    path = write(tmp_path, "b.yaml", "_base_: a.yaml\n")
    with pytest.raises(ConfigError, match=r"circles: b\.yaml -> a\.yaml -> b\.yaml"):
        read_yaml(path)


def test_load__overrides_win(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "name: x\n")
    loaded = load_declaration(path, Outer, overrides=["name=y", "inner.learning_rate=1e-3"])
    assert loaded.name == "y"
    assert loaded.inner.learning_rate == 0.001


def test_load__missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No file .*nothing\.yaml"):
        read_yaml(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("- 1\n", r"should hold a mapping .* not list"),
        ("", "should hold a mapping .* not NoneType"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_load__no_mapping(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(tmp_path, "a.yaml", text))


def test_load__not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "x"}, r"unknown key 'nam'. Did you mean 'name'\? Known keys: choice, inner, name"),
        ({"name": "x", "inner": {"learning_rat": 1}}, "'inner.learning_rat'. Did you mean 'learn"),
        ({"name": "x", "parts": [{"kin": "a"}]}, r"'parts.0.kin'. Did you mean 'kind'"),
        ({"name": "x", "choice": {"kin": "a"}}, r"'choice.kin'. Did you mean 'kind'"),
        ({}, "'name' is missing"),
        ({"name": "x", "inner": {"kind": "c"}}, r"'inner.kind': .*'a' or 'b' \(got 'c'\)"),
    ],
)
def test_validate__says_where_and_what_was_meant(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate(values, Outer, where="file.yaml")
    assert str(caught.value).startswith("file.yaml is not a valid Outer:")


def test_validate__long_input_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"name": ["x" * 500] * 100}, Outer, where="here")
    assert len(str(caught.value)) < 300


def test_declaration__is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inner().kind = "b"  # type: ignore[misc]


def test_merge__lists_replace() -> None:
    assert merge({"a": [1, 2], "b": {"c": 1}}, {"a": [3], "b": {"d": 2}}) == {
        "a": [3],
        "b": {"c": 1, "d": 2},
    }


def test_with_overrides__values_are_yaml() -> None:
    assert with_overrides({}, ["a.b=[1, 2]", "c=null", "d=x=y", "a.e=true"]) == {
        "a": {"b": [1, 2], "e": True},
        "c": None,
        "d": "x=y",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", r"'seed' is not an override. Write key=value, e.g. seed=1"),
        ("=1", "is not an override"),
        ("a=[1", "The value of 'a=.1' is not valid YAML"),
    ],
)
def test_with_overrides__refuses(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_overrides({}, [override])


def test_with_overrides__the_values_stay() -> None:
    values = {"a": {"b": 1}, "c": [1]}
    assert with_overrides(values, ["a.b=2", "a.d.e=3"]) == {"a": {"b": 2, "d": {"e": 3}}, "c": [1]}
    assert values == {"a": {"b": 1}, "c": [1]}


def test_with_overrides__through_a_value() -> None:
    with pytest.raises(ConfigError, match=r"'a.b=1': 'a' is a value, not a group of keys"):
        with_overrides({}, ["a=2", "a.b=1"])


BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ninner: {kind: a}\nname: y\n", "'name' is given twice, in lines 1 and 3"),
        ("{a: 1, a: 2}", "'a' is given twice, in lines 1 and 1"),
        ("a: {b: {1: x, 1: y}}", "the key 1 is given twice"),
        ("a: .inf", r"\.inf in line 1 is not finite"),
        ("a: 1\nb: .NaN", r"\.NaN in line 2 is not finite"),
        ("a: " + "[" * 100 + "]" * 100, "nests deeper than 64 levels"),
        ("a: " + "[" * 100_000, "nests deeper than 64 levels"),
        (BOMB, "aliases repeat more than 200,000 values"),
        ("a: &x [*x]", "aliases repeat more than 200,000 values"),
        ("a: " + "9" * 6000, "is not valid YAML"),
        ("a: !!binary aGk=", "holds a bytes; only plain values"),
        ("a: !!timestamp 2001-99-99", "is not valid YAML"),
        ("? [a]\n: 1", "is not valid YAML"),
        ("a: \x00", "is not valid YAML"),
    ],
)
def test_read__what_yaml_allows_and_a_declaration_does_not(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(tmp_path, "a.yaml", text))


def test_read__dates_stay_text_and_merge_keys_work(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.yaml", "day: 2020-13-01\nbase: &b {q: 1, r: 2}\nover: {<<: *b, q: 3}\n"
    )
    values = read_yaml(path)
    assert values["day"] == "2020-13-01"
    assert values["over"] == {"q": 3, "r": 2}


def test_read__byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(path) == {"name": "x"}


@pytest.mark.parametrize("bases", ["5", "[1]", "{a: b}", "['']"])
def test_read__bases_are_paths(tmp_path: Path, bases: str) -> None:
    with pytest.raises(ConfigError, match="should be a relative path or a list of them"):
        read_yaml(write(tmp_path, "a.yaml", f"_base_: {bases}\n"))


def test_read__what_is_no_regular_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo.yaml")
    for path in (tmp_path, tmp_path / "fifo.yaml"):
        with pytest.raises(ConfigError, match="is not a file"):
            read_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(Path("a\0b.yaml"))


def test_read__file_of_another_size(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "#" * ((4 << 20) + 1))
    with pytest.raises(ConfigError, match="has at most 4,194,304"):
        read_yaml(path)


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", ".inf"])
def test_numbers_are_finite(value: str) -> None:
    with pytest.raises(ConfigError, match="finite"):
        values = {"name": "x", **with_overrides({}, [f"inner.learning_rate={value}"])}
        validate(values, Outer, where="here")


def test_world__older_files_say_paper_for_real() -> None:
    class Row(Declaration):
        world: World

    assert validate({"world": "paper"}, Row, where="row").world == "real"
    assert validate({"world": "demo"}, Row, where="row").world == "demo"
    with pytest.raises(ConfigError, match="'demo' or 'real'"):
        validate({"world": "mars"}, Row, where="row")


class _Inner(Declaration):
    depth: int = 1
    later: int = Field(default=0, json_schema_extra={"neutral": 0})


class _Outer(Declaration):
    inner: _Inner = _Inner()
    choice: str | None = Field(default=None, json_schema_extra={"neutral": None})


def test_decisive__leaves_out_fields_that_do_nothing() -> None:
    assert decisive(_Outer()) == {"inner": {"depth": 1}}
    changed = _Outer(inner=_Inner(later=2), choice="a")
    assert decisive(changed) == {"inner": {"depth": 1, "later": 2}, "choice": "a"}
