"""Dense cells on bad input, on the command line: refused before training, recorded as failed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.data import readers
from maskclip_bench.tasks.dense_jobs import missing_packages

needs_mmseg = pytest.mark.skipif(bool(missing_packages("mmseg")), reason="needs mmseg")
needs_mmdet = pytest.mark.skipif(bool(missing_packages("mmdet")), reason="needs mmdet")

SCENES = """
display_name: tiny scenes
world: demo
reader: {{kind: ade20k, root: {root}, classes: classes.json}}
splits: {{train: training, test: validation}}
protocols:
  segmentation:
    configs: {{"*": configs/mmseg/demo/vit-demo_frozen-upernet_1xb4-500_demo-scenes-144x144.py}}
    preset: demo_frozen_upernet
  knn_segmentation: {{tiles: 1}}
obtain: "ask the author for the scenes"
"""

INSTANCES = """
display_name: tiny instances
world: demo
reader: {kind: coco_instances, root: tiny/instances}
splits: {train: train, test: val}
protocols:
  detection:
    configs: {"*": configs/mmdet/demo/vit-demo_frozen-mask-rcnn_1xb4-600_demo-instances-144x144.py}
    preset: demo_frozen_mask_rcnn
obtain: "ask the author for the instances"
"""

SUITE = """
description: a column that is here and one that is not
backbones: [tiny_untrained]
tasks: ["knn/tiny_objects", "*/absent_scenes"]
"""


@dataclass(frozen=True)
class Place:
    """A copy of the tiny data that may be spoilt, and the command line on it."""

    data: Path
    workspace: Path
    catalogue: Path
    command: Callable[..., Any]

    def run(self, *arguments: str) -> Any:
        readers.forget()  # a listing is kept for the life of the process
        return self.command("run", *arguments)

    def record(self, row: str, task: str) -> dict[str, Any]:
        path = self.workspace / "records" / row / f"{task.replace('/', '__')}.json"
        loaded: dict[str, Any] = json.loads(path.read_text())
        return loaded

    def assert_failed(
        self, result: Any, task: str, *, code: int, error: str, says: tuple[str, ...]
    ) -> None:
        """One failed record, the message on the screen, and no job that began."""
        assert result.code == code, result.errors
        record = self.record("tiny_untrained", task)
        assert record["status"] == "failed"
        assert record["metrics"] == {}
        assert record["error"]["type"] == error
        for part in says:
            assert part in record["error"]["message"]
        assert record["error"]["message"].splitlines()[0][:60] in result.output
        assert not list((self.workspace / "jobs").rglob("*.log"))


@pytest.fixture
def place(
    in_process: Callable[..., Any],
    tmp_path: Path,
    tiny_data: Path,
    tiny_catalogue: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    data, catalogue = tmp_path / "data", tmp_path / "catalogue"
    for name in ("scenes", "instances", "objects"):
        shutil.copytree(tiny_data / "tiny" / name, data / "tiny" / name)
    for folder in ("tasks", "backbones", "configs/suites"):
        (catalogue / folder).mkdir(parents=True)
    (catalogue / "tasks/tiny_scenes.yaml").write_text(SCENES.format(root="tiny/scenes"))
    (catalogue / "tasks/absent_scenes.yaml").write_text(SCENES.format(root="nowhere"))
    (catalogue / "tasks/tiny_instances.yaml").write_text(INSTANCES)
    (catalogue / "configs/suites/partly.yaml").write_text(SUITE)
    monkeypatch.setenv("MASKCLIP_BENCH_DATA", str(data))
    both = f"{catalogue}{os.pathsep}{tiny_catalogue}"
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", both)
    return Place(data, tmp_path / "workspace", catalogue, in_process)


def test_missing_folder__is_a_failure_where_it_was_asked_for_by_name(place: Place) -> None:
    task = "segmentation/absent_scenes"
    result = place.run("-b", "tiny_untrained", "-t", task)
    says = (f"no folder {place.data / 'nowhere'}", "ask the author", "MASKCLIP_BENCH_DATA")
    place.assert_failed(result, task, code=3, error="DataError", says=says)
    assert "1 cells: 0 recorded, 0 to measure" in result.errors
    assert "1 cannot be measured here" in result.errors
    shown = place.command("plan", "-b", "tiny_untrained", "-t", task)
    assert shown.code == 0
    assert "not possible" in shown.output


def test_missing_folder__a_suite_leaves_it_out_and_the_rest_goes_on(place: Place) -> None:
    result = place.run("--suite", "partly")
    assert result.code == 0, result.errors
    assert "Left out: 1 because its data is not on this machine" in result.output
    assert "absent_scenes" in place.command("plan", "--suite", "partly").output
    assert place.record("tiny_untrained", "knn/tiny_objects")["status"] == "ok"
    assert not (
        place.workspace / "records/tiny_untrained/knn_segmentation__absent_scenes.json"
    ).exists()

    # The data set is named, its protocols are not: each of them is a failed cell.
    result = place.run("--suite", "partly", "-t", "*/absent_scenes", "-t", "knn/tiny_objects")
    assert result.code == 3
    for protocol in ("segmentation", "knn_segmentation"):
        record = place.record("tiny_untrained", f"{protocol}/absent_scenes")
        assert record["status"] == "failed"
    assert "1 recorded" in result.errors


def test_row_without_weights__is_a_failure_where_it_was_asked_for_by_name(place: Place) -> None:
    (place.catalogue / "backbones/no_weights.yaml").write_text(
        "display_name: No weights\nworld: demo\nsource: {open_clip_folder: nowhere}\n"
        "obtain: copy them from the cupboard\n"
    )
    result = place.run("-b", "no_weights", "-b", "tiny_untrained", "-t", "knn/tiny_objects")
    assert result.code == 3
    record = place.record("no_weights", "knn/tiny_objects")
    assert record["error"]["type"] == "CheckpointError"
    assert "copy them from the cupboard" in record["error"]["message"]
    assert place.record("tiny_untrained", "knn/tiny_objects")["status"] == "ok"


def test_protocol_that_does_not_fit_the_row__is_a_failure_where_both_are_named(
    place: Place,
) -> None:
    (place.catalogue / "backbones/no_text.yaml").write_text(
        "display_name: No text\nworld: demo\n"
        "source: {timm: vit_demo_patch8_48, random_init: true}\n"
    )
    named = place.run("-b", "no_text", "-t", "zero_shot_classification/tiny_objects")
    assert named.code == 3
    record = place.record("no_text", "zero_shot_classification/tiny_objects")
    assert "has no text tower" in record["error"]["message"]
    assert place.run("-b", "no_text", "-t", "*/tiny_objects").code == 0


def test_row_and_column_of_two_worlds(place: Place) -> None:
    """Who names both gets the number; a suite alone never joins two worlds."""
    result = place.run("-b", "dino_vit-b-16_in1k", "-t", "knn/tiny_objects")
    assert result.code == 1
    assert "its weights are not in this machine's cache" in " ".join(result.output.split())
    result = place.run("--suite", "demo", "-b", "dino_vit-b-16_in1k")
    assert result.code == 2
    assert "There is no cell" in result.errors


@needs_mmseg
def test_masks_of_the_wrong_size(place: Place) -> None:
    mask = next((place.data / "tiny/scenes/annotations/validation").iterdir())
    Image.fromarray(np.ones((32, 64), np.uint8)).save(mask)
    task = "segmentation/tiny_scenes"
    result = place.run("-b", "tiny_untrained", "-t", task)
    says = ("masks in", "not of their image's size", "64 x 32", "of different releases")
    place.assert_failed(result, task, code=1, error="DataError", says=says)


@needs_mmdet
def test_annotations_that_name_absent_files(place: Place) -> None:
    next((place.data / "tiny/instances/val").glob("*.jpg")).unlink()
    task = "detection/tiny_instances"
    result = place.run("-b", "tiny_untrained", "-t", task)
    says = ("images that are not in", "Unpack the images again")
    place.assert_failed(result, task, code=1, error="DataError", says=says)


@needs_mmdet
def test_annotations_that_are_broken(place: Place) -> None:
    (place.data / "tiny/instances/annotations/instances_val.json").write_text("{")
    task = "detection/tiny_instances"
    result = place.run("-b", "tiny_untrained", "-t", task, "-t", "knn/tiny_objects")
    says = ("instances_val.json is not valid JSON", "Download it again")
    place.assert_failed(result, task, code=1, error="DataError", says=says)
    assert place.record("tiny_untrained", "knn/tiny_objects")["status"] == "ok"


@needs_mmseg
def test_checkpoint_of_another_architecture(place: Place) -> None:
    write_open_clip_folder(place.workspace / "exported", config_width=32)
    (place.catalogue / "backbones/other_architecture.yaml").write_text(
        "display_name: Other\nworld: demo\nsource: {open_clip_folder: exported}\n"
    )
    task = "segmentation/tiny_scenes"
    result = place.run("-b", "other_architecture", "-t", task)
    record = place.record("other_architecture", task)  # the job loads the row, so it says so
    assert (result.code, record["status"], record["metrics"]) == (1, "failed", {})
    for part in (str(place.workspace / "exported"), "cannot be loaded", "export it again"):
        assert part in record["error"]["message"]


def test_data_that_breaks_later__fails_without_costing_the_score_that_was_measured(
    place: Place,
) -> None:
    cells = ("-b", "tiny_untrained", "-t", "knn_segmentation/tiny_scenes", "-t", "knn/tiny_objects")
    assert place.run(*cells).code == 0
    task = "knn_segmentation/tiny_scenes"
    before = place.record("tiny_untrained", task)
    mask = next((place.data / "tiny/scenes/annotations/validation").iterdir())
    content = mask.read_bytes()
    mask.unlink()
    broken = place.run(*cells)
    assert broken.code == 1
    assert "1 recorded, 1 to measure" in broken.errors
    assert "1 images in" in broken.output
    assert "have no mask" in broken.output
    assert place.record("tiny_untrained", task) == before
    mask.write_bytes(content)
    assert "2 recorded, 0 to measure" in place.run(*cells).errors


def write_open_clip_folder(folder: Path, *, config_width: int) -> None:
    """Weights of a text tower of width 24 under a configuration that says another."""
    from safetensors.torch import save_file

    from maskclip_bench.config import validate
    from maskclip_bench.data.tokenizer import DEMO_MERGES, TokenizerConfig, load_tokenizer
    from maskclip_bench.modeling.model import DEMO_VIT, ModelConfig, build_model, open_clip_config

    vocabulary = load_tokenizer(TokenizerConfig(kind="demo", context_length=16)).vocab_size
    text = {"context_length": 16, "vocab_size": vocabulary, "width": 24, "num_heads": 2, "depth": 1}
    values = {"proj_dim": 12, "image_size": 48, "vision": {"timm_model": DEMO_VIT}, "text": text}
    model_config = validate(values, ModelConfig, where="model")
    config = open_clip_config(
        model_config,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        tokenizer_kwargs={"bpe_path": str(DEMO_MERGES)},
    )
    config["model_cfg"]["text_cfg"]["width"] = config_width
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = build_model(model_config).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        str(folder / "open_clip_model.safetensors"),
    )
