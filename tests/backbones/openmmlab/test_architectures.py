"""Kinds of image encoders as backbones: features of the source, any size, or one clear refusal.

Each is built small (its own class, options and stem; narrower and shallower), with random weights.
At its native size the last map equals the source's own tokens to 1e-5; at another, oblong size it
equals the source made for that size, where the library has a way to say so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from open_clip.model import _build_vision_tower
from torch import Tensor, nn

from maskclip_bench.backbones.openmmlab import trunk_backbone
from maskclip_bench.backbones.openmmlab.pyramid import MaskCLIPPyramid
from maskclip_bench.backbones.openmmlab.trunk_sources import Built
from maskclip_bench.backbones.openmmlab.vit import MaskCLIPViT
from maskclip_bench.errors import ConfigError

VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}


@dataclass(frozen=True)
class Case:
    """A model of timm made small.

    Attributes:
        name: In timm.
        arguments: Of `create_model`.
        size: Native side in pixels.
        other: Height and width of the images of another size.
        resize: How the source is made for that size: "set_input_size", or "dynamic" (an argument).
        norm: Whether the patch tokens have a norm at the end.
        refused: Pattern of the error at another size, where there is one.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    size: int = 64
    other: tuple[int, int] = (48, 80)
    resize: str = "set_input_size"
    norm: bool = True
    refused: str | None = None


ONE_GRID = r"relative positions of this \w+ are made for a grid of .*Set img_size="
VITS: dict[str, Case] = {
    "ViT": Case("vit_base_patch16_224", VIT),
    "MAE": Case("vit_base_patch16_224.mae", VIT),
    "DINO": Case("vit_base_patch16_224.dino", VIT),
    "DINOv2": Case("vit_small_patch14_dinov2", VIT, 56, (42, 70)),
    "DINOv2 with registers": Case("vit_small_patch14_reg4_dinov2", VIT, 56, (42, 70)),
    "DINOv3": Case("vit_small_patch16_dinov3", VIT, resize="dynamic"),
    "DeiT, distilled": Case("deit_tiny_distilled_patch16_224", VIT),
    "DeiT III": Case("deit3_small_patch16_224", VIT),
    "CLIP (timm)": Case("vit_base_patch32_clip_224", VIT, 64, (32, 96)),
    "SigLIP": Case("vit_base_patch16_siglip_224", VIT),
    "FlexiViT": Case("flexivit_small", VIT),
    "average pooling": Case("vit_base_patch16_rpn_224", VIT, norm=False),
    "SO150M": Case("vit_so150m_patch16_reg4_gap_256", VIT),
    "EVA": Case("eva_giant_patch14_224", {**VIT, "mlp_ratio": 4.0}, 56, (42, 70), norm=False),
    "EVA-02": Case("eva02_tiny_patch14_224", VIT, 56, (42, 70), norm=False),
    "EVA-02 CLIP": Case("eva02_base_patch16_clip_224", VIT),
    "PE": Case("vit_pe_core_tiny_patch16_384", VIT),
    "rotary, mixed": Case("vit_small_patch16_rope_mixed_224", VIT),
    "rotary, registers": Case("vit_medium_patch16_rope_reg1_gap_256", VIT, norm=False),
    "hybrid, ResNet": Case("vit_tiny_r_s16_p8_224", VIT, 64, (64, 96), resize=""),
    "BEiT": Case("beit_base_patch16_224", VIT, norm=False, refused=ONE_GRID),
    "BEiT v2": Case("beitv2_base_patch16_224", VIT, norm=False, refused=ONE_GRID),
    "relative, MLP": Case("vit_relpos_small_patch16_224", VIT, norm=False, refused=ONE_GRID),
    "relative, shared": Case("vit_srelpos_small_patch16_224", VIT, refused=ONE_GRID),
    "relative, class token": Case(
        "vit_relpos_base_patch16_clsgap_224", VIT, norm=False, refused=ONE_GRID
    ),
}


