"""Which cells a suite has on a machine."""

import json
import logging
from pathlib import Path

import pytest

from maskclip_bench.pretrain.recipe import load_recipe
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.plan import make_plan
from maskclip_bench.tasks.suite import SuiteDeclaration, load_suite


def cells(suite: SuiteDeclaration, place: Path) -> list[str]:
    plan = make_plan(suite, Workspace(root=place, data=place))
    return [f"{cell.row.name}/{cell.column.name}" for cell in plan.cells]


def test_make_plan__leaves_out_what_the_suite_does_not_have(tmp_path: Path) -> None:
    suite = SuiteDeclaration(
        description="",
        backbones=["clip_vit-demo_demo", "slip_vit-demo_demo"],
        tasks=["knn/demo_objects", "few_shot/demo_objects", "retrieval/demo_captions"],
        without_tasks=["few_shot/*"],
        without_cells=["slip_*/knn/*"],
    )
    assert cells(suite, tmp_path) == [
        "clip_vit-demo_demo/knn/demo_objects",
        "clip_vit-demo_demo/retrieval/demo_captions",
        "slip_vit-demo_demo/retrieval/demo_captions",
    ]


def test_suite_all__trains_dense_heads_for_the_rows_of_the_dense_table(tmp_path: Path) -> None:
    found = cells(load_suite("all"), tmp_path)
    dense = {cell for cell in found if "/detection/" in cell or "/segmentation/" in cell}
    rows = ("random_init", "clip", "slip", "clip_mae", "maskclip")
    assert dense == {
        f"{row}_vit-demo_demo/{task}"
        for row in rows
        for task in (
            "segmentation/demo_scenes",
            "segmentation/demo_scenes_linear",
            "detection/demo_instances",
        )
    }


def test_make_plan__warns_of_weights_of_another_recipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    suite = SuiteDeclaration(
        description="", backbones=["clip_vit-demo_demo"], tasks=["knn/demo_objects"]
    )
    place = Workspace(root=tmp_path, data=tmp_path)
    folder = place.pretraining("demo/clip", 0) / "model"
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "open_clip_model.safetensors").write_bytes(b"")
    for overrides, warns in (["seed=0"], False), (["seed=0", "num_pairs=64"], True):
        made_by = load_recipe("demo/clip", overrides).computation_fingerprint()
        (folder / "provenance.json").write_text(json.dumps({"recipe_fingerprint": made_by}))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            make_plan(suite, place)
        assert ("another version of the recipe demo/clip" in caplog.text) == warns
        assert ("delete" in caplog.text) == warns
