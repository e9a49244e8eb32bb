"""The lowest versions that pyproject.toml allows, as constraints."""

from __future__ import annotations

import importlib.util
from importlib.metadata import requires, version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/lowest_versions.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lowest_versions", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lowest__bounds_of_what_is_asked_for(script: ModuleType) -> None:
    lines = [
        "torch>=2.8",
        "open_clip_torch<4,>=3.2",
        "matplotlib>=3.8; extra == 'pictures'",
        "h5py>=3.10; extra == 'dev'",
        "setuptools; python_version >= '3.10'",
        "tomli>=2; python_version < '3.0'",
    ]
    assert script.lowest(lines) == ["torch==2.8", "open_clip_torch==3.2"]
    assert script.lowest(lines, ["pictures"])[2:] == ["matplotlib==3.8"]
    assert script.lowest([]) == []


def test_every_dependency_has_a_lower_bound_that_is_met_here(script: ModuleType) -> None:
    needed = [Requirement(line) for line in requires(script.PACKAGE) or []]
    own = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    found = dict(line.split("==") for line in script.lowest(map(str, own)))
    assert set(found) == {requirement.name for requirement in own}
    for name, bound in found.items():
        assert Version(version(name)) >= Version(bound)
