"""Families of models: one file for each library that models come from.

A family is chosen by the key of a row's source: `source: {timm: ...}` is of the family `timm`. Its
file holds the keys that go with it, what is missing on this machine, loading, preprocessing and
identity; `Family` in `base` is the contract. Another package adds a family through an entry point
of the group `maskclip_bench.families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskclip_bench.backbones.families.base import FAMILIES, Family, Source
from maskclip_bench.config import validate
from maskclip_bench.errors import ConfigError, did_you_mean

__all__ = ["FAMILIES", "Family", "Source", "read_source"]


def read_source(values: Mapping[str, Any]) -> Source:
    """The `source` of a row, read by the family whose key it has.

    Raises:
        ConfigError: It has the key of no family or of several, or a key that does not go with it.
    """
    given = [name for name in FAMILIES.names() if values.get(name) is not None]
    if len(given) != 1:
        names = FAMILIES.names()
        unknown = [str(key) for key in values if key not in names]
        close = "" if given else did_you_mean(unknown[0], names) if unknown else ""
        raise ConfigError(
            f"needs exactly one of {', '.join(names)}; got {', '.join(given) or 'none'}.{close}"
        )
    family = FAMILIES[given[0]]
    for key in values:
        if key not in family.source_model.model_fields:
            raise _foreign_key(str(key), family)
    try:
        return validate(dict(values), family.source_model, where="source")
    except ConfigError as error:
        problems = [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]
        raise ConfigError("; ".join(problems)) from None


def _foreign_key(key: str, family: Family) -> ConfigError:
    """The error for a key that the family does not have, which another one may have."""
    owners = [name for name in FAMILIES.names() if key in FAMILIES[name].source_model.model_fields]
    known = sorted(family.source_model.model_fields)
    if owners:
        return ConfigError(f"{key} goes with {' or '.join(owners)}, not with {family.name}")
    return ConfigError(
        f"unknown key 'source.{key}' of {family.name}.{did_you_mean(key, known)} "
        f"Known keys: {', '.join(known)}"
    )
