"""What holds for every family: the contract of `families.base`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from maskclip_bench.backbones.families import FAMILIES, Family, read_source
from maskclip_bench.backbones.families.base import Source
from maskclip_bench.errors import ConfigError
from maskclip_bench.runtime import Workspace

from .conftest import declare

ONE = {
    "recipe": {"recipe": "demo/clip"},
    "open_clip": {"open_clip": "ViT-B-16", "pretrained": "openai"},
    "open_clip_folder": {"open_clip_folder": "x"},
    "timm": {"timm": "vit_base_patch16_224.mae"},
    "huggingface": {"huggingface": "a/b"},
    "slip": {"slip": "slip_base_25ep"},
    "python": {"python": "a:b"},
}


@pytest.mark.parametrize("name", FAMILIES.names())
def test_family__keeps_the_contract(name: str, workspace: Workspace) -> None:
    family = FAMILIES[name]
    assert isinstance(family, Family)
    assert family.name == name == family.source_model.family_name
    required = [k for k, field in family.source_model.model_fields.items() if field.is_required()]
    assert required == [name]
    source = read_source(ONE[name])
    assert source.family is family
    assert family.has_text(source) in (True, False, None)
    for answer in (
        family.depends_on_seed(source),
        family.downloads_by_itself(source),
        family.has_vision_trunk(source),
    ):
        assert isinstance(answer, bool)
    missing = family.missing(declare(source=ONE[name]), workspace, 0)
    assert missing is None or missing


def test_families__are_asked_without_torch() -> None:
    code = (
        "import sys; from maskclip_bench.backbones import load_backbone_declaration as load; "
        "rows = [load(n) for n in ('mae_vit-b-16_in1k', 'openai_vit-b-16', "
        "'random_init_vit-demo_demo')]; "
        "print([r.has_text for r in rows], [r.depends_on_seed for r in rows], "
        "[m for m in ('torch', 'timm', 'open_clip', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[False, True, True] [False, False, True] []"


class GivenSource(Source):
    given: str


class Given(Family):
    name = "given"
    source_model = GivenSource

    def has_text(self, source: GivenSource) -> bool | None:
        return False

    def missing(self, declaration, workspace, seed):  # type: ignore[no-untyped-def]
        return None

    def contents(self, declaration, workspace, seed):  # type: ignore[no-untyped-def]
        return declaration.source.given

    def load(self, declaration, workspace, seed):  # type: ignore[no-untyped-def]
        raise NotImplementedError


def test_family_of_another_package__is_chosen_by_its_key(workspace: Workspace) -> None:
    FAMILIES.register("given", Given())
    try:
        row = declare(source={"given": "this"})
        assert (row.family.name, row.has_text) == ("given", False)
        with pytest.raises(ConfigError, match=r"gives no feature maps"):
            row.family.vision_trunk(__import__("torch").nn.Identity())
        with pytest.raises(ConfigError, match=r"given goes with given, not with timm|exactly one"):
            declare(source={"timm": "a", "given": "b"})
    finally:
        FAMILIES.unregister("given")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"timm": "a", "checkpoint": "b", "random_init": True},
            "checkpoint and random_init exclude each other",
        ),
        (
            {"open_clip": "a", "pretrained": "b", "random_init": True},
            "pretrained and random_init exclude each other",
        ),
    ],
)
def test_drawn_or_loaded(source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declare(source=source)
