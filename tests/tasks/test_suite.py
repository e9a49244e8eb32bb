"""Suites by name."""

from __future__ import annotations

import pytest

from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.tasks.suite import SuiteDeclaration, load_suite, suite_names


def test_load_suite__every_shipped_one() -> None:
    assert {"all", "demo", "demo_dense"} <= set(suite_names())
    for name in suite_names():
        assert load_suite(name).description


def test_load_suite__unknown_name() -> None:
    with pytest.raises(UnknownNameError, match=r"No suite 'dem'.*Did you mean 'demo'"):
        load_suite("dem")


def test_suite__unknown_key(tmp_path: object) -> None:
    from maskclip_bench.config import validate

    with pytest.raises(ConfigError, match="Did you mean 'tables'"):
        validate({"description": "", "table": []}, SuiteDeclaration, where="s")
