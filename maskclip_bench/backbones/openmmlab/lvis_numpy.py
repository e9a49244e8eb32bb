"""LVIS's own evaluation on today's NumPy: lvis 0.5.3 asks for `np.float`, gone since NumPy 1.24."""

from __future__ import annotations

import importlib.util
import types
from typing import Any

import numpy as np


class _WithFloat(types.ModuleType):
    """NumPy, with the old name of Python's float."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def install() -> None:
    """Let the module `lvis.eval` find `np.float`, if lvis is installed and NumPy has it no more."""
    if importlib.util.find_spec("lvis") is None or hasattr(np, "float"):
        return
    import lvis.eval

    lvis.eval.np = _WithFloat("numpy")
