"""mmengine reads checkpoints and data files here without running code that is in them.

mmengine's own loader falls back to `torch.load(..., weights_only=False)`, its `.pkl` handler
unpickles, its YAML handler builds any Python object, and `resume` runs the config text inside a
checkpoint. `install()` replaces these functions; importing `maskclip_bench.backbones.openmmlab`
calls it, so a config with our `custom_imports` is enough. `guard()` adds, for the scripts that we
start ourselves, the functions of torch and NumPy that other code calls.

What mmengine itself saves (numbers of the log, scalars of NumPy) is read from a short list of
types. A file that needs more is refused; `allow(file)` (`--allow-pickle FILE`) lets one file
through, and the run's report says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

import mmengine.fileio.handlers.pickle_handler as pickle_handler
import mmengine.fileio.handlers.yaml_handler as yaml_handler
import mmengine.runner.checkpoint as mmengine_checkpoint
import mmengine.utils.dl_utils as dl_utils
import numpy as np
import torch
import yaml
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from maskclip_bench.backbones.openmmlab.dense_checkpoints import seal_problem
from maskclip_bench.errors import CheckpointError, DataError, first_line
from maskclip_bench.storage import sha256_file

_UNSUPPORTED = re.compile(r"GLOBAL ([\w.]+)")
_allowed: dict[str, str] = {}
"""SHA-256 -> path of the files that may run code."""
_unpickled: dict[str, str] = {}
"""Those of them that were read."""


def allow(file: str | Path) -> None:
    """Let one file run the code that it holds when it is loaded.

    Raises:
        CheckpointError: There is no such file.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise CheckpointError(f"--allow-pickle {file}: there is no such file. Give its path.")
    _allowed[sha256_file(path)] = str(path)


def unpickled_files() -> list[dict[str, str]]:
    """Files that were allowed to run code and were read: `{"file", "sha256"}` of each."""
    return [{"file": file, "sha256": digest} for digest, file in sorted(_unpickled.items())]


def install() -> None:
    """Replace mmengine's loaders; calling it again does nothing more."""
    mmengine_checkpoint._safe_torch_load = load_file
    mmengine_checkpoint.load_from_local = load_from_local
    mmengine_checkpoint.CheckpointLoader.register_scheme("", load_from_local, force=True)
    for module in (mmengine_checkpoint, dl_utils):
        module.load_url = load_url
    pickle_handler.PickleHandler.load_from_fileobj = _refuse_pickle
    yaml_handler.YamlHandler.load_from_fileobj = _safe_yaml
    _guard_config_text()


@contextlib.contextmanager
def guard(toolbox: str | None = None) -> Iterator[None]:
    """In a script that we start: `torch.load` and `np.load` never unpickle, whoever calls them.

    Args:
        toolbox: "mmseg" also guards its reader of volumes.
    """
    install()
    if toolbox == "mmseg":
        importlib.import_module("mmseg.utils.io").pickle = _NoPickle
    torch_load, numpy_load = torch.load, np.load

    def load(f: Any, map_location: Any = None, *args: Any, **options: Any) -> Any:
        read = partial(torch_load, mmap=options.get("mmap"))
        return load_file(f, map_location=map_location, torch_load=read)

    def load_arrays(file: Any, *args: Any, **options: Any) -> Any:
        return numpy_load(file, mmap_mode=options.get("mmap_mode"), allow_pickle=False)

    torch.load, np.load = load, load_arrays
    try:
        yield
    finally:
        torch.load, np.load = torch_load, numpy_load


class _NoPickle:
    """Stands for the module pickle in code that unpickles data."""

    @staticmethod
    def loads(content: bytes) -> Any:
        """Refuse, unless the file is allowed."""
        return _refuse_pickle(None, io.BytesIO(content))


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Mmengine's loader of local files.

    Raises:
        CheckpointError: The file is missing, damaged, or holds more than tensors and numbers.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise CheckpointError(f"No checkpoint {filename}. Check the path, or train first.")
    problem = seal_problem(path)
    if problem is not None:
        raise CheckpointError(f"{path} {problem}. Use another checkpoint, or train again.")
    return load_file(path, map_location=map_location)


