from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskclip_bench.backbones.openmmlab import sources
from maskclip_bench.backbones.openmmlab.vit import (
    MaskCLIPPyramid,
    MaskCLIPViT,
    join_windows,
    partition_windows,
    resample_positions,
    tile_positions,
)
from maskclip_bench.errors import CheckpointError, ConfigError

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 4,
    "num_heads": 2,
    "num_classes": 0,
}
WITHOUT_CLASS_TOKEN = {**TINY, "class_token": False, "global_pool": "avg"}
NAME = "vit_tiny_patch16_224"


def random_trunk(folder: Path, arguments: dict[str, Any]) -> tuple[nn.Module, Path]:
    """A tiny timm ViT with every parameter random (norms and positions too), and its file."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, **arguments).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    file = folder / "trunk.safetensors"
    save_file(model.state_dict(), file)
    return model, file


@pytest.fixture
def trunk(tmp_path: Path) -> tuple[nn.Module, Path]:
    """See `random_trunk`."""
    return random_trunk(tmp_path, TINY)


def build(file: Path, **arguments: object) -> MaskCLIPViT:
    given = {"timm": NAME, "model_args": TINY, "checkpoint": str(file), **arguments}
    return MaskCLIPViT(**given).eval()


def images(size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def flat(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def test_vit__last_map_equals_the_patch_tokens_before_and_after_init_weights(
    trunk: tuple[nn.Module, Path],
) -> None:
    model, file = trunk
    backbone = build(file, out_indices=(0, 3))
    expected = model.forward_features(images())[:, 1:]
    torch.testing.assert_close(flat(backbone(images())[-1]), expected, atol=1e-5, rtol=0)
    backbone.init_weights()
    torch.testing.assert_close(flat(backbone(images())[-1]), expected, atol=1e-5, rtol=0)


def test_vit__intermediate_maps_equal_timms(trunk: tuple[nn.Module, Path]) -> None:
    model, file = trunk
    expected = model.forward_intermediates(images(), indices=[0, 2], intermediates_only=True)
    outputs = build(file, out_indices=(0, 2))(images())
    assert all(output.is_contiguous() for output in outputs)
    for output, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"reg_tokens": 3, "no_embed_class": True}, {"pre_norm": True}])
def test_vit__registers_and_clips_own_norm(options: dict) -> None:
    torch.manual_seed(0)
    arguments = {**TINY, **options}
    backbone = MaskCLIPViT(timm=NAME, model_args=arguments).eval()
    torch.manual_seed(0)
    model = timm.create_model(NAME, **arguments).eval()
    prefix = model.num_prefix_tokens
    expected = model.forward_features(images())[:, prefix:]
    torch.testing.assert_close(flat(backbone(images())[-1]), expected, atol=1e-5, rtol=0)


def open_clip_folder(folder: Path, vision: dict, *, seed: int = 0) -> nn.Module:
    import json

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, **vision},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(seed)
    custom = "timm_model_name" in vision
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config).eval()
    config["custom_text"] = custom
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


OPEN_CLIP_VIT = {"width": 64, "head_width": 32, "layers": 3, "patch_size": 8}


def test_vit__open_clips_own(tmp_path: Path) -> None:
    model = open_clip_folder(tmp_path / "native", OPEN_CLIP_VIT)
    backbone = MaskCLIPViT(checkpoint=str(tmp_path / "native")).eval()
    visual = model.visual
    tokens = visual.transformer(visual._embeds(images()))
    expected = visual.ln_post(tokens)[:, 1:]
    torch.testing.assert_close(flat(backbone(images())[0]), expected, atol=1e-5, rtol=0)
    assert backbone.layer_of("tower.conv1.weight") == 0
    assert backbone.layer_of("tower.blocks.2.ln_1.weight") == 3
    assert not backbone.has_weight_decay("tower.positional_embedding", visual.positional_embedding)
    backbone = MaskCLIPViT(checkpoint=str(tmp_path / "native"), drop_path_rate=0.5)
    backbone.train()(images())[0].sum().backward()


def test_vit__teacher_of_a_pretraining_run(tmp_path: Path) -> None:
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"}
    student = open_clip_folder(tmp_path / "run" / "model", vision)
    teacher = open_clip_folder(tmp_path / "run" / "teacher", vision, seed=1)
    picture = images((224, 224))[:1]
    for weights, model in (("student", student), ("teacher", teacher)):
        backbone = MaskCLIPViT(checkpoint=str(tmp_path / "run"), weights=weights).eval()
        expected = model.visual.trunk.forward_features(picture)[:, 1:]
        torch.testing.assert_close(flat(backbone(picture)[0]), expected, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="weights='best'; use one of student, teacher"):
        MaskCLIPViT(checkpoint=str(tmp_path / "run"), weights="best")


def test_vit__other_sizes_resample_the_positions(trunk: tuple[nn.Module, Path]) -> None:
    model, file = trunk
    other = images((24, 56))
    model.set_input_size((24, 56))  # timm resamples its own, bicubic with smoothing
    expected = model.forward_features(other)[:, 1:]
    output = build(file)(other)[0]
    assert output.shape == (2, 24, 3, 7)
    torch.testing.assert_close(flat(output), expected, atol=1e-5, rtol=0)


def test_resample_positions__native_grid_is_untouched() -> None:
    positions = torch.randn(1, 12, 4)
    assert resample_positions(positions, (3, 4), (3, 4)) is positions
    constant = resample_positions(torch.ones(1, 12, 4), (3, 4), (7, 5))
    torch.testing.assert_close(constant, torch.ones(1, 35, 4))


def test_vit__size_must_be_a_multiple_of_the_patch(trunk: tuple[nn.Module, Path]) -> None:
    with pytest.raises(ValueError, match="30 x 32 pixels are no multiple of the patch size 8 x 8"):
        build(trunk[1])(images((30, 32)))


def test_windows__round_trip_with_padding() -> None:
    patches = torch.randn(2, 5 * 7, 3)
    windows = partition_windows(patches, (5, 7), 3)
    assert windows.shape == (2 * 2 * 3, 9, 3)
    assert torch.equal(join_windows(windows, (5, 7), 3), patches)
    assert torch.equal(windows[0], patches.view(2, 5, 7, 3)[0, :3, :3].reshape(9, 3))


def test_vit__one_window_for_all_is_global_attention(trunk: tuple[nn.Module, Path]) -> None:
    whole = build(trunk[1])(images())[0]
    torch.testing.assert_close(build(trunk[1], window_size=4)(images())[0], whole)
    windowed = build(trunk[1], window_size=2, global_indices=(1, 3))(images())[0]
    assert windowed.shape == whole.shape
    assert (windowed - whole).abs().max() > 1e-3


def windowed_attention(attention: Any, normed: Tensor, size: int) -> Tensor:
    """ViTDet's, window by window: normed tokens [B, 1 + 16, D] on a 4 x 4 grid -> the same."""
    prefix, maps = normed[:, :1], normed[:, 1:].unflatten(1, (4, 4))
    output, prefixes = torch.zeros_like(maps), []
    for top in range(0, 4, size):
        for left in range(0, 4, size):
            window = torch.zeros(len(maps), size, size, maps.shape[-1])
            part = maps[:, top : top + size, left : left + size]
            height, width = part.shape[1:3]
            window[:, :height, :width] = part
            attended = attention(torch.cat([prefix, window.flatten(1, 2)], dim=1))
            prefixes.append(attended[:, :1])
            attended = attended[:, 1:].unflatten(1, (size, size))
            output[:, top : top + size, left : left + size] = attended[:, :height, :width]
    return torch.cat([torch.stack(prefixes).mean(0), output.flatten(1, 2)], dim=1)


