"""docs/trust.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_named_test_exists() -> None:
    named = NAMED.findall((ROOT / "docs" / "trust.md").read_text(encoding="utf-8"))
    assert len(named) > 40
    for file, name in named:
        content = (ROOT / file).read_text(encoding="utf-8")
        assert f"def {name}(" in content, f"{file}::{name}"
