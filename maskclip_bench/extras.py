"""The command that installs an extra, as this installation and its Python need it."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import shlex
import shutil
import sys
from pathlib import Path

DISTRIBUTION = "maskclip-bench"


def install_command(extra: str) -> str:
    """A command line that adds an extra to this very environment.

    It says `pip` only where that is this interpreter's; elsewhere it names the interpreter. An
    installed package (a wheel, or a checkout with `pip install -e`) is named: pip keeps it as it is
    and adds what the extra needs. A checkout that is only on `PYTHONPATH` is named by its folder.

    Args:
        extra: A key of `[project.optional-dependencies]`.

    Example:
        >>> install_command("slurm")  # doctest: +SKIP
        ".venv/bin/python -m pip install 'maskclip-bench[slurm]'"
    """
    if _is_installed():
        return f"{_installer()} {shlex.quote(f'{DISTRIBUTION}[{extra}]')}"
    root = Path(__file__).resolve().parent.parent
    return f"{_installer()} -e {shlex.quote(f'{root}[{extra}]')}"


def _is_installed() -> bool:
    try:
        importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _has_pip() -> bool:
    """Looked up on the path alone: setuptools' own finder warns where distutils is imported."""
    return importlib.machinery.PathFinder.find_spec("pip") is not None


def _installer() -> str:
    """Pip of this interpreter; uv, where an environment has no pip (those that uv makes)."""
    here = Path(sys.executable).absolute()
    python = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
    if not _has_pip():
        return f"uv pip install --python {shlex.quote(str(python))}"
    found = shutil.which("pip")
    if found is not None and Path(found).absolute().parent == here.parent:
        return "pip install"
    return f"{shlex.quote(str(python))} -m pip install"