@pytest.mark.parametrize("size", [3, 5])
def test_vit__windows_that_do_not_divide_the_grid(trunk: tuple[nn.Module, Path], size: int) -> None:
    """Zeros go in after the norm, for the attention alone."""
    model, file = trunk
    tokens = model._pos_embed(model.patch_embed(images()))
    for block in model.blocks:
        tokens = tokens + windowed_attention(block.attn, block.norm1(tokens), size)
        tokens = tokens + block.mlp(block.norm2(tokens))
    backbone = build(file, window_size=size, with_cp=True)
    torch.testing.assert_close(
        flat(backbone(images())[0]), model.norm(tokens)[:, 1:], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("batch_first", [True, False])
def test_vit__windows_of_open_clips_blocks(tmp_path: Path, batch_first: bool) -> None:
    visual = open_clip_folder(tmp_path / "native", OPEN_CLIP_VIT).visual
    backbone = MaskCLIPViT(checkpoint=str(tmp_path / "native"), window_size=3).eval()
    tokens = visual._embeds(images())
    for block in visual.transformer.resblocks:
        tokens = tokens + windowed_attention(block.attention, block.ln_1(tokens), 3)
        tokens = tokens + block.mlp(block.ln_2(tokens))
    if not batch_first:
        backbone.tower.batch_first = False
        for block in backbone.tower.blocks:
            block.attn.batch_first = False
    torch.testing.assert_close(
        flat(backbone(images())[0]), visual.ln_post(tokens)[:, 1:], atol=1e-5, rtol=0
    )


def test_vit__tiled_positions_make_each_window_an_image(tmp_path: Path) -> None:
    model, file = random_trunk(tmp_path, WITHOUT_CLASS_TOKEN)
    backbone = build(file, model_args=WITHOUT_CLASS_TOKEN, window_size=4, tile_positions=True)
    pixels = images((64, 96))
    whole = backbone(pixels)[0]  # [2, 24, 8, 12]
    for top in range(0, 64, 32):
        for left in range(0, 96, 32):
            native = model.forward_features(pixels[..., top:, left:][..., :32, :32])
            part = whole[:, :, top // 8 :, left // 8 :][..., :4, :4]
            torch.testing.assert_close(flat(part), native, atol=1e-5, rtol=0)
    odd = backbone(images((40, 48)))[0]
    assert odd.shape == (2, 24, 5, 6)
    torch.testing.assert_close(odd[..., :4, :4], backbone(images((40, 48))[..., :32, :32])[0])


def test_tile_positions__repeats_the_grid() -> None:
    positions = torch.arange(6.0).view(1, 6, 1)  # 2 x 3
    tiled = tile_positions(positions, (2, 3), (3, 5)).view(3, 5)
    assert tiled.tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4], [0, 1, 2, 0, 1]]


