"""Which cells a suite has on a machine."""

import json
import logging
from pathlib import Path

import pytest

from maskclip_bench.errors import ConfigError, MissingDependencyError, UnknownNameError
from maskclip_bench.pretrain.recipe import load_recipe
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, plan
from maskclip_bench.tasks.cell import Column, Row
from maskclip_bench.tasks.plan import make_plan
from maskclip_bench.tasks.protocols.knn import KNN
from maskclip_bench.tasks.suite import SuiteDeclaration, load_suite

from .conftest import ColourEncoder, make_backbone, squares_task


def cells(suite: SuiteDeclaration, place: Path) -> list[str]:
    made = make_plan(suite, Workspace(root=place, data=place))
    return [f"{cell.row.name}/{cell.column.name}" for cell in made.cells]


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


def squares_cell(encoder: object = None) -> tuple[Row, Column]:
    row = Row("toy", make_backbone(encoder or ColourEncoder()).declaration)
    return row, Column(PROTOCOLS["knn"], squares_task())


@pytest.mark.parametrize("error", [ValueError(), SystemExit(0), RecursionError()])
def test_weights_now__a_row_that_raises_stops_no_plan(
    error: BaseException, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(row: Row, place: Workspace) -> str:
        raise error

    monkeypatch.setattr(plan, "weights_identity", identity)
    row, _ = squares_cell()
    assert plan.weights_now(row, workspace) == plan.UNKNOWN


def test_weights_now__an_interrupt_passes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(row: Row, place: Workspace) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "weights_identity", identity)
    with pytest.raises(KeyboardInterrupt):
        plan.weights_now(squares_cell()[0], workspace)


DECLARATION = """
display_name: Mine
world: {world}
source: {{python: "no_such_module_anywhere:make"}}
"""
TASK = """
display_name: Mine
world: real
reader: {{kind: image_folder, root: squares, classes: classes.json}}
splits: {{train: train, test: val}}
protocols: {protocols}
obtain: draw it
"""


def catalogue(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    world: str = "real",
    protocols: str = "{knn: {}}",
) -> None:
    for folder in ("backbones", "tasks"):
        (root / folder).mkdir(parents=True)
    (root / "backbones/mine.yaml").write_text(DECLARATION.format(world=world))
    (root / "tasks/my_squares.yaml").write_text(TASK.format(protocols=protocols))
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", str(root))


def planned(workspace: Workspace, task: str = "*/my_squares", **options: object) -> plan.Plan:
    suite = SuiteDeclaration(description="", backbones=["mine"], tasks=[task])
    return make_plan(suite, workspace, **options)  # type: ignore[arg-type]


def test_make_plan__wrong_settings_are_a_failed_cell(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue(tmp_path / "c", monkeypatch, protocols="{linear_probe: {presett: x}, knn: {}}")
    cells = {cell.column.protocol.name: cell for cell in planned(workspace).cells}
    assert cells["knn"].is_to_measure
    assert "Did you mean 'preset'" in str(cells["linear_probe"].refused)


def test_make_plan__worlds_meet_only_where_both_sides_are_named(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue(tmp_path / "c", monkeypatch, world="demo")
    assert not planned(workspace).cells
    half = plan.Named.of(["mine"], ["*/*"])
    assert not planned(workspace, named=half).cells
    both = plan.Named.of(["mine"], ["*/my_squares"])
    assert len(planned(workspace, named=both).cells) == 1


def test_make_plan__a_limit_leaves_out_what_trains_on_whole_splits(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue(tmp_path / "c", monkeypatch)

    class Job(KNN):
        runs_as_job = True

    monkeypatch.setitem(PROTOCOLS._loaded, "knn", Job())
    made = planned(workspace, limit=5)
    assert not made.cells
    assert "trains on whole splits, and a limit was given" in made.left_out[0].why
    assert len(planned(workspace).cells) == 1


def test_named__what_was_asked_for() -> None:
    named = plan.Named.of(["mine", "x/other.yaml"], ["knn/*", "*/food101", "retrieval/my.yaml"])
    assert named.rows == {"mine", "other"}
    assert named.datasets == {"food101", "my"}
    assert named.protocols == {"knn", "retrieval"}
    row, column = squares_cell()
    assert not named.asks(row, column)
    assert plan.Named.of(["toy"], ["knn/*"]).asks(row, column)


def test_make_plan__an_unknown_prompt_set_is_a_failed_cell(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocols = "{zero_shot_classification: {prompts: nope}}"
    catalogue(tmp_path / "c", monkeypatch, protocols=protocols)
    suite = SuiteDeclaration(description="", backbones=["openai_vit-b-16"], tasks=["*/my_squares"])
    named = plan.Named.of(["openai_vit-b-16"], ["my_squares"])
    (cell,) = make_plan(suite, workspace, named=named).cells
    assert "No prompt set 'nope'" in str(cell.refused)
    assert not cell.is_to_measure


def test_make_plan__broken_files_of_everything_are_left_out(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue(tmp_path / "c", monkeypatch)
    (tmp_path / "c/backbones/broken_row.yaml").write_text("display_name: [")
    (tmp_path / "c/tasks/broken_data.yaml").write_text("display_name: x\nreadr: 1\n")
    suite = SuiteDeclaration(description="", tasks=["knn/*", "linear_probe/*"])
    made = make_plan(suite, workspace)
    broken = {item.what: str(item.error) for item in made.left_out if item.why == plan.BROKEN}
    assert set(broken) == {"broken_row", "*/broken_data"}
    assert "is not valid YAML" in broken["broken_row"]
    assert "Did you mean 'reader'" in broken["*/broken_data"]
    assert any(cell.row.name == "mine" for cell in made.cells)
    named = SuiteDeclaration(description="", backbones=["broken_row"], tasks=["knn/my_squares"])
    with pytest.raises(ConfigError, match="is not valid YAML"):
        make_plan(named, workspace)
    with pytest.raises(ConfigError, match="Did you mean 'reader'"):
        plan.columns_of(["knn/*"])


def test_whole_pattern__a_data_set_or_a_protocol_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue(tmp_path / "c", monkeypatch, protocols="{knn: {}, linear_probe: {}}")
    assert plan.whole_pattern("my_squares") == "*/my_squares"
    assert plan.whole_pattern("birds", ["birds"]) == "*/birds"
    assert plan.whole_pattern("knn") == "knn/*"
    assert plan.whole_pattern("knn/x") == "knn/x"
    file = str(tmp_path / "c/tasks/my_squares.yaml")
    assert plan.whole_pattern(file) == f"*/{file}"
    assert [column.name for column in plan.columns_of([file])] == [
        "linear_probe/my_squares",
        "knn/my_squares",
    ]
    with pytest.raises(UnknownNameError, match=r"Did you mean 'my_squares'.*or left out"):
        plan.whole_pattern("my_square")
    assert plan.Named.of([], ["my_squares"]).datasets == {"my_squares"}


def test_unfit__a_missing_extra_has_its_own_exit_code(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue(tmp_path / "c", monkeypatch)

    class NeedsMore(KNN):
        def missing_packages(self) -> list[str]:
            return ["mmseg"]

        def left_out(self, task: object, backbone: object) -> str:
            return "mmseg is not installed"

    monkeypatch.setitem(PROTOCOLS._loaded, "knn", NeedsMore())
    (item,) = planned(workspace, named=plan.Named.of(["mine"], ["knn/my_squares"])).left_out
    assert isinstance(item.error, MissingDependencyError)
    assert "mmseg is not installed" in str(item.error)
    (item,) = planned(workspace).left_out
    assert item.error is None
