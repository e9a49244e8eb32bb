"""Where the declarations lie: root folders in a checkout, `_data` inside an installed wheel.

The only module that knows this. A user's own declarations join the shipped ones: folders named in
the environment variable `MASKCLIP_BENCH_CATALOGUE` (separated like PATH) are laid out like the
root of the repository (`backbones/`, `tasks/`, `configs/`, ...) and win over shipped files of the
same name.
"""

from __future__ import annotations

import os
from pathlib import Path

from maskclip_bench.errors import ConfigError, unknown_name

CATALOGUE_VARIABLE = "MASKCLIP_BENCH_CATALOGUE"

_PACKAGE = Path(__file__).resolve().parent


def shipped_root() -> Path:
    """The folder that holds `backbones/`, `tasks/`, `configs/` and `results/reference/`."""
    installed = _PACKAGE / "_data"
    return installed if installed.is_dir() else _PACKAGE.parent


def catalogue_roots() -> list[Path]:
    """All folders searched for declarations, the user's before the shipped one.

    Raises:
        ConfigError: `MASKCLIP_BENCH_CATALOGUE` names a folder that does not exist.
    """
    roots = [Path(p) for p in os.environ.get(CATALOGUE_VARIABLE, "").split(os.pathsep) if p]
    for root in roots:
        if not root.is_dir():
            raise ConfigError(
                f"{CATALOGUE_VARIABLE} names {root}, which is not a folder. It should hold "
                "`backbones/`, `tasks/` or `configs/`, laid out like the repository."
            )
    return [*roots, shipped_root()]


def declarations(kind: str, *, suffix: str = ".yaml") -> dict[str, Path]:
    """Name -> file of one kind of declaration, sorted by name.

    Args:
        kind: A folder below the root: "backbones", "tasks", "configs/suites", "configs/pretrain",
            "results/reference"...
        suffix: What the files end with.

    Returns:
        Names are paths below `kind` without the suffix: "food101", "demo/clip".
    """
    found: dict[str, Path] = {}
    for root in reversed(catalogue_roots()):
        folder = root / kind
        for path in sorted(folder.rglob(f"*{suffix}")):
            if not path.name.startswith((".", "_")):
                found[path.relative_to(folder).as_posix().removesuffix(suffix)] = path
    return dict(sorted(found.items()))


def find_declaration(kind: str, name: str, *, singular: str, listing: str) -> Path:
    """The file of one declaration, by its name or by its path.

    Args:
        kind: As in `declarations`.
        name: "food101", or a path to a YAML file.
        singular: What to call it in an error ("task").
        listing: The command that lists what there is.

    Raises:
        UnknownNameError: There is none; says which name was probably meant.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if path.is_file():
            return path
        below = shipped_root() / name
        if below.is_file():
            return below
        name = name.removesuffix(".yaml").removesuffix(".yml").removeprefix(f"{kind}/")
    known = declarations(kind)
    if name not in known:
        raise unknown_name(singular, name, known, remedy=f"List them with: {listing}")
    return known[name]


def config_file(relative: str) -> Path:
    """The place of a shipped file, e.g. `configs/mmseg/....py` (for `maskclip-bench path`).

    Raises:
        UnknownNameError: There is no such file.
    """
    for root in catalogue_roots():
        for candidate in (root / relative, root / "configs" / relative):
            if candidate.exists():
                return candidate
    known = [
        path.relative_to(shipped_root()).as_posix()
        for path in (shipped_root() / "configs").rglob("*.*")
    ]
    raise unknown_name("shipped file", relative, known, remedy="See `configs/` in the repository.")