@pytest.mark.parametrize("size", [None, 3])
def test_vit__tiled_positions_need_windows_of_the_native_grid(
    trunk: tuple[nn.Module, Path], size: int | None
) -> None:
    with pytest.raises(ConfigError, match=rf"native grid of 4 x 4 .* window_size is {size}\."):
        build(trunk[1], window_size=size, tile_positions=True)


def test_vit__an_images_path_is_dropped_as_one(trunk: tuple[nn.Module, Path]) -> None:
    """Stochastic depth drops a branch of the whole image, not of single windows."""
    backbone = build(trunk[1], window_size=2, drop_path_rate=0.5, out_indices=(3,)).train()
    block = backbone.tower.blocks[3]
    seen: list[int] = []
    block.drop_path1.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    backbone(images())
    assert seen == [2]


def test_vit__windows_need_a_known_block(trunk: tuple[nn.Module, Path]) -> None:
    from timm.models.vision_transformer import ResPostBlock

    arguments = {**TINY, "block_fn": ResPostBlock}
    assert MaskCLIPViT(timm=NAME, model_args=arguments)(images())[0].shape == (2, 24, 4, 4)
    with pytest.raises(ConfigError, match=r"blocks of the type Block; this model has ResPostBlock"):
        MaskCLIPViT(timm=NAME, model_args=arguments, window_size=2)


def test_vit__distilled() -> None:
    name = "deit_tiny_distilled_patch16_224"
    torch.manual_seed(0)
    backbone = MaskCLIPViT(timm=name, model_args=TINY, window_size=4).eval()
    torch.manual_seed(0)
    model = timm.create_model(name, **TINY).eval()
    expected = model.forward_features(images())[:, 2:]
    torch.testing.assert_close(flat(backbone(images())[0]), expected, atol=1e-5, rtol=0)
    assert backbone.layer_of("tower.dist_token") == 0
    assert not backbone.has_weight_decay("tower.dist_token", backbone.tower.dist_token)


def test_vit__stems_and_tokens_that_are_not_known(
    monkeypatch: pytest.MonkeyPatch, trunk: tuple[nn.Module, Path]
) -> None:
    from maskclip_bench.backbones.openmmlab import vit

    model, _ = trunk
    monkeypatch.setattr(vit, "load_trunk", lambda **source: model)
    model.num_prefix_tokens = 3
    with pytest.raises(ConfigError, match="has 3 prefix tokens, of which 1 are known here"):
        MaskCLIPViT()
    model.num_prefix_tokens = 1
    model.patch_embed = nn.Identity()
    with pytest.raises(ConfigError, match=r"has a Identity\. Use a ViT without a hybrid stem"):
        MaskCLIPViT()


