"""The machine a run sees: workspace, threads, device, seeds, and where a number came from."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip_bench import __version__
from maskclip_bench.errors import ConfigError

if TYPE_CHECKING:
    import torch

WORKSPACE_VARIABLE = "MASKCLIP_BENCH_WORKSPACE"
DATA_VARIABLE = "MASKCLIP_BENCH_DATA"
DEFAULT_WORKSPACE = "workspace"

MODEL_FOLDER = "model"
PROVENANCE_FILE = "provenance.json"
TEACHER_FOLDER = "teacher"
CHECKPOINT_FOLDER = "checkpoints"
RECIPE_FILE = "recipe.yaml"
"""Parts of the folder of a pretraining run; the recipe is also in `model/` and `teacher/`."""


@dataclass(frozen=True)
class Workspace:
    """One folder that holds everything a run makes; deleting it undoes the run.

    Attributes:
        root: The folder. `--workspace`, else `$MASKCLIP_BENCH_WORKSPACE`, else `./workspace`.
        data: Data sets (`$MASKCLIP_BENCH_DATA`, else `<root>/data`).
    """

    root: Path
    data: Path

    @classmethod
    def open(cls, root: Path | str | None = None) -> Workspace:
        """Resolve the workspace; nothing is created yet."""
        chosen = Path(root or os.environ.get(WORKSPACE_VARIABLE) or DEFAULT_WORKSPACE).absolute()
        data = Path(os.environ.get(DATA_VARIABLE) or chosen / "data").absolute()
        return cls(root=chosen, data=data)

    @property
    def pretrain(self) -> Path:
        """Pretraining runs, one folder each: checkpoints and logs."""
        return self.root / "pretrain"

    def pretraining(self, recipe: str, seed: int) -> Path:
        """The folder of one pretraining run: `pretrain/{recipe}/seed{seed}`."""
        return self.pretrain / recipe / f"seed{seed}"

    @property
    def features(self) -> Path:
        """The content-addressed feature store."""
        return self.root / "features"

    @property
    def jobs(self) -> Path:
        """Work folders of the protocols that train through the backbone."""
        return self.root / "jobs"

    @property
    def records(self) -> Path:
        """Measured cells: `{backbone}/{protocol}__{dataset}.json`."""
        return self.root / "records"

    @property
    def tables(self) -> Path:
        """Generated tables: Markdown and PNG."""
        return self.root / "tables"


def default_num_threads() -> int:
    """Cores this process may use (its affinity, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def asked_num_threads() -> int | None:
    """`OMP_NUM_THREADS`, its first number where it is a list; None where it is not set or wrong."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def threads_of_job(num_jobs: int) -> int:
    """Threads of each of `num_jobs` side by side: its share of the cores, or fewer if asked for."""
    share = max(1, default_num_threads() // num_jobs)
    return min(share, asked_num_threads() or share)


def configure_threads(num_threads: int | None = None) -> int:
    """Set torch's intra-op threads; returns the number set."""
    import torch

    threads = num_threads or asked_num_threads() or default_num_threads()
    torch.set_num_threads(threads)
    return threads


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` -> CUDA if there is one, else CPU; anything else is torch's own spelling.

    Raises:
        ConfigError: The device does not exist here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is not a device: {error}. Use auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("Device 'cuda' was asked for, and torch sees none. Use --device cpu.")
    return device


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(0, "scene", split, index)`.

    Streams for different purposes are independent, and none depends on how often another drew.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def utc_now() -> str:
    """Now, as ISO 8601 in UTC to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0).isoformat()


def device_kind(device: torch.device | str) -> str:
    """`cpu`, or the name of the GPU."""
    import torch

    place = torch.device(device)
    return torch.cuda.get_device_name(place) if place.type == "cuda" else place.type


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak on a GPU, or of this process."""
    import resource

    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a GPU, or of the machine."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError):  # Linux: with what the system only keeps to be quicker
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def provenance(device: torch.device | str | None = None) -> dict[str, Any]:
    """What is needed to trust a number later: versions, code state, hardware, time."""
    import torch

    libraries = {}
    for name in ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            libraries[name] = importlib.metadata.version(name)
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": default_num_threads(),
        "threads": torch.get_num_threads(),
        "device": str(device or "cpu"),
    }
    if device is not None and torch.device(device).type == "cuda":
        hardware["gpu"] = device_kind(device)
    return {
        "maskclip_bench": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "system": platform.system(),
        "libraries": libraries,
        "hardware": hardware,
        "command": _command_without_places(),
        "time": utc_now(),
    }


def _command_without_places() -> list[str]:
    """The command line, with absolute paths cut to their last part: they say nothing elsewhere."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return [Path(word).name if Path(word).is_absolute() else word for word in words]


def _git_commit() -> str | None:
    """Commit of the checkout this code runs from, with "+dirty" if it was changed; else None."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+dirty" if dirty else "")
