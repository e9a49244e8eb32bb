"""Every row of `backbones/` builds as its library ships it, on `meta`: no weights, no download."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import timm
import torch

from maskclip_bench.backbones import backbone_names, load_backbone_declaration
from maskclip_bench.backbones.encoders import OpenClipEncoder, TimmEncoder
from maskclip_bench.backbones.families.open_clip import OpenClipSource
from maskclip_bench.backbones.families.recipe import RecipeSource, _read_recipe
from maskclip_bench.backbones.families.slip import SLIPSource, build
from maskclip_bench.backbones.families.timm import TimmSource
from maskclip_bench.modeling.model import build_model


def on_meta(source: Any) -> tuple[Any, int]:
    """The encoder of a source without weights, and the side of its images."""
    with torch.device("meta"):
        if isinstance(source, TimmSource):
            trunk = timm.create_model(source.timm, pretrained=False, num_classes=0)
            return TimmEncoder(trunk), trunk.default_cfg["input_size"][-1]
        if isinstance(source, OpenClipSource):
            model = open_clip.create_model(source.open_clip, pretrained=None, device="meta")
        elif isinstance(source, SLIPSource):
            model = build(source.size)
        else:
            assert isinstance(source, RecipeSource)
            model = build_model(_read_recipe(source.recipe)[0])
    size = model.visual.image_size
    return OpenClipEncoder(model, lambda texts: torch.zeros(0)), size if isinstance(
        size, int
    ) else size[0]


def described(source: Any) -> str:
    if isinstance(source, SLIPSource):
        return source.size
    return str({**source.model_dump(exclude_defaults=True), "pretrained": ""})


ROWS = {name: load_backbone_declaration(name) for name in backbone_names()}
DISTINCT = {described(row.source): name for name, row in ROWS.items()}
"""Rows that differ only in their weights are built once."""


@pytest.mark.parametrize("name", sorted(DISTINCT.values()))
def test_builds_on_meta_and_gives_vectors(name: str) -> None:
    source: Any = ROWS[name].source
    encoder, size = on_meta(source)
    with torch.no_grad(), torch.device("meta"):
        outputs = encoder.image_outputs(torch.zeros(2, 3, size, size))
    assert all(value.ndim == 2 and len(value) == 2 for value in outputs.values())
    assert ("joint" in outputs) == bool(ROWS[name].has_text)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_weights_are_known_to_the_library(name: str) -> None:
    source: Any = ROWS[name].source
    if isinstance(source, OpenClipSource) and not source.random_init:
        assert (source.open_clip, source.pretrained) in open_clip.list_pretrained()
    if isinstance(source, TimmSource) and source.checkpoint is None and not source.random_init:
        assert source.timm in timm.list_models(pretrained=True)


def test_every_family_of_the_comparison_has_a_row() -> None:
    methods = {row.method for row in ROWS.values()}
    wanted = {"DINOv3", "SigLIP 2", "TIPSv2", "PE-Core", "MetaCLIP 2", "MobileCLIP 2"}
    assert wanted | {"EVA-02 MIM", "EVA-02-CLIP", "CLIP", "SLIP"} <= methods
