from __future__ import annotations

import pytest

from maskclip_bench.backbones import backbone_names, load_backbone_declaration
from maskclip_bench.errors import ConfigError, UnknownNameError

from .conftest import declare


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "exactly one of recipe, open_clip, .*; got none"),
        ({"recipe": "a", "timm": "b"}, "got recipe, timm"),
        ({"open_clip": "ViT-B-16"}, "needs pretrained: the tag"),
        ({"timm": "vit", "pretrained": "openai"}, "pretrained goes with open_clip, not with timm"),
        ({"recipe": "a", "checkpoint": "b"}, "checkpoint goes with timm, not with recipe"),
        ({"timm": "a", "arguments": {"b": 1}}, "arguments goes with python, not with timm"),
        ({"timm": "a", "weights": "teacher"}, "weights goes with recipe, not with timm"),
        ({"recipes": "a"}, "got none. Did you mean 'recipe'"),
        ({"timm": "a", "chekpoint": "b"}, "unknown key .source.chekpoint. of timm. Did you mean"),
        ({"timm": 3}, "timm.: Input should be a valid string"),
    ],
)
def test_source__one_and_what_goes_with_it(source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declare(source=source)


def test_source__made_here() -> None:
    assert declare(source={"recipe": "demo/clip"}).made_here
    assert not declare(source={"recipe": "demo/clip", "random_init": True}).made_here
    assert not declare(source={"timm": "vit"}).made_here


def test_capabilities__are_asked_of_the_family() -> None:
    drawn = declare(source={"open_clip": "ViT-B-16", "random_init": True})
    assert drawn.family.name == "open_clip"
    assert (drawn.has_text, drawn.depends_on_seed, drawn.downloads_by_itself) == (True, True, False)
    timm = declare(source={"timm": "vit"})
    assert (timm.has_text, timm.depends_on_seed, timm.downloads_by_itself) == (False, False, True)
    assert timm.has_vision_trunk
    assert not declare(source={"timm": "vit", "checkpoint": "w.pth"}).downloads_by_itself
    recipe = declare(source={"recipe": "demo/clip"})
    assert (recipe.recipe, recipe.depends_on_seed) == ("demo/clip", True)
    assert not declare(source={"huggingface": "a/b"}).has_vision_trunk


def test_load__name_is_the_files() -> None:
    row = load_backbone_declaration("maskclip_vit-demo_demo")
    assert (row.name, row.display_name, row.world) == ("maskclip_vit-demo_demo", "MaskCLIP", "demo")


def test_load__unknown() -> None:
    with pytest.raises(UnknownNameError, match=r"No backbone 'mask_clip_vit-demo_demo'. Did you"):
        load_backbone_declaration("mask_clip_vit-demo_demo")


@pytest.mark.parametrize("name", backbone_names())
def test_catalogue__every_row_says_what_it_is(name: str) -> None:
    row = load_backbone_declaration(name)
    assert row.method
    assert row.arch
    assert row.pretrain_data


def test_teacher_row__is_the_same_run() -> None:
    student = load_backbone_declaration("maskclip_vit-b-16_yfcc15m")
    teacher = load_backbone_declaration("maskclip_teacher_vit-b-16_yfcc15m")
    assert teacher.source == student.source.model_copy(update={"weights": "teacher"})
    assert teacher.preprocess == student.preprocess
