"""Declarations: YAML in, frozen pydantic models out; unknown keys are refused with a suggestion.

A file may name others in `_base_` (one relative path or a list); they are loaded first and the
file is merged over them, mapping by mapping. Overrides `a.b=value` come last; values are YAML.

The YAML is read strictly: a key given twice, a number that is not finite, a date, a file that
nests or repeats itself without end are refused or kept as text, each with the line where possible.
"""

from __future__ import annotations

import math
import reprlib
import stat
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from maskclip_bench.errors import ConfigError, did_you_mean

BASE_KEY = "_base_"

MAX_BYTES = 4 << 20
"""Of one YAML file; the largest shipped one has 10 kB."""
MAX_DEPTH = 64
"""Nesting of one YAML file."""
MAX_NODES = 200_000
"""Values in one YAML file, each counted as often as an alias repeats it."""


class Declaration(BaseModel):
    """Base of everything that is read from YAML: frozen, strict about its keys, finite numbers."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


def decisive(declaration: BaseModel) -> dict[str, Any]:
    """The JSON values of a declaration that its hash is made of: without fields that do nothing.

    A field that is added later, and whose default leaves everything as it was, is declared as
    `Field(default, json_schema_extra={"neutral": default})`. While it has that value it is left
    out, so that what was computed before the field existed is still known as the same.
    """
    values = declaration.model_dump(mode="json")
    for name, field in type(declaration).model_fields.items():
        told = field.json_schema_extra
        if isinstance(told, dict) and "neutral" in told and values[name] == told["neutral"]:
            del values[name]
        elif isinstance(inner := getattr(declaration, name), BaseModel):
            values[name] = decisive(inner)
    return values


World = Annotated[
    Literal["demo", "real"], BeforeValidator(lambda value: "real" if value == "paper" else value)
]
"""`demo` for the embedded data, `real` for everything else. Older files say `paper` for `real`."""

T = TypeVar("T", bound=BaseModel)


def load_declaration(path: Path, model: type[T], *, overrides: Sequence[str] = ()) -> T:
    """Read `path`, apply `overrides` and validate it as `model`.

    Raises:
        ConfigError: The file is missing or no YAML mapping, a key is unknown, a value is wrong.
    """
    values = with_overrides(read_yaml(path), overrides)
    return validate(values, model, where=str(path))


def validate(values: Mapping[str, Any], model: type[T], *, where: str) -> T:
    """Validate plain data as `model`; errors name `where`, the key and what was probably meant.

    Raises:
        ConfigError: Something does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  - {_explain(detail, model)}" for detail in error.errors())
        raise ConfigError(f"{where} is not a valid {model.__name__}:\n{problems}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Safe-load a YAML mapping with its `_base_` files merged in.

    Raises:
        ConfigError: Missing file, broken YAML, not a mapping, or bases that go in circles.
    """
    return _read_yaml(path, seen=())


def _read_yaml(path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        path = path.resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a zero byte; links in a circle
        raise ConfigError(f"{str(path)!r} cannot be read: {error}.") from None
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"`{BASE_KEY}` goes in circles: {chain}")
    loaded = _parse(_read_file(path), where=str(path))
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{path} should hold a mapping (`key: value` lines), not {type(loaded).__name__}."
        )
    merged: dict[str, Any] = {}
    for base in _base_names(loaded.pop(BASE_KEY, []), path):
        merged = merge(merged, _read_yaml(path.parent / base, seen=(*seen, path)))
    return merge(merged, loaded)


def _read_file(path: Path) -> str:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is not a file.")
        if found.st_size > MAX_BYTES:
            raise ConfigError(
                f"{path} has {found.st_size:,} bytes; a YAML file here has at most {MAX_BYTES:,}."
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"No file {path}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: it is not UTF-8 ({error}).") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None


def _base_names(bases: Any, path: Path) -> list[str]:
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"{path}: `{BASE_KEY}` should be a relative path or a list of them, got {bases!r}."
        )
    return names


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses keys given twice and numbers that are not finite."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        try:
            if self.depth > MAX_DEPTH:
                raise yaml.YAMLError(f"it nests deeper than {MAX_DEPTH} levels")
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, (str, int, float, bool, type(None))):
                continue  # a list or mapping as a key: SafeLoader's own error says so
            if key in lines:
                raise yaml.YAMLError(
                    f"the key {key!r} is given twice, in lines {lines[key]} and {line}"
                )
            lines[key] = line
        return super().construct_mapping(node, deep=deep)


def _finite_float(loader: _StrictLoader, node: Any) -> float:
    value = loader.construct_yaml_float(node)
    if not math.isfinite(value):
        line = node.start_mark.line + 1
        raise yaml.YAMLError(f"{node.value} in line {line} is not finite; give a finite number")
    return float(value)


_StrictLoader.add_constructor("tag:yaml.org,2002:float", _finite_float)
# A date is text here; SafeLoader's own rule raises ValueError for 2020-13-01.
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parse(text: str, *, where: str) -> Any:
    """YAML text -> plain values.

    Raises:
        ConfigError: It is not valid, or not within the bounds above.
    """
    loader = None
    try:
        loader = _StrictLoader(text)
        loaded = loader.get_single_data()
        if _num_nodes(loaded) > MAX_NODES:
            raise yaml.YAMLError(f"its aliases repeat more than {MAX_NODES:,} values")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()
    return loaded


def _num_nodes(value: Any) -> int:
    """Values in `value`, counted up to a little over `MAX_NODES`; a circle counts as endless."""
    count, waiting = 0, [value]
    while waiting and count <= MAX_NODES:
        item = waiting.pop()
        count += 1
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif not isinstance(item, (str, int, float, type(None))):
            raise yaml.YAMLError(f"it holds a {type(item).__name__}; only plain values are allowed")
    return count


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `above` over `below`; mappings merge key by key, anything else replaces."""
    result = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def with_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Values with `["a.b=1"]` laid over them, one after the other; the values stay as they are.

    Raises:
        ConfigError: One is not `key=value`, or its value is not YAML.
    """
    changed = deepcopy(dict(values))
    for override in overrides:
        _apply_override(changed, override)
    return changed


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override. Write key=value, e.g. seed=1.")
    value = _parse(text, where=f"The value of {override!r}")
    *parents, last = key.split(".")
    target = values
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{override!r}: {parent!r} is a value, not a group of keys.")
        target = child
    target[last] = value


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(model, detail["loc"][:-1]))
        name = str(detail["loc"][-1])
        known = f" Known keys: {', '.join(allowed)}." if allowed else ""
        return f"unknown key {location!r}.{did_you_mean(name, allowed)}{known}"
    if detail["type"] == "missing":
        return f"{location!r} is missing."
    message = detail["msg"].removeprefix("Value error, ")
    if not location:  # a rule of the whole declaration; its input is everything
        return message
    return f"{location!r}: {message} (got {reprlib.repr(detail['input'])})"


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> set[str]:
    """Names of the fields of the model found by walking `location` from `model`."""
    candidates: list[type[BaseModel]] = [model]
    for part in location:
        following: list[type[BaseModel]] = []
        for candidate in candidates:
            field = candidate.model_fields.get(str(part))
            if field is not None:
                following += _models_in(field.annotation)
        candidates = following or candidates
    return {name for candidate in candidates for name in candidate.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """All pydantic models inside a type annotation (unions, lists, dicts, Annotated)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