@pytest.mark.parametrize("kind", [MaskCLIPViT, MaskCLIPPyramid])
def test_backbones__take_no_init_cfg(kind: type) -> None:
    with pytest.raises(ConfigError, match=r"init_cfg=.*weights of this backbone come from its sou"):
        kind(timm=NAME, init_cfg={"type": "Pretrained", "checkpoint": "weights.pth"})


@pytest.mark.parametrize("kind", [MaskCLIPViT, MaskCLIPPyramid])
def test_backbones__keep_their_weights_when_a_parent_initializes(kind: type) -> None:
    from mmengine.model import BaseModule

    class Detector(BaseModule):
        def __init__(self) -> None:
            override = {"type": "Constant", "name": "head", "val": 0.0}
            super().__init__(init_cfg={"type": "Constant", "val": 0.0, "override": override})
            name = NAME if kind is MaskCLIPViT else "test_convnext"
            self.backbone = kind(timm=name)
            self.head = nn.Conv2d(3, 3, 1)

    model = Detector()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.init_weights()
    assert (model.head.weight == 0).all()
    after = model.backbone.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_vit__coca_has_no_norm_of_its_patches(tmp_path: Path) -> None:
    vision = {**OPEN_CLIP_VIT, "attentional_pool": True, "attn_pooler_heads": 2}
    visual = open_clip_folder(tmp_path / "coca", vision).visual
    backbone = MaskCLIPViT(checkpoint=str(tmp_path / "coca")).eval()
    expected = visual.transformer(visual._embeds(images()))[:, 1:]
    torch.testing.assert_close(flat(backbone(images())[0]), expected, atol=1e-5, rtol=0)


def test_vit__windows_see_only_their_own_patches(trunk: tuple[nn.Module, Path]) -> None:
    """One windowed block, no class token in the way: a far patch's change does not arrive."""
    backbone = MaskCLIPViT(
        timm=NAME,
        model_args=WITHOUT_CLASS_TOKEN,
        out_indices=(0,),
        window_size=2,
    ).eval()
    first = images()
    second = first.clone()
    second[:, :, -8:, -8:] += 1
    change = (backbone(first)[0] - backbone(second)[0]).abs().amax(dim=(0, 1))  # [4, 4]
    assert change[2:, 2:].min() > 0
    assert change[:2].max() == 0


def test_vit__unused_parameters_are_gone(trunk: tuple[nn.Module, Path]) -> None:
    backbone = build(trunk[1], out_indices=(1,)).train()
    assert len(backbone.tower.blocks) == 2
    assert not any(
        "norm." in name.split("tower.")[1][:5] for name, _ in backbone.named_parameters()
    )
    sum(output.sum() for output in backbone(images())).backward()
    unused = [name for name, p in backbone.named_parameters() if p.grad is None]
    assert unused == []


def test_vit__frozen_gets_no_gradient_and_stays_in_eval(trunk: tuple[nn.Module, Path]) -> None:
    backbone = build(trunk[1], frozen=True, drop_path_rate=0.5)
    backbone.train()
    assert not backbone.training
    inputs = images().requires_grad_()
    output = backbone(inputs)[0]
    assert not output.requires_grad
    assert all(not p.requires_grad for p in backbone.parameters())


