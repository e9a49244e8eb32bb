"""The wheel: one import package with the declarations inside, working outside the checkout."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DECLARED = ("backbones", "tasks", "configs", "results/reference")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel__one_top_level_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"maskclip_bench"}


def test_wheel__holds_every_declaration(wheel: Path) -> None:
    present = set(names(wheel))
    for folder in DECLARED:
        files = [
            path
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
        assert files, folder
        for path in files:
            assert f"maskclip_bench/_data/{path.relative_to(ROOT).as_posix()}" in present


def test_wheel__holds_every_file_of_the_package(wheel: Path) -> None:
    present = set(names(wheel))
    for path in (ROOT / "maskclip_bench").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and "_data" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in present


def test_wheel__no_tests_no_caches_no_records(wheel: Path) -> None:
    for name in names(wheel):
        assert "__pycache__" not in name
        assert not name.startswith("tests/")
        assert "_data/results/records" not in name


def test_wheel__licences(wheel: Path) -> None:
    present = {name.split("/")[-1] for name in names(wheel) if ".dist-info/licenses/" in name}
    assert {"LICENSE", "NOTICE"} <= present


def test_wheel__metadata_and_console_script(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
    assert metadata["Name"] == "maskclip-bench"
    assert metadata["Requires-Python"] == ">=3.10"
    assert {"dev", "openmmlab", "slurm", "huggingface", "tensorboard", "pictures"} <= set(
        metadata.get_all("Provides-Extra", [])
    )
    assert "maskclip-bench = maskclip_bench.cli:main" in scripts


def test_wheel__works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = """
import maskclip_bench
from pathlib import Path
from maskclip_bench import data_files
from maskclip_bench.results import reference, tables
assert Path(maskclip_bench.__file__).is_relative_to(Path(__import__("sys").argv[1]).resolve())
assert data_files.shipped_root().name == "_data"
for kind in ("configs/tables", "configs/suites", "configs/pretrain", "backbones", "tasks"):
    print(kind, len(data_files.declarations(kind)))
table = tables.build_table(
    tables.load_table("imagenet"), references=reference.load_references()
)
print(tables.to_markdown(table))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(installed)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    counts = dict(line.rsplit(" ", 1) for line in result.stdout.splitlines()[:5])
    for kind, count in counts.items():
        assert int(count) == len(
            [p for p in (ROOT / kind).rglob("*.yaml") if not p.name.startswith(("_", "."))]
        )
        assert int(count) > 0, kind
    assert "| MaskCLIP (its paper) † | 44.5† | **73.7†** |" in result.stdout
    assert "Dong et al. 2023, Table 1" in result.stdout


def test_wheel__command_line_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, "-m", "maskclip_bench", "list", "tables"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "imagenet" in result.stdout
    assert list(tmp_path.iterdir()) == []
