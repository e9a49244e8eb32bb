"""Features as tensors and files: pooled, joint, class, patch and text, of any layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import maskclip_bench as mb
from maskclip_bench.backbones import Backbone, as_backbone
from maskclip_bench.cli.app import run
from maskclip_bench.errors import ConfigError, DataError

TIMM = "random_init_vit-demo_demo"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(5):
        path = tmp_path / f"birds/{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (60, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path / "birds"


@pytest.fixture(scope="module")
def row() -> Backbone:
    return mb.load_backbone(TIMM, device="cpu")


def plain(row: Backbone, folder: Path) -> Tensor:
    """The images as the trunk gets them."""
    images = [row.image_tensor(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    return row.transform.normalize(torch.stack(images))


def test_kinds_and_layers(row: Backbone, folder: Path) -> None:
    images = plain(row, folder)
    trunk: Any = row.vision_trunk()
    with torch.no_grad():
        layers = trunk.forward_intermediates(
            images, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        outputs = row.image_outputs(images)
    for layer in (0, 2, -1):
        patches, prefix = layers[layer]
        found = mb.embed(row, folder, kind="patch", layer=layer)
        assert torch.allclose(found, patches, atol=1e-5)
        found = mb.embed(row, folder, kind="class", layer=layer)
        assert torch.allclose(found, prefix[:, 0], atol=1e-5)
    assert torch.allclose(mb.embed(row, folder), outputs["backbone"], atol=1e-6)
    assert torch.allclose(mb.embed(row, folder, kind="joint"), outputs["joint"], atol=1e-6)
    assert mb.embed(row, folder, limit=2).shape[0] == 2


def test_texts_stay_in_their_order(row: Backbone) -> None:
    texts = ["a very long text about birds", "a", "two words"]
    found = mb.embed(row, texts=texts)
    for index, text in enumerate(texts):
        assert torch.allclose(found[index], row.encode_text([text])[0], atol=1e-5)


def test_parquet(row: Backbone, folder: Path, tmp_path: Path) -> None:
    shape = mb.embed(row, folder, kind="patch", output=tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert shape == (5, 36, 96)
    assert table.column_names == ["sample_id", "features"]
    assert table["sample_id"].to_pylist()[0] == "0/0.png"
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert (metadata["shape"], metadata["kind"], metadata["row"]) == ("36x96", "patch", TIMM)
    values = np.array(table["features"].to_pylist(), dtype=np.float32).reshape(shape)
    expected = mb.embed(row, folder, kind="patch")
    assert isinstance(expected, Tensor)
    assert np.allclose(values, expected.numpy())


def test_safetensors(row: Backbone, tmp_path: Path) -> None:
    mb.embed(row, texts=["a bird", "a bat"], output=tmp_path / "out.safetensors")
    with safe_open(str(tmp_path / "out.safetensors"), "pt") as file:  # type: ignore[no-untyped-call]
        assert file.get_tensor("features").shape == (2, row.encode_text(["x"]).shape[1])
        assert json.loads(file.metadata()["sample_ids"]) == ["00000000", "00000001"]


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "f.parquet"
    words = ["embed", TIMM, str(folder), "--kind", "class", "--layer", "1", "-o", str(output)]
    with pytest.raises(SystemExit) as ended:
        run([*words, "--device", "cpu"])
    assert not ended.value.code
    assert "Wrote 5 x 96 to" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        run([*words, "--precision", "fp8"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give either data .images. or texts"),
        ({"kind": "text", "data": "."}, "kind text does not go with images"),
        ({"kind": "patch", "texts": ["a"]}, "kind patch does not go with texts"),
        ({"kind": "smell", "data": "."}, "No features of kind 'smell'. Choose one of: pooled"),
        ({"layer": 2, "data": "."}, "pooled features are of the whole model"),
    ],
)
def test_refused(row: Backbone, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mb.embed(row, **arguments)


def test_patches_of_an_own_encoder(folder: Path) -> None:
    class Eyes:
        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

        def patch_tokens(self, images: torch.Tensor) -> torch.Tensor:
            return images.unfold(2, 24, 24).unfold(3, 24, 24).mean(dim=(4, 5)).flatten(2).mT

    options: dict[str, Any] = {"image_size": 48, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    eyes = as_backbone(Eyes(), **options, name="eyes")
    found = mb.embed(eyes, folder, kind="patch")
    assert found.shape[1:] == (4, 3)
    torch.testing.assert_close(found.mean(dim=1), mb.embed(eyes, folder))


def test_models_without_what_is_asked_for(folder: Path, tmp_path: Path, row: Backbone) -> None:
    options: dict[str, Any] = {"image_size": 48, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    blind = as_backbone(lambda images: images.mean(dim=(2, 3)), **options, name="blind")
    with pytest.raises(ConfigError, match="blind has no text tower, so it has no joint features"):
        mb.embed(blind, folder, kind="joint")
    with pytest.raises(ConfigError, match="There is no layer 9: VisionTransformer has 4 blocks"):
        mb.embed(row, folder, kind="patch", layer=9)
    with pytest.raises(DataError, match=r"holds no image. Give a folder with images below it"):
        (tmp_path / "empty").mkdir()
        mb.embed(row, tmp_path / "empty")
    convolutional = as_backbone(timm.create_model("resnet18", num_classes=0), **options, name="cnn")
    with pytest.raises(
        ConfigError, match=r"is no ViT, so it has no tokens of a layer|no feature maps"
    ):
        mb.embed(convolutional, folder, kind="patch", layer=0)
    with pytest.raises(ConfigError, match="or give an encoder of your own a method patch_tokens"):
        mb.embed(blind, folder, kind="patch")
    with pytest.raises(ConfigError, match=r"features go to a file that ends with .parquet or"):
        mb.embed(row, folder, output=tmp_path / "features.csv")
