"""Declared tables that several tests fill."""

from __future__ import annotations

from typing import Any

from maskclip_bench.results.tables import Table, TableCell, TableDeclaration

KNN = {"group": "kNN", "title": "val", "task": "knn/demo_objects", "metric": "top1_accuracy"}
PROBE = {"group": "Probe", "title": "val", "task": "linear_probe/demo_objects"}
PROBE["metric"] = "top1_accuracy"
MEAN = {"title": "mean", "average": "all"}


def declare(**changes: Any) -> TableDeclaration:
    values: dict[str, Any] = {
        "title": "A table",
        "world": "demo",
        "columns": [KNN],
        "rows": [{"name": "CLIP", "backbone": "clip"}, {"name": "SLIP", "backbone": "slip"}],
        "baseline": "clip",
    }
    return TableDeclaration.model_validate({**values, **changes})


def cells(table: Table, row: str) -> tuple[TableCell, ...]:
    return next(r.cells for r in table.rows if r.name == row)


PUBLISHED = {
    "name": "CLIP (SLIP)",
    "published": [{"table": "SLIP README", "method": "CLIP", "encoder": "ViT-B/16", "epochs": 25}],
}
ZERO_SHOT = {
    "group": "Zero-shot",
    "title": "top-1",
    "task": "zero_shot_classification/imagenet",
    "metric": "top1_accuracy",
}


def paper_table(*rows: dict[str, Any]) -> TableDeclaration:
    measured = {"name": "CLIP", "backbone": "clip"}
    return declare(world="real", columns=[ZERO_SHOT], rows=[measured, *rows])
