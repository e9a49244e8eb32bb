"""What the head reads, what is trained, and weights between two states."""

from __future__ import annotations

import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.layers import DropPath
from torch import Tensor, nn

from maskclip_bench.backbones import Backbone, as_backbone
from maskclip_bench.errors import ConfigError
from maskclip_bench.tasks.finetuning.classifier import (
    Classifier,
    build_classifier,
    interpolated,
    load_trained_state,
    set_drop_path,
    set_training,
    trained_state,
)
from tests.tasks.finetuning.tiny import SIZE, tiny_backbone, tiny_recipe, tiny_vit

IMAGES = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


class TwoTowers(nn.Module):
    """A ViT with a projection, and a text tower of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny_vit()
        self.proj = nn.Linear(16, 5)
        self.words = nn.Linear(2, 5)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.proj(self.vit(images))

    def forward_features(self, images: Tensor) -> Tensor:
        return self.vit(images)

    def encode_text(self, texts: list[str]) -> Tensor:
        return self.words(torch.tensor([[len(text), 1.0] for text in texts]))


def two_towers() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made = TwoTowers()
    half = (0.5, 0.5, 0.5)
    return as_backbone(
        made, image_size=SIZE, mean=half, std=half, encode_text=made.encode_text, name="two"
    )


def built(recipe: object = None, backbone: Backbone | None = None, **more: object) -> Classifier:
    return build_classifier(
        backbone or tiny_backbone(),
        recipe or tiny_recipe(),
        num_classes=3,
        seed=0,
        **more,
    )


def test_own_pooling__is_the_rows_features() -> None:
    backbone = tiny_backbone()
    classifier = built(tiny_recipe(drop_path=0), backbone)
    with torch.no_grad():
        assert torch.equal(classifier.pooled(IMAGES), backbone.forward_features(IMAGES))


@pytest.mark.parametrize("pooling", ["mean_then_norm", "norm_then_mean"])
def test_mean_pooling__of_patch_tokens_without_the_final_norm(pooling: str) -> None:
    model = tiny_vit()
    classifier = built(tiny_recipe(pooling=pooling, drop_path=0), tiny_backbone(model))
    with torch.no_grad():
        model.norm = nn.Identity()
        patches = model.forward_features(IMAGES)[:, 1:]
        if pooling == "mean_then_norm":
            expected = nn.functional.layer_norm(patches.mean(1), (16,), eps=1e-6)
        else:
            expected = nn.functional.layer_norm(patches, (16,), eps=1e-5).mean(1)
        assert torch.allclose(classifier.pooled(IMAGES), expected, atol=1e-5)
    trained = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert not any(".model.norm." in name for name in trained)  # nothing reads it
    assert "pool_norm.weight" in trained


def test_build__same_seed_same_head_and_small() -> None:
    first, again = built(), built()
    assert torch.equal(first.head.weight, again.head.weight)
    assert float(first.head.weight.detach().abs().max()) < 2e-4
    assert float(first.head.bias.detach().abs().max()) == 0


def test_build__trains_what_the_loss_reaches_and_leaves_the_row_alone() -> None:
    backbone = two_towers()
    classifier = built(tiny_recipe(drop_path=0), backbone)
    trained = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert any("vit.blocks.0" in name for name in trained)
    assert not any("words" in name or "proj." in name.partition("vit")[0] for name in trained)
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.zero_()
    assert float(backbone.forward_features(IMAGES).abs().sum()) > 0


def test_build__a_frozen_tower_stays_in_evaluation_mode() -> None:
    recipe = tiny_recipe(
        trained="head", head="batch_norm_linear", drop_path=0, layer_decay=1, ema_decay=None
    )
    classifier = built(recipe)
    set_training(classifier, recipe)
    assert classifier.head.training
    assert not classifier.encoder.training
    trained = [name for name, p in classifier.named_parameters() if p.requires_grad]
    assert trained == ["head.1.weight", "head.1.bias"]
    assert set(trained_state(classifier)) == {
        *trained, "head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked",
    }  # fmt: skip


def test_build__zero_shot_head_begins_as_given() -> None:
    weight = torch.arange(15.0).reshape(3, 5)
    recipe = tiny_recipe(head="zero_shot", pooling="joint", drop_path=0)
    backbone = two_towers()
    classifier = built(recipe, backbone, zero_shot=weight)
    with torch.no_grad():
        expected = backbone.encode_image(IMAGES) @ weight.T
        assert torch.allclose(classifier(IMAGES), expected, atol=1e-5)


def test_build__patch_embedding_can_stay() -> None:
    classifier = built(tiny_recipe(freeze_patch_embedding=True))
    frozen = {name for name, p in classifier.named_parameters() if not p.requires_grad}
    assert {name.rpartition("patch_embed")[2] for name in frozen} == {".proj.weight", ".proj.bias"}


def test_build__what_cannot_be() -> None:
    half = (0.5, 0.5, 0.5)
    no_module = as_backbone(lambda x: x.mean(dim=(2, 3)), image_size=SIZE, mean=half, std=half)
    with pytest.raises(ConfigError, match="no parameter of the image encoder gets a gradient"):
        built(tiny_recipe(drop_path=0), no_module)
    linear = as_backbone(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)),
        image_size=SIZE, mean=half, std=half,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="Sequential gives no feature maps"):
        built(tiny_recipe(), linear)
    resnet = tiny_backbone(timm.create_model("resnet10t", num_classes=0))
    with pytest.raises(ConfigError, match=r"Stochastic depth is set in ViTs here.* is a ResNet"):
        built(tiny_recipe(), resnet)
    convolutional = timm.create_model("efficientnet_lite0", num_classes=0)
    with pytest.raises(ConfigError, match="EfficientNet has no patch embedding to freeze"):
        built(tiny_recipe(drop_path=0, freeze_patch_embedding=True), tiny_backbone(convolutional))


def test_drop_path__grows_to_the_last_block_in_both_libraries() -> None:
    timm_vit = tiny_vit()
    set_drop_path(timm_vit, 0.3)
    rates = [block.drop_path2.drop_prob for block in timm_vit.blocks]
    assert rates == pytest.approx([0.0, 0.3])
    clip_vit = OpenClipViT(
        image_size=16, patch_size=8, width=16, layers=3, heads=2, mlp_ratio=2.0, output_dim=8
    )
    set_drop_path(clip_vit, 0.4)
    found = [
        [m.drop_prob for m in block.modules() if isinstance(m, DropPath)]
        for block in clip_vit.transformer.resblocks
    ]
    assert found == [pytest.approx([rate] * 2) for rate in (0.0, 0.2, 0.4)]
    before = clip_vit.eval()(IMAGES)
    assert torch.equal(before, clip_vit(IMAGES))  # in evaluation nothing is dropped


def test_interpolated__ends_are_exact() -> None:
    first = {"a": torch.tensor([0.1, 0.3]), "n": torch.tensor(2)}
    last = {"a": torch.tensor([0.7, -0.2]), "n": torch.tensor(5)}
    for alpha, end in ((0.0, first), (1.0, last)):
        assert torch.equal(interpolated(first, last, alpha)["a"], end["a"])
    between = interpolated(first, last, 0.25)
    assert torch.allclose(between["a"], 0.75 * first["a"] + 0.25 * last["a"])
    assert int(between["n"]) == 5


def test_trained_state__is_put_back() -> None:
    classifier = built()
    state = {name: value.clone() for name, value in trained_state(classifier).items()}
    with torch.no_grad():
        expected = classifier(IMAGES)
        for parameter in classifier.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
        assert not torch.equal(classifier(IMAGES), expected)
        load_trained_state(classifier, state)
        assert torch.equal(classifier(IMAGES), expected)
