"""Validation and tests in bfloat16: `test_cfg = dict(type="BFloat16TestLoop")`.

mmengine's own `fp16=True` is float16 on a GPU; these run the same loop under bfloat16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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
