"""Imports point down or sideways inside a folder, never up (the picture in CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "maskclip_bench"
NAME = "maskclip_bench"

LAYERS: dict[str, int] = {
    "": 0,  # the package itself: its version
    "config": 0,
    "content_hash": 0,
    "unit_vectors": 0,
    "data_files": 0,
    "distributed": 0,
    "errors": 0,
    "escaping": 0,
    "extras": 0,
    "job_folder": 0,
    "job_server": 0,
    "jobs": 0,
    "normalization": 0,
    "progress": 0,
    "registry": 0,
    "regular_file": 0,
    "runtime": 0,
    "storage": 0,
    "data": 1,
    "modeling": 1,
    "results": 1,
    "backbones": 2,
    "training": 2,
    "pretrain": 3,
    "tasks": 3,
    "pretrain.trainer": 4,
    "pretrain.launch": 4,
    "report": 4,
    "tasks.ahead": 4,
    "tasks.cell": 4,
    "tasks.cluster": 4,
    "tasks.execution": 4,
    "tasks.embedding": 4,
    "tasks.measure": 4,
    "tasks.pieces": 4,
    "tasks.plan": 4,
    "tasks.sharding": 4,
    "tasks.why": 4,
    "cli": 5,
    "study": 5,
    "api": 5,
    "api_bar": 5,
    "api_results": 5,
    "api_tables": 5,
    "api_embed": 5,
    "testing": 5,
    "__main__": 6,  # starts the command line
}
"""The longest prefix of a module's name (without the package's) tells its layer."""

OPENMMLAB = {"mmengine", "mmcv", "mmseg", "mmdet"}

Import = tuple[str, int, bool]
"""(imported module, line, at module level)."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """`maskclip_bench/config.py` -> `config`; a package's `__init__` is the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(name: str) -> str:
    """The longest entry of `LAYERS` that `name` starts with."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in LAYERS:
            return prefix
    raise AssertionError(f"{NAME}.{name} has no place in LAYERS; put its top folder there.")


def imports(path: Path) -> Iterator[Import]:
    """All imports of a file that run (those for type checkers do not)."""

    def walk(node: ast.AST, *, top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    yield from walk(other, top=top)
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, top
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                assert child.module is not None
                for alias in child.names:
                    yield f"{child.module}.{alias.name}", child.lineno, top
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, top=top and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), top=True)


def own(imported: str) -> str | None:
    """`maskclip_bench.results.records.Record` -> `results.records.Record`; None for others'."""
    if imported != NAME and not imported.startswith(f"{NAME}."):
        return None
    name = imported.removeprefix(NAME).removeprefix(".")
    # `from maskclip_bench import __version__` names no module.
    return "" if name.startswith("__") and name != "__main__" else name


def folder(part: str) -> str:
    return part.split(".")[0]


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    importer = part_of(module_name(path)) if module_name(path) else ""
    for imported, line, _ in imports(path):
        name = own(imported)
        if name is None or (not importer and folder(name) == "api"):
            continue  # the package's own names come from `api` when they are first used
        part = part_of(name) if name else ""
        sideways = folder(part) == folder(importer)
        down = LAYERS[part] < LAYERS[importer]
        same_layer_house = LAYERS[part] == LAYERS[importer] and LAYERS[part] in (0, 5)
        assert sideways or down or same_layer_house, (
            f"{path.relative_to(ROOT)}:{line}: layer {LAYERS[importer]} ({importer}) imports "
            f"{imported} of layer {LAYERS[part]}"
        )


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_nothing_below_imports_the_suite_or_the_trainer(path: Path) -> None:
    """Inside a folder imports may go sideways, but not up to its layer-4 module."""
    part = part_of(module_name(path)) if module_name(path) else ""
    if LAYERS[part] >= 4:
        return
    for imported, line, _ in imports(path):
        name = own(imported)
        if not part and folder(name or "") == "api":
            continue
        assert not name or LAYERS[part_of(name)] < 4, f"{path}:{line}: {imported}"


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_openmmlab_only_in_its_folder(path: Path) -> None:
    if module_name(path).startswith("backbones.openmmlab"):
        return
    for imported, line, top in imports(path):
        heavy = imported.split(".")[0] in OPENMMLAB
        assert not (heavy and top), f"{path}:{line}: {imported} at module level"


def test_openmmlab_folder_is_imported_by_nobody() -> None:
    """Its module-level imports are heavy and optional, so others import it inside a function."""
    for path in modules():
        if module_name(path).startswith("backbones.openmmlab"):
            continue
        for imported, line, top in imports(path):
            name = own(imported) or ""
            assert not (name.startswith("backbones.openmmlab") and top), f"{path}:{line}"


def third_party(folder_name: str, wanted: set[str]) -> list[str]:
    return [
        f"{path}:{line}: {imported}"
        for path in modules()
        if folder(module_name(path)) == folder_name
        for imported, line, _ in imports(path)
        if imported.split(".")[0] in wanted
    ]


def test_results_know_no_torch() -> None:
    assert third_party("results", {"torch", "torchvision", "timm", "open_clip"}) == []


def test_pandas_only_where_outcomes_are() -> None:
    """Tables of samples: made by protocols, kept by results, read from Parquet by data."""
    for folder_name in ("modeling", "cli", "config", "data_files", "runtime", "storage"):
        assert third_party(folder_name, {"pandas"}) == []


def test_modeling_does_no_io() -> None:
    forbidden = {"pathlib", "io", "os", "json", "yaml", "shutil", "tempfile", "requests", "PIL"}
    assert third_party("modeling", forbidden) == []
    for path in modules():
        if folder(module_name(path)) == "modeling":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called not in {"open", "torch.load", "torch.save"}, (
                        f"{path}:{node.lineno}: {called}"
                    )


def test_print_only_in_the_command_line() -> None:
    for path in modules():
        if folder(module_name(path)) in ("cli", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{path}:{node.lineno}"


def test_weights_are_never_unpickled() -> None:
    """Every `torch.load` says `weights_only=True`, and nothing uses pickle's own `load`.

    But for one module, which reads the files that `mm --allow-pickle FILE` names.
    """
    for path in modules():
        if module_name(path) == "backbones.openmmlab.safe_loading":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "torch.load":
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("weights_only") == "True", f"{path}:{node.lineno}"
            assert called not in {"pickle.load", "pickle.loads", "yaml.load", "joblib.load"}, (
                f"{path}:{node.lineno}: {called}"
            )


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, maskclip_bench; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "{'torch', 'pandas', 'numpy', 'timm', 'open_clip', 'matplotlib', 'mmengine', 'mmcv'}])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_importing_results_brings_no_torch() -> None:
    code = (
        "import sys, maskclip_bench.results.tables, maskclip_bench.results.records; "
        "print([m for m in ('torch', 'matplotlib', 'mmengine') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
