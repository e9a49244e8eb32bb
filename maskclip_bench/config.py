"""Declarations: YAML in, frozen pydantic models out; unknown keys are refused with a suggestion.

A file may name others in `_base_` (one relative path or a list); they are loaded first and the
file is laid over them, mapping by mapping. Overrides `a.b=value` come last; values are YAML.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from maskclip_bench.errors import ConfigError, did_you_mean

BASE_KEY = "_base_"


class Declaration(BaseModel):
    """Base of everything that is read from YAML: frozen, and strict about its keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


T = TypeVar("T", bound=BaseModel)


def load_declaration(path: Path, model: type[T], *, overrides: Sequence[str] = ()) -> T:
    """Read `path`, lay `overrides` over it and validate it as `model`.

    Raises:
        ConfigError: The file is missing or no YAML mapping, a key is unknown, a value is wrong.
    """
    values = read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
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
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"`{BASE_KEY}` goes in circles: {chain}")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"No file {path}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{path} should hold a mapping (`key: value` lines), not {type(loaded).__name__}."
        )
    bases = loaded.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge(merged, _read_yaml(path.parent / base, seen=(*seen, path)))
    return merge(merged, loaded)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `above` over `below`; mappings merge key by key, anything else replaces."""
    result = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`["a.b=1"]` -> `{"a": {"b": 1}}`.

    Raises:
        ConfigError: One is not `key=value`, or its value is not YAML.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        _apply_override(values, override)
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override. Write key=value, e.g. seed=1.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of {override!r} is not valid YAML: {error}") from None
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
