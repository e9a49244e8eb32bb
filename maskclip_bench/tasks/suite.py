"""A suite: named rows x columns (`configs/suites/*.yaml`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from maskclip_bench.config import Declaration, load_declaration
from maskclip_bench.data_files import declarations, find_declaration


class SuiteDeclaration(Declaration):
    """Named rows x columns (`configs/suites/*.yaml`)."""

    description: str
    """One line for `maskclip-bench list suites`."""
    backbones: Literal["*"] | list[str] = "*"
    """Rows, by name; "*" is every declared backbone."""
    tasks: Literal["*"] | list[str] = "*"
    """Columns, "protocol/dataset"; either part may be "*"."""
    without_tasks: list[str] = Field(default_factory=list)
    """Columns of `tasks` that the suite does not have, as shell patterns ("detection/demo_*")."""
    without_cells: list[str] = Field(default_factory=list)
    """Cells that the suite does not have, as shell patterns of "row/protocol/data set"."""
    tables: list[str] = Field(default_factory=list)
    """Tables shown at the end, those that have at least one measured cell."""


def load_suite(name: str) -> SuiteDeclaration:
    """Read a suite by name or path.

    Raises:
        UnknownNameError: There is none of that name.
        ConfigError: Its file is wrong.
    """
    path = find_declaration(
        "configs/suites", name, singular="suite", listing="maskclip-bench list suites"
    )
    return load_declaration(path, SuiteDeclaration)


def suite_names() -> list[str]:
    """All suites."""
    return list(declarations("configs/suites"))
