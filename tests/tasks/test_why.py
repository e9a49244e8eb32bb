"""What changed since a cell was recorded: every kind of change is noticed, and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.execution import Execution
from maskclip_bench.tasks.plan import Named, make_plan
from maskclip_bench.tasks.suite import SuiteDeclaration
from maskclip_bench.tasks.why import Why, differences, explain

from .test_execution import Quiet

ENCODER = """
import torch
WEIGHT = {weight}
class Encoder:
    preprocess = {{"image_size": 8, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}}
    def encode_image(self, images):
        return images.mean(dim=(2, 3)) * WEIGHT + 0.1
    def encode_text(self, texts):
        return torch.tensor([[1.0, 0.2, 0.1]]).expand(len(texts), -1)
def make():
    return Encoder()
"""
ROW = """
display_name: Mine
world: real
source: {python: "why_encoder:make"}
"""
TASK = """
display_name: Squares
world: real
reader: {kind: image_folder, root: squares, classes: classes.json}
splits: {train: train, test: val}
prompt_sets: {p: {templates: ["a {}"]}}
protocols: {knn: {}, zero_shot_classification: {prompts: p}}
obtain: draw it
"""


class World:
    """A catalogue, data and an encoder that a test may change."""

    def __init__(self, root: Path, data_root: Path) -> None:
        self.root = root
        self.row = root / "catalogue/backbones/mine.yaml"
        self.task = root / "catalogue/tasks/mine_squares.yaml"
        self.encoder = root / "modules/why_encoder.py"
        self.data = root / "data"
        shutil.copytree(data_root / "squares", self.data / "squares")
        for path, text in (
            (self.row, ROW),
            (self.task, TASK),
            (self.encoder, ENCODER.format(weight=1.0)),
        ):
            path.parent.mkdir(parents=True)
            path.write_text(text)
        self.workspace = Workspace(root=root / "workspace", data=self.data)

    def suite(self) -> SuiteDeclaration:
        return SuiteDeclaration(
            description="",
            backbones=["mine"],
            tasks=["knn/mine_squares", "zero_shot_classification/mine_squares"],
        )

    def edit(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def measure(self) -> None:
        import torch

        plan = make_plan(self.suite(), self.workspace, named=Named())
        result = Execution(
            plan, self.workspace, device=torch.device("cpu"), num_jobs=1, listener=Quiet()
        ).run()
        assert not result.failed, result.failed[0].error

    def why(self, protocol: str = "zero_shot_classification") -> Why:
        import importlib
        import sys

        from maskclip_bench.data.readers import forget

        forget()
        importlib.invalidate_caches()
        sys.modules.pop("why_encoder", None)
        return explain(f"mine/{protocol}/mine_squares", self.workspace)


@pytest.fixture
def world(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, data_root)
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.setenv("MASKCLIP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return made


def swap_two_images(world: World) -> None:
    """Other content under the same names; the sizes may differ or not."""
    one, two = (world.data / "squares/val" / name for name in ("c0/0.png", "c1/0.png"))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def same_size_and_time(world: World) -> None:
    """One byte of an image, with its time set back: only an old listing would miss it."""
    path = world.data / "squares/val/c2/1.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.unlink()  # a new file
    path.write_bytes(bytes(content))


CHANGES: dict[str, tuple[Callable[[World], object], str]] = {
    "code": (
        lambda w: w.encoder.write_text(ENCODER.format(weight=2.0)),
        "weights",
    ),
    "preprocess of the row": (
        lambda w: w.row.write_text(ROW + "preprocess: {interpolation: bilinear}\n"),
        "preprocess",
    ),
    "images swapped": (swap_two_images, "data"),
    "one byte": (same_size_and_time, "data"),
    "an image more": (
        lambda w: (
            shutil.copy(w.data / "squares/val/c0/0.png", w.data / "squares/val/c0/9.png") and None
        ),
        "data",
    ),
    "an image less": (lambda w: (w.data / "squares/val/c0/0.png").unlink(), "data"),
    "a label": (
        lambda w: (w.data / "squares/val/c0/0.png").replace(w.data / "squares/val/c1/7.png"),
        "data",
    ),
    "names of classes": (
        lambda w: w.edit(w.data / "squares/classes.json", "purple", "violet"),
        "data",
    ),
    "another split": (lambda w: w.edit(w.task, "test: val", "test: train"), "data"),
    "settings": (
        lambda w: w.edit(w.task, "{prompts: p}", "{prompts: class_name_only}"),
        "settings",
    ),
    "class names of the task": (
        lambda w: w.task.write_text(TASK + "class_names: {lower: true}\n"),
        "class_names",
    ),
    "prompts": (lambda w: w.edit(w.task, '"a {}"', '"the {}"'), "prompts"),
    "version of the task": (
        lambda w: w.task.write_text(TASK + "task_version: 2\n"),
        "versions",
    ),
    "version of the prompts": (
        lambda w: w.edit(w.task, '["a {}"]', '["a {}"], version: 2'),
        "versions",
    ),
}


def test_explain__unchanged_holds_and_every_change_is_named(world: World) -> None:
    assert world.why().record is None
    world.measure()
    assert world.why().holds
    assert world.why("knn").holds
    files = {p: p.read_bytes() for p in world.root.rglob("*") if p.is_file()}
    for name, (change, part) in CHANGES.items():
        change(world)
        why = world.why()
        assert not why.holds, name
        assert part in why.changes, (name, why.changes)
        plan = make_plan(world.suite(), world.workspace)
        assert plan.open_cells, name
        for path in world.data.rglob("*"):
            if path.is_file() and path not in files:
                path.unlink()
        for path, content in files.items():
            if world.workspace.root not in path.parents and (
                not path.exists() or path.read_bytes() != content
            ):
                path.write_bytes(content)
        assert world.why().holds, f"undone: {name}"


def test_explain__knn_does_not_look_at_prompts_it_has_not(world: World) -> None:
    world.measure()
    world.edit(world.task, "{prompts: p}", "{prompts: class_name_only}")
    assert world.why("knn").holds


@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        ("mine/knn", ConfigError, "is no cell. Write row/protocol/data set"),
        ("mine//mine_squares", ConfigError, "is no cell"),
        ("mine__seedx/knn/mine_squares", ConfigError, "after __seed comes a whole number"),
        ("mine/knm/mine_squares", UnknownNameError, "Did you mean"),
        ("mime/knn/mine_squares", UnknownNameError, "Did you mean 'mine'"),
    ],
)
def test_explain__wrong_names(
    cell: str, error: type[Exception], message: str, world: World
) -> None:
    with pytest.raises(error, match=message):
        explain(cell, world.workspace)


def test_differences__of_software() -> None:
    then = {"maskclip_bench": "1", "python": "3.10", "libraries": {"torch": "2.4", "timm": "1"}}
    now = json.loads(json.dumps(then))
    assert differences(then, now) == {}
    now["libraries"]["torch"] = "2.5"
    now["python"] = "3.11"
    assert differences(then, now) == {"python": ("3.10", "3.11"), "torch": ("2.4", "2.5")}
    assert differences({}, {"python": "3.11"}) == {"python": ("None", "3.11")}
