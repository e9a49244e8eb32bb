"""The command that a message names for an extra works for how the package is installed."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
from pathlib import Path

import pytest

from maskclip_bench import extras
from maskclip_bench.extras import install_command

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An interpreter in a folder of its own; pip is a module of it, and no pip is on PATH."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env dir" / "bin" / "python"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(extras, "_has_pip", lambda: True)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: object())
    return Path(sys.executable)


def test_installed__the_interpreter_is_named(python: Path) -> None:
    command = install_command("slurm")
    assert shlex.split(command) == [str(python), "-m", "pip", "install", "maskclip-bench[slurm]"]


def test_installed__relative_in_its_folder(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python.parent.mkdir(parents=True)
    monkeypatch.chdir(python.parent.parent)
    assert install_command("slurm") == "bin/python -m pip install 'maskclip-bench[slurm]'"


def test_installed__pip_where_it_is_of_this_interpreter(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: str(python.parent / name))
    assert install_command("slurm") == "pip install 'maskclip-bench[slurm]'"
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert install_command("slurm").startswith(f"'{python}' -m pip")


def test_installed__uv_where_there_is_no_pip(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_has_pip", lambda: False)
    assert shlex.split(install_command("slurm")) == [
        "uv", "pip", "install", "--python", str(python), "maskclip-bench[slurm]",
    ]  # fmt: skip


def test_not_installed__the_checkout_is_named(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    root = Path(extras.__file__).resolve().parent.parent
    assert shlex.split(install_command("slurm"))[-2:] == ["-e", f"{root}[slurm]"]


def test_every_extra_that_a_message_names_is_declared() -> None:
    import re

    text = PYPROJECT.read_text()
    declared = set(re.findall(r"^(\w+) = \[", text.split("[project.optional-dep")[1], re.M))
    root = Path(extras.__file__).parent
    named = {
        name
        for path in root.rglob("*.py")
        for name in re.findall(r"install_command\([\"'](\w+)[\"']\)", path.read_text())
    }
    assert {"openmmlab", "huggingface", "slurm", "tensorboard", "pictures"} <= named
    assert named <= declared


@pytest.mark.filterwarnings("error")
def test_pip__is_looked_up_without_a_word_of_setuptools() -> None:
    """Its finder warns of distutils where that has been imported before (by mmcv, say)."""
    sys.modules.setdefault("distutils", sys)
    try:
        assert extras._has_pip() in (True, False)
    finally:
        if sys.modules.get("distutils") is sys:
            del sys.modules["distutils"]
