from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from maskclip_bench.config import (
    Declaration,
    load_declaration,
    merge,
    parse_overrides,
    read_yaml,
    validate,
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


def test_parse_overrides__values_are_yaml() -> None:
    assert parse_overrides(["a.b=[1, 2]", "c=null", "d=x=y", "a.e=true"]) == {
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
def test_parse_overrides__refuses(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_overrides([override])


def test_parse_overrides__through_a_value() -> None:
    with pytest.raises(ConfigError, match=r"'a.b=1': 'a' is a value, not a group of keys"):
        parse_overrides(["a=2", "a.b=1"])
