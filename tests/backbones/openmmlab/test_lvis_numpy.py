"""The evaluation of LVIS finds the name it needs, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from maskclip_bench.backbones.openmmlab import lvis_numpy


def test_install__for_its_evaluation_alone() -> None:
    evaluation = pytest.importorskip("lvis.eval")
    before = hasattr(np, "float")
    lvis_numpy.install()
    assert evaluation.np.cumsum([1, 2]).astype(dtype=evaluation.np.float).tolist() == [1.0, 3.0]
    assert hasattr(np, "float") == before


def test_install__without_lvis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lvis_numpy.install()
