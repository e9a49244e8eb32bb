"""Whether weights were made by a recipe as it is today, remembered.

Reading a recipe imports torch and the libraries of models, which takes seconds. So the answer is
kept in the cache folder, under a hash of all that it follows from: the recipe that the run
recorded, the catalogue's recipe with its bases, and the code of this package. As `content_hash`,
this is an optimization and nothing else: what cannot be read or written is answered again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from maskclip_bench import storage
from maskclip_bench.config import read_yaml
from maskclip_bench.content_hash import cache_folder
from maskclip_bench.data_files import find_declaration
from maskclip_bench.errors import StorageError
from maskclip_bench.pretrain.recipe_summary import KIND, LISTING
from maskclip_bench.runtime import PROVENANCE_FILE, RECIPE_FILE

FOLDER = "recipes"
METHODS_GROUP = "maskclip_bench.methods"
ANSWERS = {"same": True, "other": False}
PACKAGE = Path(__file__).resolve().parent.parent


def made_by_recipe_of_today(folder: Path, name: str, seed: int) -> bool | None:
    """Whether a model folder is of the recipe `name` as it is now; None if it does not say.

    Args:
        folder: Of the exported model.
        name: In the catalogue.
        seed: Of the run.

    Raises:
        UnknownNameError: There is no such recipe.
        ConfigError: It is not valid.
    """
    path = _remembered(folder, name, seed)
    if path is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = ANSWERS.get(path.read_text(encoding="utf-8").strip())
            if found is not None:
                return found
    from maskclip_bench.pretrain.export import finished_fingerprint
    from maskclip_bench.pretrain.recipe import load_recipe

    made_by = finished_fingerprint(folder)
    if made_by is None:
        return None
    answer = made_by == load_recipe(name, [f"seed={seed}"]).computation_fingerprint()
    if path is not None:
        with contextlib.suppress(OSError, StorageError):
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.write_text(path, "same\n" if answer else "other\n")
    return answer


def _remembered(folder: Path, name: str, seed: int) -> Path | None:
    """The file of the answer; None where what it follows from cannot be said."""
    declared = read_yaml(find_declaration(KIND, name, singular="recipe", listing=LISTING))
    if _is_of_another_package(declared):
        return None
    try:
        recorded = [
            hashlib.sha256((folder / file).read_bytes()).hexdigest()
            for file in (RECIPE_FILE, PROVENANCE_FILE)
        ]
        key = storage.fingerprint([recorded, declared, seed, _code()], length=32)
        return cache_folder() / FOLDER / key
    except (OSError, RuntimeError):  # the last: a user without a home
        return None


def _is_of_another_package(recipe: dict[str, Any]) -> bool:
    """Whether its method comes through an entry point, so that its code is not in `_code`."""
    method = recipe.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    return any(entry.name == name for entry in importlib.metadata.entry_points(group=METHODS_GROUP))


@functools.cache
def _code() -> str:
    """SHA-256 of the package's source."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
