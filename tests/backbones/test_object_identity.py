from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maskclip_bench.backbones.object_identity import object_contents, source_contents
from maskclip_bench.errors import ConfigError


class Holder:
    shared = torch.zeros(2)

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) * SCALE


SCALE = torch.ones(3)


def net(bias: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.bias.fill_(bias)
    return layer


def closure(value: Any) -> Callable[[], Any]:
    return lambda: value


class Slotted:
    __slots__ = ("weight",)

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "module in an attribute": (lambda: Holder(net=net()), lambda: Holder(net=net(1.0))),
    "module in a list": (lambda: Holder(nets=[net()]), lambda: Holder(nets=[net(1.0)])),
    "module in a dictionary": (lambda: Holder(n={"a": net()}), lambda: Holder(n={"a": net(1.0)})),
    "module itself": (net, lambda: net(1.0)),
    "buffer that is not saved": (
        lambda: Holder(n=_with_buffer(0.0)),
        lambda: Holder(n=_with_buffer(1.0)),
    ),
    "closure": (lambda: closure(net()), lambda: closure(net(1.0))),
    "partial": (
        lambda: functools.partial(print, net()),
        lambda: functools.partial(print, net(1.0)),
    ),
    "bound method": (
        lambda: Holder(net=net()).encode_image,
        lambda: Holder(net=net(1.0)).encode_image,
    ),
    "array": (lambda: Holder(a=np.zeros(3)), lambda: Holder(a=np.ones(3))),
    "number": (lambda: Holder(scale=2.0), lambda: Holder(scale=2.5)),
    "slot": (lambda: Slotted(torch.zeros(1)), lambda: Slotted(torch.ones(1))),
    "type of the tensor": (
        lambda: Holder(a=torch.zeros(4)),
        lambda: Holder(a=torch.zeros(4, dtype=torch.int32)),
    ),
    "activation": (
        lambda: nn.Sequential(nn.Linear(1, 1, bias=False).requires_grad_(False), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(1, 1, bias=False).requires_grad_(False), nn.GELU()),
    ),
    "which of two is shared": (
        lambda: _tied(shared=True),
        lambda: _tied(shared=False),
    ),
    "another function": (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
    "default argument": (lambda: _default(1.0), lambda: _default(2.0)),
}


def _with_buffer(value: float) -> nn.Module:
    module = nn.Module()
    module.register_buffer("table", torch.full((2,), value), persistent=False)
    return module


def _tied(*, shared: bool) -> Any:
    first = torch.zeros(2)
    return Holder(a=first, b=first if shared else torch.zeros(2))


def _default(value: float) -> Callable[..., float]:
    def function(x: float = value) -> float:
        return x

    return function


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_object_contents__follow_every_value(case: str) -> None:
    first, second = PAIRS[case]
    torch.manual_seed(1)
    one, other = first(), second()
    assert object_contents(one) == object_contents(one)
    assert object_contents(one) != object_contents(other)


def test_object_contents__class_and_module_level_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    before = object_contents(Holder())
    monkeypatch.setattr(Holder, "shared", torch.ones(2))
    with_class = object_contents(Holder())
    monkeypatch.setattr(sys.modules[__name__], "SCALE", torch.full((3,), 2.0))
    assert len({before, with_class, object_contents(Holder())}) == 3


def test_object_contents__locks_paths_and_cycles_change_nothing() -> None:
    def make() -> Holder:
        holder = Holder(lock=threading.Lock(), path=Path("a/b"), net=net(), dtype=torch.float16)
        hash(holder.path)
        holder.myself = holder
        return holder

    assert object_contents(make()) == object_contents(make())


def test_object_contents__what_cannot_be_looked_into_is_of_this_process(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as file:
        found = object_contents(Holder(file=file))[1]
    assert len(found.split()) == 3  # the hash, the process, the object


def test_object_contents__own_fingerprint() -> None:
    assert object_contents(Holder(fingerprint=lambda: "v1", net=net())) == ("fingerprint", "v1")
    with pytest.raises(ConfigError, match=r"fingerprint\(\) of Holder returned 3"):
        object_contents(Holder(fingerprint=lambda: 3))
    with pytest.raises(ConfigError, match=r"fingerprint\(\) of Holder failed \(ZeroDivisionError"):
        object_contents(Holder(fingerprint=lambda: 1 // 0))


def test_object_contents__are_equal_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "enc.py").write_text(
        textwrap.dedent(
            """
            import torch
            from maskclip_bench.backbones.object_identity import object_contents
            class Encoder:
                words = {"b", "a", "c"}
                def __init__(self):
                    torch.manual_seed(0)
                    self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.GELU())
                    self.lock = torch.Generator()
                def encode_image(self, x):
                    return self.net(x) if {1, "x", "y"} else None
            """
        )
    )
    code = "import enc; print(enc.object_contents(enc.Encoder()))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**__import__("os").environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    files = {
        "mine/__init__.py": "",
        "mine/model.py": "from . import layers\nfrom .parts.head import Head\nimport json\n",
        "mine/layers.py": "def late():\n    import beside\n",
        "mine/parts/__init__.py": "",
        "mine/parts/head.py": "class Head: pass\n",
        "mine/unused.py": "",
        "beside.py": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(str(root))
    yield root
    for name in [n for n in sys.modules if n.partition(".")[0] in ("mine", "beside")]:
        del sys.modules[name]


def test_source_contents__the_module_and_what_it_imports_beside_it(package: Path) -> None:
    importlib.import_module("mine.model")
    before = source_contents("mine.model")
    assert set(before) == {
        "mine", "mine.model", "mine.layers", "mine.parts", "mine.parts.head", "beside",
    }  # fmt: skip
    for name in ("mine/layers.py", "mine/parts/head.py", "beside.py", "mine/model.py"):
        path = package / name
        path.write_text(path.read_text() + "# changed\n")
        after = source_contents("mine.model")
        assert after != before, name
        before = after


def test_source_contents__of_an_installed_package_are_its_own() -> None:
    found = source_contents("timm.models.vision_transformer")
    assert "timm.layers" in found
    assert all(name.partition(".")[0] == "timm" for name in found)
