"""Names without imports, entry points of other packages, and clear errors."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest

from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.registry import Registry

BUILTIN = {"path": "pathlib:Path", "nested": "collections:OrderedDict.fromkeys"}


def make(monkeypatch: pytest.MonkeyPatch, *others: tuple[str, str]) -> Registry[Any]:
    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        assert group == "maskclip_bench.things"
        return [importlib.metadata.EntryPoint(name, value, group) for name, value in others]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return Registry("thing", "maskclip_bench.things", BUILTIN, remedy="See the list.")


def test_built_in_things_come_first_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make(monkeypatch, ("zeta", "json:dumps"), ("alpha", "json:loads"))
    assert registry.names() == list(registry) == ["path", "nested", "alpha", "zeta"]
    assert len(registry) == 4


def test_things_are_imported_by_their_path(monkeypatch: pytest.MonkeyPatch) -> None:
    import json
    from collections import OrderedDict
    from pathlib import Path

    registry = make(monkeypatch, ("alpha", "json:loads"))
    assert registry["path"] is Path
    assert registry.get_known("alpha") is json.loads
    assert registry["nested"] == OrderedDict.fromkeys


def test_unknown_name__suggests_and_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make(monkeypatch)
    assert "paht" not in registry
    with pytest.raises(UnknownNameError, match=r"No thing 'paht'. Did you mean 'path'.*See the"):
        registry.get_known("paht")
    with pytest.raises(KeyError):
        registry["paht"]


def test_one_name_of_two_packages__is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make(monkeypatch, ("path", "mine:Path"))
    with pytest.raises(ConfigError, match="Two packages register the thing 'path'"):
        registry.names()


def test_broken_package__is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make(monkeypatch, ("mine", "no_such_module_here:Thing"), ("gone", "json:nothing"))
    with pytest.raises(ConfigError, match=r"'mine' of another package .* Repair or uninstall"):
        registry["mine"]
    with pytest.raises(ConfigError, match="AttributeError"):
        registry["gone"]


def test_register__for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make(monkeypatch)
    thing = object()
    registry.register("mine", thing)
    assert registry["mine"] is thing
    with pytest.raises(ConfigError, match="There is a thing 'mine' already"):
        registry.register("mine", thing)
    registry.unregister("mine")
    registry.unregister("mine")
    registry.unregister("path")
    assert registry.names() == ["path", "nested"]


def test_make__turns_a_class_into_its_instance() -> None:
    registry: Registry[Any] = Registry(
        "thing",
        "maskclip_bench.no_such_group",
        {"a": "fractions:Fraction"},
        remedy="",
        make=lambda c: c(3),
    )
    assert registry["a"] == 3
    assert registry["a"] is registry["a"]


def test_listing_names__imports_nothing() -> None:
    code = (
        "import sys; from maskclip_bench.registry import Registry; "
        "r = Registry('thing', 'g', {'a': 'sqlite3:connect'}, remedy=''); "
        "r.names(); 'a' in r; print('sqlite3' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
