"""Finetuning and WiSE-FT on colours; the ends of WiSE-FT's curve are the two classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskclip_bench.backbones import Backbone, as_backbone
from maskclip_bench.errors import ConfigError
from maskclip_bench.results.measurement import Measurement
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, TaskDeclaration
from maskclip_bench.tasks.measure import measure
from maskclip_bench.testing import CLASSES, check_protocol
from tests.tasks.finetuning.tiny import SIZE, tiny_vit

SMALL = {"global_batch_size": 6, "micro_batch_size": 6, "epochs": 3, "lr": 3e-3}


class Reader(nn.Module):
    """A ViT with a projection, and a vector for each class name."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = tiny_vit()
        self.proj = nn.Linear(16, 5)
        self.words = nn.Embedding(3, 5)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.proj(self.visual(images))

    def encode_text(self, texts: list[str]) -> Tensor:
        index = [sum(i for i, name in enumerate(CLASSES) if name in text) for text in texts]
        return self.words(torch.tensor(index))


def reader() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = Reader()
    half = (0.5, 0.5, 0.5)
    return as_backbone(
        made, image_size=SIZE, mean=half, std=half, encode_text=made.encode_text, name="reader"
    )


def run(name: str, task: TaskDeclaration, root: Path, **settings: Any) -> Measurement:
    task = task.model_copy(update={"protocols": {name: settings}})
    workspace = Workspace(root=root / "ws", data=root)
    return measure(PROTOCOLS[name], task, reader(), workspace=workspace)


def test_wise_ft__alpha_0_and_1_are_the_two_ends(colours: TaskDeclaration, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "preset": "wise_ft",
        "prompts": "class_name_only",
        "options": SMALL,
        "also_test": {"train": "train"},
    }
    finetuned = run("finetune", colours, tmp_path, **settings)
    curve = run("finetune", colours, tmp_path, **settings, alphas=[0, 0.5, 1])
    zero_shot = run("zero_shot_classification", colours, tmp_path, prompts="class_name_only")
    value = {name: metric.value for name, metric in curve.metrics.items()}
    of_test = curve.outcomes.iloc[: len(zero_shot.outcomes)]
    first, last = of_test["top1_accuracy_alpha_0"], of_test["top1_accuracy_alpha_1"]
    assert first.tolist() == zero_shot.outcomes["top1_accuracy"].tolist()
    assert last.tolist() == finetuned.outcomes["top1_accuracy"].iloc[: len(of_test)].tolist()
    assert value["top1_accuracy_alpha_0"] != value["top1_accuracy_alpha_1"]
    assert value["top1_accuracy_train_alpha_1"] == value["top1_accuracy_train"]
    assert {"top1_accuracy_alpha_0.5", "top1_accuracy_train_alpha_0.5"} <= set(value)
    assert "mean_per_class_accuracy_alpha_0.5" not in value
    assert curve.preset == finetuned.preset


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"preset": "mae", "alphas": [0.5]}, "the one of mae begins at random. Use preset wise_ft"),
        ({"preset": "wise_ft", "prompts": "x", "alphas": [1.5]}, "from 0 to 1"),
        ({"preset": "wise_ft", "prompts": "x", "alphas": [1, 1.0]}, "give each once"),
        ({"preset": "wise_ft"}, "prompts go with preset wise_ft, which needs them"),
        ({"preset": "mae", "prompts": "x"}, "prompts go with preset wise_ft"),
    ],
)
def test_settings__what_does_not_fit(
    settings: dict[str, Any], text: str, colours: TaskDeclaration
) -> None:
    task = colours.model_copy(update={"protocols": {"finetune": settings}})
    with pytest.raises(ConfigError, match=text):
        PROTOCOLS["finetune"].settings_of(task)


@pytest.mark.parametrize("preset", ["slip_beit", "mae", "ft_clip", "wise_ft", "small", "demo"])
def test_presets__each_trains(preset: str, colours: TaskDeclaration, tmp_path: Path) -> None:
    options = {**SMALL, "epochs": 1, "warmup_epochs": 0.5, "precision": "fp32"}
    prompts = {"prompts": "class_name_only"} if preset == "wise_ft" else {}
    found = run("finetune", colours, tmp_path, preset=preset, options=options, **prompts)
    assert found.details["steps"] == 3
    assert 0 <= found.metrics["top1_accuracy"].value <= 1
    assert found.preset.startswith(f"{preset}+own-")


def test_conformance(colours: TaskDeclaration, tmp_path: Path) -> None:
    options = {**SMALL, "augmentation.flip": 0}
    settings = {"finetune": {"preset": "small", "options": options}}
    task = colours.model_copy(update={"protocols": settings})
    check_protocol(PROTOCOLS["finetune"], task, workspace=tmp_path)
