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
from mmengine.structures import BaseDataElement


@contextlib.contextmanager
def _in_bfloat16(model: Any, step: str) -> Iterator[None]:
    """Steps of a model in bfloat16, with outputs in float32, for metrics that go through NumPy.

    mmengine's autocast asks torch for its type, which is bfloat16 on a CPU and set here on a GPU.
    """
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    original = getattr(model, step)

    def in_float32(batch: Any) -> Any:
        outputs = original(batch)
        for sample in outputs:
            _to_float32(sample)
        return outputs

    setattr(model, step, in_float32)
    try:
        yield
    finally:
        delattr(model, step)
        torch.set_autocast_dtype("cuda", before)


def _to_float32(sample: Any) -> None:
    """Tensors of bfloat16 in a data sample, changed in place."""
    if not isinstance(sample, BaseDataElement):
        return
    for name in sample.keys():  # noqa: SIM118  (it has no __iter__)
        value = getattr(sample, name)
        if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:
            setattr(sample, name, value.float())
        else:
            _to_float32(value)


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
        with _in_bfloat16(self.runner.model, "test_step"):
            return super().run()


@LOOPS.register_module()
class BFloat16ValLoop(ValLoop):
    """The same while training."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "fp16": True})

    def run(self) -> dict:
        """Validate -> metrics."""
        with _in_bfloat16(self.runner.model, "val_step"):
            return super().run()
