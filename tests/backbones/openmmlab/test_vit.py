from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from maskclip_bench.backbones.openmmlab.pyramid import MaskCLIPPyramid
from maskclip_bench.backbones.openmmlab.vit import MaskCLIPViT
from maskclip_bench.errors import ConfigError

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 4,
    "num_heads": 2,
    "num_classes": 0,
}
WITHOUT_CLASS_TOKEN = {**TINY, "class_token": False, "global_pool": "avg", "fc_norm": False}
NAME = "vit_tiny_patch16_224"


def loaded(**arguments: Any) -> MaskCLIPViT:
    """A backbone with the weights of its source, as training makes it."""
    backbone = MaskCLIPViT(**arguments)
    backbone.init_weights()
    return backbone.eval()


def build(file: Path, **arguments: object) -> MaskCLIPViT:
    return loaded(**{"timm": NAME, "model_args": TINY, "checkpoint": str(file), **arguments})


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


def test_vit__open_clips_own(tmp_path: Path, tiny: Any) -> None:
    model = tiny.open_clip_folder(tmp_path / "native", tiny.open_clip_vit)
    backbone = loaded(checkpoint=str(tmp_path / "native"))
    visual = model.visual
    tokens = visual.transformer(visual._embeds(images()))
    expected = visual.ln_post(tokens)[:, 1:]
    torch.testing.assert_close(flat(backbone(images())[0]), expected, atol=1e-5, rtol=0)
    assert backbone.layer_of("tower.conv1.weight") == 0
    assert backbone.layer_of("tower.transformer.resblocks.2.ln_1.weight") == 3
    assert not backbone.has_weight_decay("tower.positional_embedding", visual.positional_embedding)
    backbone = loaded(checkpoint=str(tmp_path / "native"), drop_path_rate=0.5)
    backbone.train()(images())[0].sum().backward()


def test_vit__teacher_of_a_pretraining_run(tmp_path: Path, tiny: Any) -> None:
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"}
    student = tiny.open_clip_folder(tmp_path / "run" / "model", vision)
    teacher = tiny.open_clip_folder(tmp_path / "run" / "teacher", vision, seed=1)
    picture = images((224, 224))[:1]
    for weights, model in (("student", student), ("teacher", teacher)):
        backbone = loaded(checkpoint=str(tmp_path / "run"), weights=weights)
        expected = model.visual.trunk.forward_features(picture)[:, 1:]
        torch.testing.assert_close(flat(backbone(picture)[0]), expected, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"'weights': Input should be 'student' or 'teacher'"):
        MaskCLIPViT(checkpoint=str(tmp_path / "run"), weights="best")


def test_vit__other_sizes_resample_the_positions(trunk: tuple[nn.Module, Path]) -> None:
    model, file = trunk
    other = images((24, 56))
    model.set_input_size((24, 56))  # timm resamples its own, bicubic with smoothing
    expected = model.forward_features(other)[:, 1:]
    output = build(file)(other)[0]
    assert output.shape == (2, 24, 3, 7)
    torch.testing.assert_close(flat(output), expected, atol=1e-5, rtol=0)


def test_vit__size_must_be_a_multiple_of_the_patch(trunk: tuple[nn.Module, Path]) -> None:
    with pytest.raises(ValueError, match="30 x 32 pixels are no multiple of the patch size 8 x 8"):
        build(trunk[1])(images((30, 32)))


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
def test_vit__windows_of_open_clips_blocks(tmp_path: Path, batch_first: bool, tiny: Any) -> None:
    visual = tiny.open_clip_folder(tmp_path / "native", tiny.open_clip_vit).visual
    backbone = loaded(checkpoint=str(tmp_path / "native"), window_size=3)
    tokens = visual._embeds(images())
    for block in visual.transformer.resblocks:
        tokens = tokens + windowed_attention(block.attention, block.ln_1(tokens), 3)
        tokens = tokens + block.mlp(block.ln_2(tokens))
    if not batch_first:
        backbone.tower.transformer.batch_first = False
        for block in backbone.vit.blocks:
            block.attn.batch_first = False
    torch.testing.assert_close(
        flat(backbone(images())[0]), visual.ln_post(tokens)[:, 1:], atol=1e-5, rtol=0
    )


