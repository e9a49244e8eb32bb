"""Validation and tests in bfloat16 (`test_cfg = dict(type="BFloat16TestLoop")`), or aside.

mmengine's own `fp16=True` is float16 on a GPU; these run the same loop under bfloat16.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.registry import LOOPS
from mmengine.runner import TestLoop, ValLoop


@contextlib.contextmanager
def _bfloat16_on_gpu() -> Iterator[None]:
    """Let mmengine's autocast, which asks torch for its type, take bfloat16 (on a CPU it does)."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_dtype("cuda", before)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Let what follows be as if nothing had been drawn in between."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


@LOOPS.register_module()
class AsideValLoop(ValLoop):
    """A validation after which training goes on as if there had been none."""

    def run(self) -> dict:
        """Validate -> metrics."""
        with _random_state_kept():
            return super().run()


@LOOPS.register_module()
class BFloat16TestLoop(TestLoop):
    """A test whose forward passes are in bfloat16."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "fp16": True})

    def run(self) -> dict:
        """Test -> metrics."""
        with _bfloat16_on_gpu():
            return super().run()


@LOOPS.register_module()
class BFloat16ValLoop(ValLoop):
    """The same while training."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "fp16": True})

    def run(self) -> dict:
        """Validate -> metrics."""
        with _bfloat16_on_gpu():
            return super().run()