def source_of(case: Case, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(case.name, img_size=case.size, **case.arguments, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # norms, biases and tables are no zeros and ones
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def backbone_of(
    monkeypatch: pytest.MonkeyPatch, trunk: nn.Module, kind: type = MaskCLIPViT, **given: Any
) -> Any:
    monkeypatch.setattr(trunk_backbone, "build_trunk", lambda source: Built(trunk, None, True))
    return kind(timm="vit_tiny_patch16_224", **given).eval()


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2))


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("name", VITS)
def test_vit__native_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both maps, the last one normed as the source norms it; with and without a tap before."""
    case = VITS[name]
    source, pictures = source_of(case), images(case.size, case.size)
    expected = source.forward_features(pictures)[:, source.num_prefix_tokens :]
    between = source.forward_intermediates(pictures, indices=[0], intermediates_only=True)[0]
    found = backbone_of(monkeypatch, source_of(case), out_indices=(0, 1), final_norm=case.norm)(
        pictures
    )
    torch.testing.assert_close(found[0], between, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens(found[1]), expected, atol=1e-5, rtol=1e-5)
    if not case.norm:
        with pytest.raises(ConfigError, match=r"normalizes what it pools.* Set final_norm=False"):
            backbone_of(monkeypatch, source_of(case))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of timm's resampling of relative positions
@pytest.mark.parametrize("name", VITS)
def test_vit__another_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = VITS[name]
    pictures = images(*case.other)
    backbone = backbone_of(monkeypatch, source_of(case), final_norm=case.norm)
    if case.refused is not None:
        with pytest.raises(ConfigError, match=case.refused):
            backbone(pictures)
    else:
        found = backbone(pictures)[0]
        patch = backbone.patch_size
        assert found.shape[2:] == (case.other[0] // patch[0], case.other[1] // patch[1])
    if case.resize == "dynamic":
        source = source_of(case, dynamic_img_size=True)
    else:
        source = source_of(case)
        if case.resize:
            source.set_input_size(case.other)
    if case.resize:
        expected = source.forward_features(pictures)[:, source.num_prefix_tokens :]
        if case.refused is None:
            torch.testing.assert_close(tokens(found), expected, atol=1e-5, rtol=1e-5)
        if case.resize == "set_input_size":
            once = backbone_of(
                monkeypatch, source_of(case), final_norm=case.norm, img_size=case.other
            )
            torch.testing.assert_close(tokens(once(pictures)[0]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VITS)
def test_vit__trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stochastic depth, recomputed blocks, and a gradient and a layer for every parameter."""
    case = VITS[name]
    backbone = backbone_of(
        monkeypatch, source_of(case), final_norm=case.norm, drop_path_rate=0.1, with_cp=True
    ).train()
    backbone.vit.trunk.train()
    backbone(images(case.size, case.size))[0].square().mean().backward()
    absent = [
        key
        for key, value in backbone.named_parameters()
        if value.requires_grad and value.grad is None
    ]
    assert absent == []
    layers = {backbone.layer_of(key) for key, _ in backbone.named_parameters()}
    assert layers == set(range(4 if case.norm else 3))
    decays = {
        key.split(".")[-1]
        for key, value in backbone.named_parameters()
        if backbone.has_weight_decay(key, value)
    }
    assert decays <= {"weight", "freqs"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["EVA-02", "DINOv3", "rotary, mixed", "hybrid, ResNet", "PE"])
