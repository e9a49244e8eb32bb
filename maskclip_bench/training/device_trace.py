"""Where a step would wait for a device, counted on a machine that has none.

A CPU never waits, so what would wait is told by where values come from. Weights and what is copied
to the device are of the device; a batch as the loader made it, and what is made without naming a
device, are of the host; what is computed from a tensor of the device is of the device. Counted are

* reads: the host looks at a value of the device (`item`, `float`, `bool`, `tolist`, `cpu`,
  `numpy`), or an operation needs such values to know the shape of its result (`nonzero`,
  `bincount`, a bool index): on a GPU the host waits until all work before is done;
* copies: a tensor of the host is brought to the device (`to`, `new_tensor`), or used there without.

On a GPU `torch.cuda.set_sync_debug_mode` shows the same; `scripts/gpu_check.py` uses it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten: Any = torch.ops.aten
SHAPES_FROM_VALUES = frozenset(
    {
        "_local_scalar_dense",
        "nonzero",
        "nonzero_numpy",
        "masked_select",
        "bincount",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "is_nonzero",
        "equal",
    }
)
"""Operations that read the values of their tensors on the host."""

INDEXED = frozenset({"index", "index_put", "index_put_", "_unsafe_index"})
"""Those that do if an index is a mask."""

READERS = ("tolist", "cpu", "numpy")
"""Methods of a tensor that read without an operation on a CPU."""

COPIES = ("to", "cuda", "new_tensor")
"""Methods that bring values to the device."""

FACTORIES = ("arange", "empty", "full", "ones", "rand", "randint", "randperm", "tensor", "zeros")
"""Functions whose result is of the host if they name no device."""


class DeviceTrace(TorchDispatchMode):
    """Counts reads and copies while it is active, by the line of this package that makes them.

    Attributes:
        reads: `file:line operation` -> how often.
        copies: Likewise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self._device: dict[int, StorageWeakRef] = {}
        self._host: dict[int, StorageWeakRef] = {}
        self._patches = ExitStack()

    def on_device(self, tensors: Iterable[Tensor]) -> None:
        """These are of the device."""
        _remember(self._device, tensors)

    def on_host(self, tensors: Iterable[Tensor]) -> None:
        """These are of the host, where nothing says otherwise."""
        _remember(self._host, tensors)

    def __enter__(self) -> DeviceTrace:
        for name in READERS:
            plain = getattr(Tensor, name)
            self._patches.enter_context(patch.object(Tensor, name, self._reader(name, plain)))
        for name in COPIES:
            plain = getattr(Tensor, name)
            self._patches.enter_context(patch.object(Tensor, name, self._copier(name, plain)))
        for name in FACTORIES:
            plain = getattr(torch, name)
            self._patches.enter_context(patch.object(torch, name, self._factory(plain)))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._patches.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and look at where its tensors are."""
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        places = [self._place(tensor) for tensor in inputs]
        result = func(*args, **kwargs)
        results = _tensors(result)
        if DEVICE not in places:
            if HOST in places:
                self.on_host(results)
            return result
        name = func.overloadpacket.__name__
        by_mask = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in inputs[1:])
        if name in SHAPES_FROM_VALUES or (name in INDEXED and by_mask):
            self.reads[_caller(name)] += 1
        self.copies[_caller(name)] += places.count(HOST)
        self.on_device([*inputs, *results])
        return result

    def _place(self, tensor: Tensor) -> str:
        """`DEVICE`, `HOST`, or nothing where both may be."""
        for place, known in ((DEVICE, self._device), (HOST, self._host)):
            found = known.get(tensor.untyped_storage()._cdata)
            if found is not None and not found.expired():
                return place
        return ""

    def _reader(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._place(tensor) == DEVICE:
                self.reads[_caller(name)] += 1
            return plain(tensor, *args, **kwargs)

        return read

    def _copier(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def copy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            result = plain(tensor, *args, **kwargs)
            places = [*args, *kwargs.values()]
            brings = any(isinstance(place, torch.device) for place in places)
            is_there = self._place(tensor) == DEVICE
            if (is_there or not brings) if name == "to" else (not is_there):
                return result
            self.copies[_caller(name)] += 1
            result = result.clone() if result is tensor else result
            self.on_device([result])
            return result

        return copy

    def _factory(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs)
            if kwargs.get("device") is None:
                self.on_host([result])
            return result

        return make


DEVICE, HOST = "device", "host"


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _remember(known: dict[int, StorageWeakRef], tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        storage = StorageWeakRef(tensor.untyped_storage())
        known[tensor.untyped_storage()._cdata] = storage


def _caller(operation: str) -> str:
    """The innermost line of the package, or of whoever called it, that led to an operation."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "maskclip_bench" in path.parts and path != Path(__file__):
            return f"{path.name}:{frame.f_lineno} {operation}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return f"backward {operation}"
