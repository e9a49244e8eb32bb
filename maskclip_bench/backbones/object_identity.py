"""What a user's encoder is made of: its code, and all values reachable from it.

Reachable are attributes, elements, closures, defaults, and the module-level values that its
functions name. Tensors and arrays count by content, code by its source files or, where there are
none (a notebook), by its compiled instructions. What cannot be looked into (a session of another
runtime, an open connection) makes the identity that of this process: nothing is then reused in
another one, unless the encoder says itself what it is, with `fingerprint() -> str`.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import functools
import hashlib
import importlib.util
import logging
import sys
import sysconfig
import types
import uuid
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskclip_bench import content_hash
from maskclip_bench.errors import ConfigError

logger = logging.getLogger(__name__)

_PROCESS = uuid.uuid4().hex
"""Stands for what cannot be looked into."""

MAX_VALUES = 2_000_000
"""Values that are walked through at most; beyond, the object counts as one of this process."""

_SCALARS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_NO_CONTENT = (logging.Logger, weakref.ref)
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_STANDARD_LIBRARY = str(Path(sysconfig.get_path("stdlib")).resolve())


def object_contents(thing: Any) -> tuple[str, str]:
    """("fingerprint", its own) or ("values", SHA-256 of all that is reachable from it).

    Raises:
        ConfigError: Its `fingerprint()` fails or returns no text.
    """
    own = getattr(thing, "fingerprint", None)
    if callable(own):
        try:
            text = own()
        except Exception as error:
            raise ConfigError(
                f"fingerprint() of {type(thing).__name__} failed ({type(error).__name__}: "
                f"{error}). It should return a text that changes when the features change."
            ) from error
        if not isinstance(text, str) or not text:
            raise ConfigError(
                f"fingerprint() of {type(thing).__name__} returned {text!r}. Return a text that "
                "changes when the features change."
            )
        return "fingerprint", text
    walk = _Walk()
    walk.value("", thing)
    if walk.opaque:
        logger.info(
            "Features of %s are not reused by other processes: what is behind %s cannot be "
            "compared. Give the encoder a method fingerprint() -> str.",
            type(thing).__name__,
            walk.opaque,
        )
        return "values", f"{walk.digest.hexdigest()} {_PROCESS} {id(thing)}"
    return "values", walk.digest.hexdigest()


class _Walk:
    """One walk through all that is reachable from an object, in a fixed order."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.opaque = ""
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is given to a second object meanwhile

    def value(self, path: str, value: Any) -> None:
        """Add a value and what is behind it; iterative, since structures may be deep."""
        waiting = [(path, value)]
        while waiting:
            where, current = waiting.pop()
            children = list(self._one(where, current))
            waiting.extend(reversed(children))
            if len(self._kept) > MAX_VALUES:
                self.opaque = self.opaque or where
                return

    def _one(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, enum.Enum):
            self._add(path, "enum", f"{type(value).__qualname__}.{value.name}")
            return
        if isinstance(value, (*_SCALARS, PurePath)):
            self._add(
                path,
                type(value).__name__,
                str(value) if isinstance(value, PurePath) else repr(value),
            )
            return
        if id(value) in self._seen:
            self._add(path, "seen", str(self._seen[id(value)]))
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if isinstance(value, Tensor):
            self._tensor(path, value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._add(path, f"array {value.dtype} {value.shape}", "")
            self.digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, _NO_CONTENT):
            self._add(path, "named", type(value).__name__)
        elif isinstance(value, types.ModuleType):
            self._add(path, "module", value.__name__)
            if not _of_library(value.__name__) and value.__name__ != "__main__":
                public = {k: v for k, v in vars(value).items() if not k.startswith("__")}
                yield from _entries(path, public)
        else:
            yield from self._behind(path, value)

    def _behind(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """What is behind a container, a function, a class or an object."""
        self._add(path, type(value).__qualname__, "")
        if isinstance(value, Mapping):
            yield from _entries(path, value)
        elif isinstance(value, (set, frozenset)):
            yield from ((f"{path}{{}}", each) for each in sorted(value, key=repr))
        elif isinstance(value, (list, tuple, np.ndarray)):
            yield from ((f"{path}[{index}]", each) for index, each in enumerate(value))
        elif isinstance(value, types.FunctionType):
            yield from self._function(path, value)
        elif isinstance(value, types.MethodType):
            yield from ((f"{path}.self", value.__self__), (f"{path}.func", value.__func__))
        elif isinstance(value, functools.partial):
            yield from ((f"{path}.{part}", getattr(value, part)) for part in _PARTIAL)
        elif isinstance(value, (staticmethod, classmethod)):
            yield f"{path}.func", value.__func__
        elif isinstance(value, property):
            yield from ((f"{path}.{part}", getattr(value, part)) for part in _PROPERTY)
        elif isinstance(value, type):
            yield from self._class(path, value)
        elif isinstance(value, nn.Module):
            yield from self._module(path, value)
        elif isinstance(value, torch.Generator):
            yield f"{path}.state", value.get_state()
        elif isinstance(value, types.BuiltinFunctionType):
            self._add(path, "builtin", value.__qualname__)
        else:
            yield from self._object(path, value)

    def _tensor(self, path: str, value: Tensor) -> None:
        self._add(path, f"tensor {value.dtype} {tuple(value.shape)}", "")
        if value.is_meta:
            return
        dense = value.detach()
        if dense.layout is not torch.strided:
            dense = dense.to_dense()
        if dense.is_quantized:
            self._add(path, "scheme", str(dense.qscheme()))
            dense = dense.dequantize()
        flat = dense.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        if flat.numel():
            self.digest.update(flat.view(torch.uint8).numpy().data)

    def _function(self, path: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        if _of_library(function.__module__):
            self._add(path, "library", f"{function.__module__}.{function.__qualname__}")
            return
        self._code(path, function.__code__)
        yield f"{path}.defaults", function.__defaults__
        yield f"{path}.kwdefaults", function.__kwdefaults__
        yield from _entries(path, vars(function))
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=False
        ):
            try:
                yield f"{path}.closure.{name}", cell.cell_contents
            except ValueError:  # not bound yet
                continue
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                yield f"{path}.global.{name}", function.__globals__[name]

    def _code(self, path: str, code: types.CodeType) -> None:
        """Instructions and constants, without file names and line numbers."""
        self._add(path, "code", f"{code.co_names} {code.co_varnames}")
        self.digest.update(code.co_code)
        for index, constant in enumerate(code.co_consts):
            if isinstance(constant, types.CodeType):
                self._code(f"{path}.{index}", constant)
            elif isinstance(constant, frozenset):
                self._add(path, "constant", repr(sorted(constant, key=repr)))
            else:
                self._add(path, "constant", repr(constant))

    def _class(self, path: str, cls: type) -> Iterator[tuple[str, Any]]:
        self._add(path, "class", f"{cls.__module__}.{cls.__qualname__}")
        if _of_library(cls.__module__):
            return
        for base in cls.__bases__:
            yield f"{path}.base", base
        for name, value in sorted(vars(cls).items()):
            if name not in _CLASS_NOISE and not isinstance(value, _DESCRIPTORS):
                yield f"{path}.{name}", value

    def _module(self, path: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
        """Its attributes, without caches of torch; code of a script module."""
        yield f"{path}.class", type(module)
        if isinstance(module, torch.jit.ScriptModule):
            with contextlib.suppress(Exception):  # some have no code of their own
                self._add(path, "script", module.code)
            yield f"{path}.state", dict(module.state_dict())
            return
        yield from _entries(path, vars(module))

    def _object(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        cls = type(value)
        yield f"{path}.class", cls
        copied = _says_how_to_copy(cls)
        slots = _slots(cls)
        if copied and _of_library(cls.__module__):
            yield from self._reduced(path, value)
            return
        if hasattr(value, "__dict__"):
            yield from _entries(path, vars(value))
        for name in slots:
            if hasattr(value, name):
                yield f"{path}.{name}", getattr(value, name)
        if not (slots or hasattr(value, "__dict__")) and cls is not object:
            yield from self._reduced(path, value)
        elif not copied and cls.__module__ != "_thread":
            try:
                value.__reduce_ex__(2)  # fails where a part of the object is not in Python
            except Exception:
                self.opaque = self.opaque or (path or cls.__qualname__)

    def _reduced(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """What copying the object would take: for objects that are not made of Python values."""
        if type(value).__module__ in ("_thread", "threading"):
            return  # locks hold nothing
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # the object says that it cannot be copied
            self.opaque = self.opaque or (path or type(value).__qualname__)
            return
        if isinstance(reduced, str):
            self._add(path, "global", reduced)
            return
        for index, part in enumerate(reduced[:3]):
            yield f"{path}.reduced{index}", part
        for part in reduced[3:]:
            yield f"{path}.items", None if part is None else list(part)

    def _add(self, path: str, kind: str, text: str) -> None:
        for part in (path, kind, text):
            encoded = part.encode("utf-8", "surrogatepass")
            self.digest.update(b"%d:" % len(encoded) + encoded)


_PARTIAL = ("func", "args", "keywords")
_PROPERTY = ("fget", "fset", "fdel")
_CLASS_NOISE = frozenset(
    [
        "__dict__",
        "__weakref__",
        "__doc__",
        "__module__",
        "__qualname__",
        "__annotations__",
        "__firstlineno__",
        "__static_attributes__",
        "__abstractmethods__",
        "_abc_impl",
        "__parameters__",
        "__orig_bases__",
        "__annotate_func__",
        "__annotations_cache__",
    ]
)
_MODULE_NOISE = frozenset(
    [
        "training",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
        "_is_full_backward_hook",
        "_non_persistent_buffers_set",
        "_forward_hooks_always_called",
        "_compiled_call_impl",
    ]
)
_DESCRIPTORS = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
)


def _entries(path: str, values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key in sorted(values, key=repr):
        if not (isinstance(key, str) and key in _MODULE_NOISE):
            name = key if isinstance(key, str) else repr(key)
            yield f"{path}.{name}", values[key]


def _slots(cls: type) -> list[str]:
    names: list[str] = []
    for each in cls.__mro__:
        slots = each.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return sorted(name for name in set(names) if name not in ("__dict__", "__weakref__"))


def _says_how_to_copy(cls: type) -> bool:
    """Whether a class defines what a copy of its objects takes, which may be not in Python."""
    names = ("__reduce_ex__", "__reduce__", "__getstate__")
    return any(getattr(cls, name, None) is not getattr(object, name, None) for name in names)


def _names(code: types.CodeType) -> set[str]:
    """Names that the instructions of a function may look up in its module."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


@functools.lru_cache(maxsize=4096)
def _of_library(module_name: str | None) -> bool:
    """Whether a module is installed or Python's own: another version of it is not looked for."""
    if module_name is None or module_name in ("builtins", "__main__"):
        return module_name == "builtins"
    module = sys.modules.get(module_name)
    file = getattr(module, "__file__", None)
    if module is None or module_name.partition(".")[0] in sys.stdlib_module_names:
        return module is not None
    if file is None:  # made in memory, or compiled into Python
        return getattr(module, "__spec__", None) is not None
    return _installed(Path(file))


def _installed(file: Path) -> bool:
    resolved = file.resolve()
    in_packages = any(folder in resolved.parts for folder in _PACKAGE_FOLDERS)
    return in_packages or str(resolved).startswith(f"{_STANDARD_LIBRARY}/")


# --- source files ---------------------------------------------------------------------------------


def source_contents(module_name: str) -> dict[str, str]:
    """Content hash of a module's file, and of the modules beside it that it imports, by name.

    "Beside it" is below the folder from which its top-level package was imported; of an installed
    package, only the package itself.

    Raises:
        DataError: A file cannot be read.
    """
    root = _root(module_name)
    if root is None:
        return {}
    top = module_name.partition(".")[0]
    only = top if _installed(root / "_") else None
    files: dict[str, Path] = {}
    waiting = [module_name]
    while waiting:
        name = waiting.pop()
        if name in files or (only is not None and name.partition(".")[0] != only):
            continue
        file = _file_of(root, name)
        if file is None:
            continue
        files[name] = file
        parent = name.rpartition(".")[0]
        waiting += [parent] if parent else []
        waiting += _imports(file, name)
    names = sorted(files)
    hashes = content_hash.file_hashes([files[name] for name in names])
    return dict(zip(names, hashes, strict=True))


def _root(module_name: str) -> Path | None:
    """The folder that the top-level package of a module is in."""
    top = module_name.partition(".")[0]
    module = sys.modules.get(top)
    origin = getattr(module, "__file__", None)
    if origin is None:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
        locations = list(spec.submodule_search_locations or []) if spec else []
        if locations:
            return Path(locations[0]).resolve().parent
        return None
    file = Path(origin).resolve()
    return file.parent.parent if file.name == "__init__.py" else file.parent


def _file_of(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split("."))
    for candidate in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if candidate.is_file():
            return candidate
    return None


def _imports(file: Path, name: str) -> list[str]:
    """All modules that a file may import, wherever in it; submodules and attributes alike."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".") if package else []
            if node.level:
                above = above[: len(above) - node.level + 1]
            base = ".".join(
                [*(above if node.level else []), *([node.module] if node.module else [])]
            )
            found += [base] if base else []
            found += [f"{base}.{alias.name}" if base else alias.name for alias in node.names]
    return [each for each in found if each]
