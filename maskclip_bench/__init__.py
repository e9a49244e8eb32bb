"""MaskCLIP (Dong et al., CVPR 2023), its baselines under one trainer, and a transfer benchmark.

    import maskclip_bench as mb

    results = mb.evaluate("timm:vit_base_patch16_224.mae", ["knn/cifar10"])

Importing the package imports nothing heavy; each name below comes from `maskclip_bench.api` when it
is first used. `docs/python.md` is the guide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskclip_bench.api import (
        as_backbone,
        compare,
        embed,
        evaluate,
        image_folder,
        list_backbones,
        list_recipes,
        list_suites,
        list_tables,
        list_tasks,
        load_backbone,
        pretrain,
        table,
    )

__version__ = "0.1.0"

__all__ = [
    "as_backbone",
    "compare",
    "embed",
    "evaluate",
    "image_folder",
    "list_backbones",
    "list_recipes",
    "list_suites",
    "list_tables",
    "list_tasks",
    "load_backbone",
    "pretrain",
    "table",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from maskclip_bench import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
