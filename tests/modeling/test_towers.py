from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from torch import Tensor

from maskclip_bench.modeling import towers
from maskclip_bench.modeling.masking import random_mask
from maskclip_bench.modeling.model import ModelConfig, VisionConfig, build_model
from maskclip_bench.modeling.packing import PackedText


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model: torch.nn.Module, ours: Tensor, theirs: Tensor) -> None:
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3))
    expected = gradients(model, (theirs * weight).sum())
    found = gradients(model, (ours * weight).sum())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def full_context(captions: Tensor, model: CustomTextCLIP) -> Tensor:
    return F.pad(captions, (0, model.text.context_length - captions.shape[1]))


def test_image_tokens__whole_image_equals_timm(model: CustomTextCLIP, images: Tensor) -> None:
    trunk = model.visual.trunk
    tokens = towers.image_tokens(trunk, images)
    assert tokens.shape == (3, 37, 96)
    torch.testing.assert_close(tokens, trunk.forward_features(images))
    torch.testing.assert_close(towers.patch_tokens(trunk, tokens), tokens[:, 1:])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_18x2_224"])
def test_image_tokens__of_timm_models(name: str) -> None:
    trunk = timm.create_model(name, num_classes=0, depth=2, img_size=64)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(towers.image_tokens(trunk, images), trunk.forward_features(images))


def test_image_tokens__with_registers_and_no_class_position() -> None:
    trunk = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, depth=2, img_size=64, reg_tokens=3,
        no_embed_class=True,
    )  # fmt: skip
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(towers.image_tokens(trunk, images), trunk.forward_features(images))


def test_image_tokens__dropped_patches_equal_a_plain_vit_on_the_visible(
    model: CustomTextCLIP, images: Tensor
) -> None:
    trunk = model.visual.trunk
    mask = random_mask(3, 36, 0.75, torch.Generator().manual_seed(0))
    patches = trunk.patch_embed(images) + trunk.pos_embed[:, 1:]
    rows = []
    for image, ids in zip(patches, mask.visible_ids, strict=True):
        token = torch.cat([trunk.cls_token[0] + trunk.pos_embed[0, :1], image[ids]])[None]
        for block in trunk.blocks:
            token = block(token)
        rows.append(trunk.norm(token))
    ours = towers.image_tokens(trunk, images, mask)
    assert ours.shape == (3, 1 + 9, 96)
    torch.testing.assert_close(ours, torch.cat(rows), rtol=1e-5, atol=1e-5)
    assert_same_gradients(trunk, towers.image_tokens(trunk, images, mask), torch.cat(rows))


def test_embed_patches__replaces_hidden(model: CustomTextCLIP, images: Tensor) -> None:
    trunk, token = model.visual.trunk, torch.full((96,), 7.0)
    mask = random_mask(3, 36, 0.5, torch.Generator().manual_seed(0))
    patches = towers.embed_patches(trunk, images, replace=(mask.hidden, token))
    plain = towers.embed_patches(trunk, images)
    positions = trunk.pos_embed[:, 1:].expand(3, -1, -1)
    torch.testing.assert_close(patches[mask.hidden], (positions + token)[mask.hidden])
    torch.testing.assert_close(patches[~mask.hidden], plain[~mask.hidden])


def test_encode_image__equals_open_clip(model: CustomTextCLIP, images: Tensor) -> None:
    theirs = model.encode_image(images, normalize=True)
    torch.testing.assert_close(towers.encode_image(model, images), theirs, rtol=1e-5, atol=1e-5)
    assert_same_gradients(
        model, towers.encode_image(model, images), model.encode_image(images, normalize=True)
    )


@pytest.mark.parametrize("trunk", ["resnet10t", "vit_tiny_patch16_224"])
def test_encode_image__any_trunk(trunk: str, config: ModelConfig) -> None:
    vision = VisionConfig(timm_model=trunk)
    model = build_model(config.model_copy(update={"vision": vision, "image_size": 224})).eval()
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(
        towers.encode_image(model, images),
        model.encode_image(images, normalize=True),
        rtol=1e-4,
        atol=1e-5,
    )


def test_encode_image__average_pooling(config: ModelConfig, images: Tensor) -> None:
    vision = config.vision.model_copy(update={"pool": "avg"})
    model = build_model(config.model_copy(update={"vision": vision}))
    theirs = model.encode_image(images, normalize=True)
    torch.testing.assert_close(towers.encode_image(model, images), theirs, rtol=1e-5, atol=1e-5)
    # open_clip pools after the norm of every token: patches and their mean share a space.
    trunk = model.visual.trunk
    patches = towers.patch_tokens(trunk, trunk.forward_features(images))
    torch.testing.assert_close(trunk(images), patches.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(patches.shape[:2]), atol=1e-5, rtol=0)


def test_encode_text__trimmed_equals_full_context(model: CustomTextCLIP, captions: Tensor) -> None:
    theirs = model.encode_text(full_context(captions, model), normalize=True)
    torch.testing.assert_close(towers.encode_text(model, captions), theirs, rtol=1e-5, atol=1e-5)
    packed = towers.encode_text(model, PackedText(model.text, captions))
    torch.testing.assert_close(packed, theirs, rtol=1e-5, atol=1e-5)
    assert_same_gradients(
        model,
        towers.encode_text(model, captions),
        model.encode_text(full_context(captions, model), normalize=True),
    )


def test_towers__grad_checkpointing_changes_nothing(
    model: CustomTextCLIP, images: Tensor, captions: Tensor
) -> None:
    model.train()
    plain = gradients(
        model, (towers.encode_image(model, images) * towers.encode_text(model, captions)).sum()
    )
    model.set_grad_checkpointing(True)
    again = gradients(
        model, (towers.encode_image(model, images) * towers.encode_text(model, captions)).sum()
    )
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


def test_take_tokens() -> None:
    tokens = torch.randn(2, 4, 3)
    ids = torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]])
    torch.testing.assert_close(towers.take_tokens(tokens, ids), expected)
