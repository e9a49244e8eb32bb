from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from maskclip_bench.backbones import load_backbone, resolve_backbone, row_name
from maskclip_bench.backbones.resolve import cell_name
from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.runtime import Workspace


@pytest.mark.parametrize(
    ("text", "source", "name"),
    [
        (
            "timm:vit_base_patch16_224.mae",
            {"timm": "vit_base_patch16_224.mae"},
            "timm-vit_base_patch16_224.mae",
        ),
        (
            "open_clip:ViT-B-16/laion2b_s34b_b88k",
            {"open_clip": "ViT-B-16", "pretrained": "laion2b_s34b_b88k"},
            "open_clip-ViT-B-16-laion2b_s34b_b88k",
        ),
        (
            "hf:google/siglip-base-patch16-224",
            {"huggingface": "google/siglip-base-patch16-224"},
            "hf-google-siglip-base-patch16-224",
        ),
        ("python:my.module:make", {"python": "my.module:make"}, "python-my.module-make"),
        ("recipe:demo/clip", {"recipe": "demo/clip"}, "recipe-demo-clip"),
    ],
)
def test_string_of_a_family(text: str, source: dict[str, str], name: str) -> None:
    row = resolve_backbone(text)
    assert row.source.model_dump(exclude_defaults=True) == source
    assert (row.name, row.display_name, row.world) == (name, text, "real")
    assert row_name(text) == name


def test_row_and_file(tmp_path: Path) -> None:
    assert resolve_backbone("random_init_vit-demo_demo").name == "random_init_vit-demo_demo"
    file = tmp_path / "mine.yaml"
    file.write_text("display_name: Mine\nworld: real\nsource: {timm: vit}\n")
    assert resolve_backbone(str(file)).display_name == "Mine"
    assert row_name(str(file)) == "mine"


def test_folder__open_clip_and_run(
    tmp_path: Path, workspace: Workspace, write_folder: Callable[..., Path]
) -> None:
    folder = write_folder(tmp_path / "run" / "model")
    row = resolve_backbone(str(tmp_path / "run"))
    assert row.source.model_dump() == {"open_clip_folder": str(folder)}
    assert resolve_backbone(str(folder)).source == row.source
    assert load_backbone(row, workspace=workspace).has_text


def test_folder__hugging_face_and_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no model: neither open_clip_config.json"):
        resolve_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert resolve_backbone(str(tmp_path)).family.name == "huggingface"


def test_problems() -> None:
    with pytest.raises(UnknownNameError, match=r"No backbone 'tim:vit'.*a model of a family: rec"):
        resolve_backbone("tim:vit")
    with pytest.raises(ConfigError, match=r"names no model. Write it after the colon"):
        resolve_backbone("timm:")
    with pytest.raises(ConfigError, match=r"names no weights. Write open_clip:ARCHITECTURE/TAG"):
        resolve_backbone("open_clip:ViT-B-16")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("python:my_encoder:make/knn/birds", "python-my_encoder-make/knn/birds"),
        ("hf:google/siglip/*/birds", "hf-google-siglip/*/birds"),
        ("path/mine.yaml/knn/birds", "mine/knn/birds"),
        ("clip_vit-demo_demo__seed1/knn/*", "clip_vit-demo_demo__seed1/knn/*"),
        ("clip*/*/*", "clip*/*/*"),
        ("clip", "clip"),
    ],
)
def test_cell_name__the_row_as_it_is_recorded(text: str, name: str) -> None:
    assert cell_name(text) == name