def load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
) -> Any:
    """Mmengine's (and torch's) loader of http and https; downloads once into torch's cache.

    Raises:
        CheckpointError: See `load_from_local`.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir()) / "checkpoints")
    path = folder / (file_name or Path(urlparse(url).path).name)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        hash_prefix = torch.hub.HASH_REGEX.search(path.name) if check_hash else None
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix.group(1) if hash_prefix else None, progress=progress
        )
    return load_file(path, map_location=map_location)


def load_file(
    file: str | Path | IO[bytes],
    map_location: Any = None,
    weights_only: bool | None = None,
    *,
    torch_load: Callable[..., Any] | None = None,
) -> Any:
    """What a file of `torch.save` holds, without running code.

    Args:
        file: A path, or an open file.
        map_location: torch's.
        weights_only: Ignored: it is always so.
        torch_load: torch's own function, where `torch.load` is guarded.

    Raises:
        CheckpointError: The file is damaged, or holds more than tensors, numbers, and what
            mmengine saves.
    """
    read = torch_load or torch.load
    try:
        with torch.serialization.safe_globals(_safe_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = read(file, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file ends in any of them
        if _is_allowed(file):
            return _unpickle(file, map_location, read)
        raise _refusal(file, error) from None
    return _without_code(loaded)


def _unpickle(file: Any, map_location: Any, read: Callable[..., Any]) -> Any:
    """Files that the user named with `--allow-pickle`."""
    _note_unpickled(file)
    return read(file, map_location=map_location, weights_only=False)


def _refusal(file: Any, error: Exception) -> CheckpointError:
    name = file if isinstance(file, (str, Path)) else getattr(file, "name", "An open file")
    found = _UNSUPPORTED.search(str(error))
    if found is None and not isinstance(error, pickle.UnpicklingError):
        return CheckpointError(
            f"{name} is damaged, or no file of torch.save ({first_line(error, 200)}). Copy or "
            "download it again."
        )
    what = found.group(1) if found else first_line(error, 200)
    return CheckpointError(
        f"{name} holds more than tensors and numbers ({what}); loading it would run code that it "
        f"names. Save it again with tensors only, or, if you trust its origin, repeat the command "
        f"with: --allow-pickle {name}"
    )


class _SavedHistory:
    """Stands for mmengine's HistoryBuffer while a file is read: keeps its state, runs nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state

    def restored(self) -> HistoryBuffer:
        """The numbers of the log; functions that the file named are dropped."""
        return HistoryBuffer(
            np.asarray(self.state["_log_history"], dtype=np.float64),
            np.asarray(self.state["_count_history"], dtype=np.int64),
            int(self.state["max_length"]),
        )


def _statistic_name(owner: object, name: str) -> str:
    """Stands for `getattr(HistoryBuffer, "mean")`, the only use of getattr in such a file."""
    if owner is not _SavedHistory or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"GLOBAL builtins.getattr of {name!r}")
    return name


def _safe_globals() -> list[Any]:
    """Types that mmengine's own checkpoints hold besides tensors."""
    history = "mmengine.logging.history_buffer.HistoryBuffer"
    arrays = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray
    named: list[Any] = [(_SavedHistory, history), (_statistic_name, "builtins.getattr"), slice]
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        named.append((arrays._reconstruct, f"{module}._reconstruct"))
        named.append((arrays.scalar, f"{module}.scalar"))
    kinds = (np.bool_, np.int32, np.int64, np.uint8, np.uint32, np.float32, np.float64, np.str_)
    return [*named, np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in kinds}]


class _ConfigText(str):
    """The config inside a checkpoint: text that `Config.fromstring` would run."""


def _guard_config_text() -> None:
    """Let `Config.fromstring` refuse the text inside a checkpoint."""
    original = Config.fromstring
    if hasattr(original, "refuses_config_text"):
        return

    def fromstring(cfg_str: str, file_format: str) -> Config:
        if isinstance(cfg_str, _ConfigText):
            raise CheckpointError(
                "The config inside a checkpoint is code, and is not run. Give the config file too "
                "(inferencers: model='CONFIG.py', weights='CHECKPOINT.pth')."
            )
        return original(cfg_str, file_format)

    fromstring.refuses_config_text = True
    Config.fromstring = staticmethod(fromstring)


def _without_code(loaded: Any) -> Any:
    """A checkpoint whose logs are mmengine's again and whose config is not run by `resume`."""
    loaded = _restored(loaded)
    if isinstance(loaded, dict):
        meta, hub = loaded.get("meta"), loaded.get("message_hub")
        if isinstance(meta, dict):
            meta.pop("config", None)  # `resume` would run it; mmengine itself writes none
            if isinstance(meta.get("cfg"), str):
                meta["cfg"] = _ConfigText(meta["cfg"])
        if isinstance(hub, dict) and isinstance(hub.get("runtime_info"), dict):
            hub["runtime_info"].pop("cfg", None)  # of the run that goes on, not of the file
    return loaded


def _restored(value: Any) -> Any:
    if isinstance(value, _SavedHistory):
        return value.restored()
    if type(value) in (list, tuple):
        return type(value)(_restored(item) for item in value)
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(item, torch.Tensor):
                value[key] = _restored(item)
    return value


def _refuse_pickle(handler: Any, file: IO[bytes], **options: Any) -> Any:
    """Mmengine's handler of `.pkl` files: annotations, proposals, results."""
    content = io.BytesIO(file.read())
    if not _is_allowed(content):
        raise DataError(
            "A .pkl file would run code that it names, and is not read. Convert it to .json (or "
            "to text), or, if you trust its origin, repeat the command with: --allow-pickle FILE"
        )
    _note_unpickled(content)
    return pickle.load(content)


def _safe_yaml(handler: Any, file: IO[str], **options: Any) -> Any:
    """Mmengine's handler of YAML files, with plain types only."""
    try:
        return yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise DataError(f"A YAML file cannot be read, with plain types only: {error}") from None


def _digest(file: Any) -> str:
    """SHA-256 of a path or an open file, empty if there is none."""
    if isinstance(file, (str, Path)):
        return sha256_file(Path(file)) if Path(file).is_file() else ""
    file.seek(0)
    digest = hashlib.sha256(file.read()).hexdigest()
    file.seek(0)
    return digest


def _is_allowed(file: Any) -> bool:
    return bool(_allowed) and _digest(file) in _allowed


def _note_unpickled(file: Any) -> None:
    digest = _digest(file)
    _unpickled[digest] = _allowed[digest]
