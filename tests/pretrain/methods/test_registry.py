"""The list of methods."""

from __future__ import annotations

import subprocess
import sys

from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.methods.base import Method


def test_methods__listing_imports_none_of_them() -> None:
    code = (
        "import sys; from maskclip_bench.pretrain.methods import METHODS; "
        "assert 'maskclip' in METHODS and list(METHODS); "
        "print([m for m in ('torch', 'timm', 'open_clip') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_methods__each_says_what_a_step_needs() -> None:
    for name in METHODS:
        method = METHODS[name]
        assert issubclass(method, Method), name
        assert method.relative_cost > 0
        assert isinstance(method.uses_text, bool)