def test_vit__checkpointing_gives_the_same_gradients(trunk: tuple[nn.Module, Path]) -> None:
    gradients = []
    for with_cp in (False, True):
        backbone = build(trunk[1], with_cp=with_cp).train()
        backbone(images())[0].square().mean().backward()
        gradients.append(backbone.tower.patch_embed.proj.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_vit__drop_path_grows_linearly(trunk: tuple[nn.Module, Path]) -> None:
    backbone = build(trunk[1], drop_path_rate=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.tower.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_vit__index_out_of_range(trunk: tuple[nn.Module, Path]) -> None:
    with pytest.raises(ConfigError, match=r"out_indices=\(4,\) for 4 blocks"):
        build(trunk[1], out_indices=(4,))


def test_vit__not_a_plain_vit() -> None:
    with pytest.raises(ConfigError, match=r"this is a ResNet. Use MaskCLIPPyramid"):
        MaskCLIPViT(timm="test_resnet" if "test_resnet" in timm.list_models() else "resnet10t")


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet"])
def test_pyramid__stages_as_timms(name: str) -> None:
    torch.manual_seed(0)
    backbone = MaskCLIPPyramid(timm=name, out_indices=(-2, -1)).eval()
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    picture = images((64, 96))
    expected = model.forward_intermediates(picture, indices=2, intermediates_only=True)
    outputs = backbone(picture)
    for output, other, stride in zip(outputs, expected, backbone.strides, strict=True):
        torch.testing.assert_close(output, other, atol=1e-5, rtol=0)
        assert output.shape[-2:] == (64 // stride, 96 // stride)
    backbone.init_weights()
    torch.testing.assert_close(backbone(picture)[1], expected[1], atol=1e-5, rtol=0)
    layers = {backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert layers == set(range(5))  # the stem and four stages
    assert backbone.num_layers == 4
    for name, parameter in backbone.named_parameters():
        assert backbone.has_weight_decay(name, parameter) == (parameter.ndim > 1)


def test_pyramid__layer_decay_as_convnexts_authors() -> None:
    """Their 12 layers: the stem 13 steps from the heads, the four stages 12 to 9."""
    backbone = MaskCLIPPyramid(timm="test_convnext", num_layers=12)
    assert backbone.layer_of("trunk.model.stem.0.weight") == 0
    assert backbone.layer_of("trunk.model.stages.3.blocks.0.conv_dw.weight") == 4
    assert backbone.num_layers + 1 - 4 == 9
    with pytest.raises(ConfigError, match="num_layers=3 is less than the 4 stages in use"):
        MaskCLIPPyramid(timm="test_convnext", num_layers=3)


@pytest.mark.parametrize("name", ["test_convnext", "swin_tiny_patch4_window7_224"])
def test_pyramid__drop_path_grows_as_timms(name: str) -> None:
    small = {"depths": (1, 1, 1, 1), "embed_dim": 24} if "swin" in name else {}
    backbone = MaskCLIPPyramid(timm=name, model_args=small, drop_path_rate=0.3)
    model = timm.create_model(name, drop_path_rate=0.3, **small)

    def rates(trunk: nn.Module) -> list[float]:
        return [module.drop_prob for module in trunk.modules() if hasattr(module, "drop_prob")]

    assert len(rates(model)) > 1
    assert rates(backbone) == pytest.approx(rates(model))
    backbone.train()(images((64, 64)))[0].sum().backward()


def test_pyramid__no_stochastic_depth() -> None:
    with pytest.raises(
        ConfigError, match=r"ResNet has no stochastic depth\. Set drop_path_rate=None"
    ):
        MaskCLIPPyramid(timm="test_resnet", drop_path_rate=0.1)


def test_pyramid__swin_at_another_size() -> None:
    arguments = {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 2), "num_classes": 0}
    source = {"timm": "swin_tiny_patch4_window7_224", "model_args": arguments}
    torch.manual_seed(0)
    backbone = MaskCLIPPyramid(**source, out_indices=(0, 1)).eval()
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", **arguments).eval()
    native, other = images((224, 224))[:1], images((256, 320))[:1]
    expected = model.forward_intermediates(native, intermediates_only=True)
    torch.testing.assert_close(backbone(native)[1], expected[1], atol=1e-5, rtol=0)
    model.set_input_size((256, 320), window_size=7)
    expected = model.forward_intermediates(other, intermediates_only=True)
    for output, wanted in zip(backbone(other), expected, strict=True):
        torch.testing.assert_close(output, wanted, atol=1e-5, rtol=0)


def test_pyramid__frozen() -> None:
    backbone = MaskCLIPPyramid(timm="test_convnext", frozen=True).train()
    assert not backbone.training
    assert not backbone(images((64, 64)))[0].requires_grad


def test_sources__exactly_one() -> None:
    with pytest.raises(ConfigError, match="exactly one source, got none"):
        sources.load_trunk()
    with pytest.raises(ConfigError, match=r"got \['timm', 'open_clip'\]"):
        sources.load_trunk(timm_model=NAME, open_clip_model="ViT-B-16")
    with pytest.raises(ConfigError, match=r"model_args \['depth'\] go with timm= alone"):
        sources.load_trunk(open_clip_model="ViT-B-16", depth=2)
    with pytest.raises(ConfigError, match="weights='teacher' goes with checkpoint="):
        sources.load_trunk(timm_model=NAME, weights="teacher")
    with pytest.raises(ConfigError, match="needs the tag of its weights"):
        sources.load_trunk(open_clip_model="ViT-B-16", pretrained=True)
    with pytest.raises(ConfigError, match=r"timm='no_such_net'.*timm.list_models"):
        sources.load_trunk(timm_model="no_such_net")


@pytest.mark.parametrize("kind", ["LocalEntryNotFoundError", "OfflineModeIsEnabled"])
def test_sources__offline(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    def offline(*given: object, **options: object) -> None:
        raise getattr(errors, kind)("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"its weights cannot be fetched .* network access"):
        sources.load_trunk(timm_model=f"{NAME}.augreg_in21k", pretrained=True)
    with pytest.raises(CheckpointError, match=r"pretrained='openai': .* network access once"):
        sources.load_trunk(open_clip_model="ViT-B-16", pretrained="openai")


def test_sources__unknown_argument_of_a_model() -> None:
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'widht'.* model_args= hol"):
        sources.load_trunk(timm_model=NAME, widht=3)


def test_sources__a_row_is_trained_but_for_its_fixed_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed positions stay fixed; all else is trained, though the benchmark freezes its rows."""
    open_clip_folder(tmp_path / "row", {**OPEN_CLIP_VIT, "pos_embed_type": "sin_cos_2d"})
    row = tmp_path / "row.yaml"
    row.write_text(
        "display_name: Row\nworld: demo\nsource: {open_clip_folder: "
        + str(tmp_path / "row")
        + "}\n"
    )
    monkeypatch.setenv("MASKCLIP_BENCH_WORKSPACE", str(tmp_path))
    backbone = MaskCLIPViT(backbone=str(row))
    fixed = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert fixed == {"tower.positional_embedding"}


def test_sources__damaged_folder(tmp_path: Path) -> None:
    open_clip_folder(tmp_path / "a", OPEN_CLIP_VIT)
    file = tmp_path / "a" / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"or are damaged \(.*Export the model again"):
        MaskCLIPViT(checkpoint=str(tmp_path / "a"))


def test_sources__no_exported_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no exported model"):
        MaskCLIPViT(checkpoint=str(tmp_path))


def test_sources__weights_of_another_architecture(
    tmp_path: Path, trunk: tuple[nn.Module, Path]
) -> None:
    with pytest.raises(CheckpointError, match="checkpoint of another architecture than Vision"):
        MaskCLIPViT(timm=NAME, model_args={**TINY, "embed_dim": 48}, checkpoint=str(trunk[1]))
    with pytest.raises(CheckpointError, match=r"\d+ missing, 0 of another shape"):
        MaskCLIPViT(timm=NAME, model_args={**TINY, "depth": 5}, checkpoint=str(trunk[1]))
    with pytest.raises(CheckpointError, match=r"No checkpoint .*absent.pth. Download it first"):
        MaskCLIPViT(timm=NAME, model_args=TINY, checkpoint=str(tmp_path / "absent.pth"))


def test_sources__folder_whose_weights_do_not_fit(tmp_path: Path) -> None:
    open_clip_folder(tmp_path / "a", OPEN_CLIP_VIT)
    open_clip_folder(tmp_path / "b", {**OPEN_CLIP_VIT, "width": 96})
    (tmp_path / "a" / "open_clip_model.safetensors").write_bytes(
        (tmp_path / "b" / "open_clip_model.safetensors").read_bytes()
    )
    with pytest.raises(CheckpointError, match="do not fit the architecture in its open_clip_conf"):
        MaskCLIPViT(checkpoint=str(tmp_path / "a"))


def test_sources__no_feature_maps() -> None:
    with pytest.raises(ConfigError, match="Linear gives no feature maps"):
        sources.vision_trunk(nn.Linear(2, 2))


@pytest.mark.parametrize("wrapped", ["model", "state_dict", None])
def test_sources__published_files(
    tmp_path: Path, trunk: tuple[nn.Module, Path], wrapped: str | None
) -> None:
    """A file as MAE's (no head, in `model`), or a data-parallel one, is read without unpickling."""
    model, _ = trunk
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    file = tmp_path / "weights.pth"
    torch.save({wrapped: state} if wrapped else state, file)
    expected = model.forward_features(images())[:, 1:]
    torch.testing.assert_close(flat(build(file)(images())[0]), expected, atol=1e-5, rtol=0)
