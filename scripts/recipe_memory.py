"""Write what each recipe for GPUs needs into its header (`maskclip_bench/pretrain/memory.py`).

    python scripts/recipe_memory.py                   # write all, or the recipes that are named
    python scripts/recipe_memory.py --check           # exit code 1 if a header is not true

Needs no GPU and no data; about ten seconds a recipe.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from maskclip_bench.data_files import declarations
from maskclip_bench.pretrain.memory import Memory, count_memory, memory_line
from maskclip_bench.pretrain.recipe import KIND, Recipe, load_recipe

PREFIX = "# Memory:"
ON_A_CPU = "demo"
"""World of the recipes that say nothing of it."""


def shape(recipe: Recipe) -> str:
    """What decides the memory; recipes that have it in common are counted once."""
    given = (recipe.method.model_dump(), recipe.model.model_dump(), recipe.precision)
    return json.dumps([*given, recipe.grad_checkpointing], sort_keys=True, default=str)


def with_line(text: str, line: str) -> str:
    """A recipe with the line after that of its cost."""
    lines = [old for old in text.split("\n") if not old.startswith(PREFIX)]
    after = next(i for i, old in enumerate(lines) if old.startswith("# Expected cost"))
    return "\n".join([*lines[: after + 1], line, *lines[after + 1 :]])


def main(arguments: list[str]) -> int:
    """Write the headers, or compare them."""
    counted: dict[str, Memory] = {}
    wrong: list[Path] = []
    names = [argument for argument in arguments if argument != "--check"]
    for name, path in declarations(KIND).items():
        if names and name not in names:
            continue
        recipe = load_recipe(name)
        if recipe.world == ON_A_CPU:
            continue
        key = shape(recipe)
        if key not in counted:
            counted[key] = count_memory(recipe)
        text = path.read_text(encoding="utf-8")
        new = with_line(text, memory_line(recipe, counted[key]))
        print(name, memory_line(recipe, counted[key]).removeprefix(PREFIX), flush=True)
        if new != text:
            wrong.append(path)
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    return int("--check" in arguments and bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