def test_vit__windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window as large as the grid is global attention; a smaller one is not."""
    case = VITS[name]
    pictures = images(*case.other)
    given = {"final_norm": case.norm}
    whole = backbone_of(monkeypatch, source_of(case), **given)(pictures)[0]
    same = backbone_of(monkeypatch, source_of(case), window_size=5, **given)
    rows = case.other[0] // same.patch_size[0]
    square = pictures[..., : rows * same.patch_size[1]]
    torch.testing.assert_close(
        backbone_of(monkeypatch, source_of(case), window_size=rows, **given)(square)[0],
        backbone_of(monkeypatch, source_of(case), **given)(square)[0],
        atol=1e-5,
        rtol=1e-5,
    )
    windowed = backbone_of(monkeypatch, source_of(case), window_size=2, **given)(pictures)[0]
    assert windowed.shape == whole.shape
    assert (windowed - whole).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["BEiT", "relative, MLP"])
def test_vit__relative_positions_take_no_windows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"final_norm": VITS[name].norm, "window_size": 2}
    with pytest.raises(ConfigError, match=r"cannot run in windows.* Set window_size=None"):
        backbone_of(monkeypatch, source_of(VITS[name]), **given)


def test_vit__rotary_positions_are_not_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"repeats learned positions, and this Eva has none"):
        backbone_of(monkeypatch, source_of(VITS["DINOv3"]), window_size=4, tile_positions=True)


@pytest.mark.parametrize("size", [(50, 64), (64, 70)])
def test_img_size__must_be_a_multiple(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"img_size=.* is no multiple of the patch size \(16, 16"):
        backbone_of(monkeypatch, source_of(VITS["ViT"]), img_size=size)


OPEN_CLIP: dict[str, dict[str, Any]] = {
    "open_clip": {},
    "open_clip, layer scale": {"ls_init_value": 0.1},
    "open_clip, fixed positions": {"pos_embed_type": "sin_cos_2d"},
    "open_clip, no first norm": {"no_ln_pre": True},
    "open_clip, custom blocks": {"block_type": "custom", "scale_fc": True},
}


@torch.no_grad()
@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip__native_and_another_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    tower = _build_vision_tower(8, {**config, **OPEN_CLIP[name]}).eval()
    pictures = images(64, 64)
    expected = tower.ln_post(tower.transformer(tower._embeds(pictures)))[:, 1:]
    resized = backbone_of(monkeypatch, copy.deepcopy(tower), img_size=(48, 80))
    backbone = backbone_of(monkeypatch, tower)
    torch.testing.assert_close(tokens(backbone(pictures)[0]), expected, atol=1e-5, rtol=1e-5)
    found = backbone(images(48, 80))[0]
    assert found.shape == (2, 64, 3, 5)
    torch.testing.assert_close(resized(images(48, 80))[0], found, atol=1e-5, rtol=1e-5)
    assert resized.tower.positional_embedding.shape == (1 + 3 * 5, 64)


PYRAMIDS: dict[str, dict[str, Any]] = {
    "test_convnext": {},
    "test_resnet": {},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24},
}


@torch.no_grad()
@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramid__a_norm_for_each_map(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def trunk() -> Any:
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=0, **PYRAMIDS[name]).eval()

    pictures = images(64, 96)
    plain = backbone_of(monkeypatch, trunk(), MaskCLIPPyramid)(pictures)
    backbone = backbone_of(monkeypatch, trunk(), MaskCLIPPyramid, norm_outputs=True)
    for found, before in zip(backbone(pictures), plain, strict=True):
        channels = before.permute(0, 2, 3, 1)
        expected = nn.functional.layer_norm(channels, channels.shape[-1:], eps=1e-6)
        torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)
        assert found.is_contiguous()
    norms = [key for key, _ in backbone.named_parameters() if ".norms." in key]
    assert len(norms) == 8
    assert {backbone.layer_of(key) for key in norms} == {backbone.num_layers + 1}


def resnet_of_clip() -> nn.Module:
    return _build_vision_tower(
        16, {"image_size": 64, "layers": (1, 1, 1, 1), "width": 16, "head_width": 16}
    )


REFUSED: dict[str, tuple[Any, type, str]] = {
    "ViT in the pyramid": (
        lambda: source_of(VITS["ViT"]), MaskCLIPPyramid, "maps of one stride. Use MaskCLIPViT for"
    ),
    "BEiT in the pyramid": (
        lambda: source_of(VITS["BEiT"]), MaskCLIPPyramid, "maps of one stride. Use MaskCLIPViT for"
    ),
    "ConvNeXt as a ViT": (
        lambda: timm.create_model("test_convnext"), MaskCLIPViT, "Use MaskCLIPPyramid for it"
    ),
    "CLIP's ResNet as a ViT": (resnet_of_clip, MaskCLIPViT, "neither MaskCLIPViT nor MaskCLIPPyr"),
    "CLIP's ResNet in the pyramid": (
        resnet_of_clip, MaskCLIPPyramid, "neither MaskCLIPPyramid nor MaskCLIPViT can run it"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals__name_what_works_or_say_that_nothing_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, kind, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        backbone_of(monkeypatch, make(), kind)