def test_vit__tiled_positions_make_each_window_an_image(tmp_path: Path, tiny: Any) -> None:
    model, file = tiny.random_trunk(tmp_path, WITHOUT_CLASS_TOKEN)
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
    with pytest.raises(ConfigError, match=r"attention of a ResPostBlock cannot run in windows"):
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
    assert "architecture" in before
    model.init_weights()
    assert (model.head.weight == 0).all()
    after = model.backbone.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_vit__coca_has_no_norm_of_its_patches(tmp_path: Path, tiny: Any) -> None:
    vision = {**tiny.open_clip_vit, "attentional_pool": True, "attn_pooler_heads": 2}
    visual = tiny.open_clip_folder(tmp_path / "coca", vision).visual
    with pytest.raises(ConfigError, match=r"normalizes what it pools.* Set final_norm=False"):
        MaskCLIPViT(checkpoint=str(tmp_path / "coca"))
    backbone = loaded(checkpoint=str(tmp_path / "coca"), final_norm=False)
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
    with pytest.raises(ConfigError, match=r"maps of several strides. Use MaskCLIPPyramid"):
        MaskCLIPViT(timm="test_resnet" if "test_resnet" in timm.list_models() else "resnet10t")


RELATIVE = {"relative_positions": (4, 4), "window_size": 2, "global_indices": (1, 3)}


def fill_relative_positions(backbone: MaskCLIPViT) -> None:
    torch.manual_seed(2)
    for name, value in backbone.named_parameters():
        if "relative_positions" in name:
            torch.nn.init.normal_(value)


@pytest.mark.parametrize("kind", ["timm", "open_clip"])
def test_relative_positions__begin_with_the_features_of_the_source(
    kind: str, tmp_path: Path, tiny: Any, trunk: tuple[nn.Module, Path]
) -> None:
    """And then change them, in windows and elsewhere; a checkpoint brings them back."""
    if kind == "timm":
        source = {"timm": NAME, "model_args": TINY, "checkpoint": str(trunk[1])}
    else:
        tiny.open_clip_folder(tmp_path / "native", {**tiny.open_clip_vit, "layers": 4})
        source = {"checkpoint": str(tmp_path / "native")}
    plain = loaded(**source, window_size=2, global_indices=(1, 3))
    backbone = loaded(**source, **RELATIVE)
    for size in ((32, 32), (40, 24)):
        expected = plain(images(size))[0]
        torch.testing.assert_close(backbone(images(size))[0], expected, atol=1e-5, rtol=1e-5)
    for index in (0, 1):  # in windows, and everywhere
        other = loaded(**source, **RELATIVE)
        other.vit.blocks[index].relative_positions.rows.data.fill_(1.0).mul_(
            torch.arange(len(other.vit.blocks[index].relative_positions.rows))[:, None]
        )
        assert (other(images())[0] - plain(images())[0]).abs().max() > 1e-4
    fill_relative_positions(backbone)
    again = MaskCLIPViT(**source, **RELATIVE).eval()
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again(images())[0], backbone(images())[0])


def test_relative_positions__are_those_of_vitdet(trunk: tuple[nn.Module, Path]) -> None:
    """One block by hand: scores, plus the query times the tables, before the softmax."""
    backbone = build(trunk[1], out_indices=(0,), final_norm=False, relative_positions=(4, 4))
    fill_relative_positions(backbone)
    vit, block = backbone.vit, backbone.vit.blocks[0]
    with torch.no_grad():
        tokens, grid = backbone._embed(images())
        normed, attention = block.norm1(tokens), block.attn
        qkv = attention.qkv(normed).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        scores = (qkv[0] * attention.scale) @ qkv[1].transpose(-2, -1)
        scores = scores + block.relative_positions(qkv[0], grid)
        attended = (scores.softmax(-1) @ qkv[2]).transpose(1, 2).flatten(2)
        tokens = tokens + attention.proj(attended)
        tokens = tokens + block.mlp(block.norm2(tokens))
        found = backbone(images())[0]
    assert vit.num_prefix_tokens == 1
    torch.testing.assert_close(flat(found), tokens[:, 1:], atol=1e-5, rtol=1e-5)


def test_relative_positions__layer_decay_and_frozen_stages(trunk: tuple[nn.Module, Path]) -> None:
    backbone = build(trunk[1], frozen_stages=1, **RELATIVE)
    name = "tower.blocks.2.relative_positions.rows"
    parameters = dict(backbone.named_parameters())
    assert backbone.layer_of(name) == 3
    assert backbone.has_weight_decay(name, parameters[name])  # as in ViTDet
    assert not parameters[name.replace("2", "0")].requires_grad
    assert parameters[name].requires_grad


def test_relative_positions__refused_where_they_do_not_apply() -> None:
    source = {"timm": NAME, "model_args": TINY, "relative_positions": (4, 4)}
    with pytest.raises(ConfigError, match=r"relative_positions begin at zero .* frozen=True"):
        MaskCLIPViT(**source, frozen=True)
    with pytest.raises(ConfigError, match="EvaBlock takes no relative positions"):
        MaskCLIPViT(
            timm="eva02_tiny_patch14_224",
            model_args={"embed_dim": 24, "depth": 1, "num_heads": 2},
            final_norm=False,
            relative_positions=(4, 4),
        )
