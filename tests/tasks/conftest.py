"""A world of coloured squares, and encoders that see colours: scores are known in advance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.encoders import PythonEncoder
from maskclip_bench.backbones.families import read_source
from maskclip_bench.backbones.loading import Backbone
from maskclip_bench.backbones.transform import Transform
from maskclip_bench.config import validate
from maskclip_bench.results.measurement import Measurement
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, TaskDeclaration
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.measure import measure
from maskclip_bench.tasks.protocols.base import ProtocolContext
from maskclip_bench.testing import tiny_images

MakeContext = Callable[..., ProtocolContext]
"""The fixture `make_context`: (protocol, task, encoder) -> context."""

CLASSIFICATION = ("zero_shot_classification", "linear_probe", "knn", "few_shot")
"""Protocols of frozen features that end in class scores."""

SIZE = 8
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 220, 30),
    "blue": (30, 30, 220),
    "yellow": (220, 220, 30),
    "purple": (220, 30, 220),
    "cyan": (30, 220, 220),
}


class ColourEncoder:
    """Joint space: colour relative to grey. Backbone features: the same, and some noise."""

    def __init__(self) -> None:
        self.images_seen = 0
        self.texts_seen: list[str] = []

    def encode_image(self, images: Tensor) -> Tensor:
        self.images_seen += len(images)
        return images.mean(dim=(2, 3)) - 0.5

    def forward_features(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :: SIZE * 4]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        self.texts_seen += texts
        return torch.tensor([self.colour(text) for text in texts])

    @staticmethod
    def colour(text: str) -> list[float]:
        for name, value in COLOURS.items():
            if name in text:
                return [channel / 255 - 0.5 for channel in value]
        return [0.1, 0.1, 0.1]


class CollapsedEncoder(ColourEncoder):
    """Everything is the same to it."""

    def encode_image(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 7), 0.3)

    def forward_features(self, images: Tensor) -> Tensor:
        return torch.linspace(0.1, 3.0, 7).expand(len(images), -1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.full((len(texts), 7), 0.3)


class BlindEncoder:
    """An image encoder without a text tower."""

    def encode_image(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def make_backbone(encoder: object, name: str = "toy") -> Backbone:
    face = PythonEncoder(encoder)
    return Backbone(
        declaration=BackboneDeclaration(
            name=name, display_name="Toy", world="demo", source=read_source({"python": "toy:toy"})
        ),
        seed=0,
        model=nn.Identity(),
        encoder=face,
        transform=Transform(SIZE, SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        weights_fingerprint=f"{name} {type(encoder).__name__}",
        has_text=face.has_text,
        device=torch.device("cpu"),
    )


def square(colour: str, generator: np.random.Generator) -> Image.Image:
    noise = generator.normal(0, 12, (SIZE, SIZE, 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 4)):
        groups = {}
        for index, colour in enumerate(COLOURS):
            folder = root / "squares" / split / f"c{index}"
            folder.mkdir(parents=True)
            for image in range(number):
                square(colour, generator).save(folder / f"{image}.png")
                groups[f"c{index}/{image}.png"] = {"drawing": f"{colour}-{image % 2}"}
        (root / "squares" / f"{split}.json").write_text(json.dumps(groups))
    classes = [{"wnid": f"c{i}", "name": colour} for i, colour in enumerate(COLOURS)]
    (root / "squares" / "classes.json").write_text(json.dumps(classes))
    (root / "captions" / "images").mkdir(parents=True)
    images = []
    for colour in COLOURS:
        square(colour, generator).save(root / "captions" / "images" / f"{colour}.png")
        sentences = [{"raw": f"a {colour} square"}, {"raw": f"something {colour}"}]
        images.append({"filename": f"{colour}.png", "split": "test", "sentences": sentences})
    (root / "captions" / "dataset.json").write_text(json.dumps({"images": images}))
    shutil.copytree(root / "squares" / "val", root / "squares" / "tune")
    shutil.copy(root / "squares" / "val.json", root / "squares" / "tune.json")
    (root / "squares" / "again").symlink_to("train")
    shutil.copy(root / "squares" / "train.json", root / "squares" / "again.json")
    return root


def squares_task(**changes: object) -> TaskDeclaration:
    values: dict[str, object] = {
        "name": "squares",
        "display_name": "Squares",
        "world": "demo",
        "reader": {
            "kind": "image_folder",
            "root": "squares",
            "classes": "classes.json",
            "groups": {"file": "{split}.json", "field": "drawing"},
        },
        "splits": {"train": "train", "test": "val"},
        "prompt_sets": {"two": {"templates": ["a {} square", "{}"]}},
        "protocols": {
            "zero_shot_classification": {"prompts": "two"},
            "linear_probe": {},
            "knn": {},
            "few_shot": {},
        },
        "obtain": "draw it",
    }
    return validate({**values, **changes}, TaskDeclaration, where="squares")


def captions_task(**settings: object) -> TaskDeclaration:
    values = {
        "name": "captions",
        "display_name": "Captions",
        "world": "demo",
        "reader": {"kind": "karpathy", "root": "captions", "file": "dataset.json"},
        "splits": {"test": "test"},
        "protocols": {"retrieval": settings},
        "obtain": "draw it",
    }
    return validate(values, TaskDeclaration, where="captions")


@pytest.fixture
def workspace(tmp_path: Path, data_root: Path) -> Workspace:
    return Workspace(root=tmp_path / "workspace", data=data_root)


@pytest.fixture
def make_context(workspace: Workspace) -> Callable[..., ProtocolContext]:
    def make(protocol: str, task: TaskDeclaration, encoder: object) -> ProtocolContext:
        return ProtocolContext(
            task=task,
            settings=PROTOCOLS[protocol].settings_of(task),
            backbone=make_backbone(encoder),
            features=FeatureStore(workspace.features),
            workspace=workspace,
            device=torch.device("cpu"),
        )

    return make


def run(context: ProtocolContext, protocol: str) -> Measurement:
    """Measure the cell of a context the way that everything does."""
    return measure(
        PROTOCOLS[protocol],
        context.task,
        context.backbone,
        workspace=context.workspace,
        features=context.features,
        device=context.device,
        limit=context.limit,
    )


@pytest.fixture
def colour_backbone() -> Callable[[], Backbone]:
    """Makes a backbone that sees colours."""
    return lambda: make_backbone(ColourEncoder())


@pytest.fixture
def colours(tmp_path: Path) -> TaskDeclaration:
    """Three classes of coloured images below `tmp_path / "colours"`: 18 to train, 12 to test."""
    return tiny_images(tmp_path / "colours")
