from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_methods import MODEL, batch, build, step

from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.modeling import VisionConfig
from maskclip_bench.modeling.masking import choose_words, random_mask
from maskclip_bench.modeling.packing import PackedText
from maskclip_bench.modeling.towers import embed_patches, image_tokens
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.methods.maskclip import MaskCLIP, MaskCLIPConfig
from maskclip_bench.pretrain.methods.teacher import cosine_momentum


def maskclip(folder: Path = Path(), **changes: Any) -> MaskCLIP:
    method = build("maskclip", folder, **changes)
    assert isinstance(method, MaskCLIP)
    return method


@pytest.mark.parametrize("average", ["words", "captions"])
def test_maskclip__losses_equal_a_plain_transcription(average: str) -> None:
    method = maskclip(text_replacement="mask", num_codewords=12, mlm_average=average)
    method.quantizer.center.normal_()
    whole = batch()
    terms = method(whole)
    generator = torch.Generator().manual_seed(0)
    model, trunk = method.model, method.model.visual.trunk

    images = model.encode_image(whole.images, normalize=True)
    padded = F.pad(whole.tokens, (0, 16 - whole.tokens.shape[1]))
    texts = model.encode_text(padded, normalize=True)
    logits, targets = model.logit_scale.exp() * images @ texts.T, torch.arange(8)
    contrastive = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
    torch.testing.assert_close(terms["contrastive_loss"], contrastive)

    mask = random_mask(8, 36, 0.75, generator)
    visible = image_tokens(trunk, whole.images, mask)
    student = method.quantizer.student(method.vision_decoder(visible, mask, num_prefix=1))
    features = method.teacher_trunk.forward_features(whole.images)[:, 1:]
    teacher = method.quantizer.teacher(features[mask.hidden].view(8, 27, 96))
    codes = ((teacher - method.quantizer.center) / 0.04).softmax(-1)
    distillation = -(codes * (student / 0.1).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(terms["distillation_loss"], 0.05 * distillation)

    chosen = choose_words(whole.tokens, 0.2, generator)
    text = PackedText(model.text, whole.tokens)
    layout, language = text.layout, method.language
    embedded = model.text.token_embedding(whole.tokens)
    embedded[chosen] = language.mask_token
    embedded = layout.pack(embedded + model.text.positional_embedding[: whole.tokens.shape[1]])
    text._plain = embedded
    hidden = language.decoder(text.everywhere(), layout)
    words = hidden @ model.text.token_embedding.weight.T + language.vocabulary_bias
    places = layout.pack(chosen)
    losses = F.cross_entropy(words[places], layout.pack(whole.tokens)[places], reduction="none")
    mlm = torch.stack([part.mean() for part in losses.split(chosen.sum(1).tolist())]).mean()
    if average == "words":
        mlm = losses.mean()
    torch.testing.assert_close(terms["mlm_loss"], 0.05 * mlm)


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "pixels"},
        {"target": "features"},
        {"target": "features", "loss": "mse"},
        {"target": "ema_features", "loss": "mse"},
        {"teacher": "momentum_head"},
        {"teacher": "momentum_head", "loss_on": "all"},
        {"mlm_average": "captions"},
        {"codeword_init": "normal"},
        {"loss_on": "all"},
        {"loss_on": "all", "target": "pixels"},
        {"loss_on": "all", "target": "features"},
        {"mask_kind": "block", "mask_ratio": 0.5},
        {"decoder_depth": 3, "decoder_dim": 24, "decoder_num_heads": 2},
        {"decoder_positions": "learned"},
        {"text_decoder_depth": 0},
        {"text_decoder_depth": 3},
        {"vocabulary_head": "own"},
        {"text_replacement": "mask"},
        {"codeword_depth": 1},
        {"target_norm": False},
        {"target_norm": False, "target": "features"},
    ],
    ids=str,
)
def test_maskclip__ablations_train(changes: dict[str, Any]) -> None:
    method = maskclip(**changes)
    losses, gradients = step(method, batch())
    assert losses.keys() == {"contrastive_loss", "distillation_loss", "mlm_loss", "loss"}
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert gradients.keys() == trained
    assert not any("teacher" in name for name in trained)
    logged = method.after_step(step=1, total_steps=10)
    has_ema = changes.get("target", "ema_features") == "ema_features"
    quantizes = changes.get("loss") != "mse" and changes.get("target") != "pixels"
    assert ("ema_momentum" in logged) == ("teacher_age_steps" in logged) == has_ema
    assert ("codeword_perplexity" in logged) == quantizes
    has_teacher = has_ema and changes.get("teacher") != "momentum_head"
    assert (method.teacher_model() is not None) == has_teacher


def test_maskclip__branches_off() -> None:
    without_image = maskclip(distillation_weight=0)
    terms = without_image(batch())
    assert terms.keys() == {"contrastive_loss", "mlm_loss", "loss"}
    assert without_image.teacher_model() is None
    assert not any("vision_decoder" in name for name in without_image.state_dict())
    without_text = maskclip(mlm_weight=0)
    terms = without_text(batch())
    assert terms.keys() == {"contrastive_loss", "distillation_loss", "loss"}
    assert not any("language" in name for name in without_text.state_dict())
    neither = maskclip(distillation_weight=0, mlm_weight=0, contrastive_weight=1)
    plain = build("clip", Path())
    neither.model.load_state_dict(plain.model.state_dict())
    torch.testing.assert_close(neither(batch())["loss"], plain(batch())["loss"])


@pytest.mark.parametrize("target", ["features", "ema_features", "frozen"])
def test_maskclip__targets_before_the_final_norm(clip_folder: Path, target: str) -> None:
    changes: dict[str, Any] = {"target": target}
    if target == "frozen":
        changes = {"teacher": "open_clip", "teacher_model": f"local-dir:{clip_folder}"}
    images = batch().images
    targets, norms = {}, {}
    for norm in (True, False):
        method = maskclip(target_norm=norm, **changes)
        trunk = method.model.visual.trunk
        giver = {
            "features": trunk,
            "ema_features": method.teacher_trunk,
            "frozen": method.frozen_teacher.visual.trunk if method.frozen_teacher else None,
        }[target]
        with torch.no_grad():  # a norm that does something beside normalizing
            giver.norm.weight.fill_(2.0)
            pooled, targets[norm] = method.see_whole_image(images, embed_patches(trunk, images))
            torch.testing.assert_close(pooled, trunk.forward_head(image_tokens(trunk, images)))
        norms[norm] = giver.norm
    assert not torch.allclose(targets[True], targets[False])
    torch.testing.assert_close(norms[False](targets[False]), targets[True])


def test_maskclip__no_gradient_reaches_the_teacher() -> None:
    method = maskclip()
    step(method, batch())
    for part in (method.teacher_trunk, method.quantizer.teacher):
        assert part is not None
        assert all(not p.requires_grad and p.grad is None for p in part.parameters())


def test_maskclip__own_features_are_targets_without_gradient() -> None:
    """With target: features, the whole image's patch tokens get no gradient of the loss."""
    method = maskclip(target="features", loss="mse", mlm_weight=0)
    whole = batch()
    embeddings, terms = method.encode(whole)
    (gradient,) = torch.autograd.grad(
        terms["distillation_loss"], method.model.visual.head.proj.weight, allow_unused=True
    )
    assert gradient is None
    assert embeddings["image_features"].requires_grad


def test_maskclip__teacher_is_the_moving_average() -> None:
    method = maskclip(ema_momentum=0.9, ema_momentum_end=0.95)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    names = ["blocks.1.mlp.fc1.weight", "cls_token", "pos_embed"]
    expected = {n: method.teacher_trunk.get_parameter(n).clone() for n in names}
    codewords = method.quantizer.teacher.codewords.clone()
    for number in range(1, 4):
        step(method, batch(seed=number))
        optimizer.step()
        optimizer.zero_grad()
        logged = method.after_step(step=number, total_steps=3)
        momentum = cosine_momentum(0.9, 0.95, number / 3)
        assert logged["ema_momentum"] == momentum
        for name in names:
            student = method.model.visual.trunk.get_parameter(name).detach()
            expected[name] = momentum * expected[name] + (1 - momentum) * student
        student = method.quantizer.student.codewords.detach()
        codewords = momentum * codewords + (1 - momentum) * student
    for name in names:
        torch.testing.assert_close(method.teacher_trunk.get_parameter(name), expected[name])
    torch.testing.assert_close(method.quantizer.teacher.codewords, codewords)


def test_maskclip__teacher_stays_in_evaluation_mode() -> None:
    vision = VisionConfig(timm_model=MODEL.vision.timm_model, drop_path_rate=0.5)
    method = build_method(
        "maskclip", {"num_codewords": 4}, MODEL.model_copy(update={"vision": vision})
    )
    method.train()
    assert isinstance(method, MaskCLIP)
    assert method.model.visual.trunk.training
    assert not any(module.training for module in method.teacher_trunk.modules())


def test_maskclip__teacher_model_is_a_whole_model() -> None:
    method = maskclip()
    with torch.no_grad():
        for parameter in method.teacher_trunk.parameters():
            parameter.add_(0.1)
    teacher = method.teacher_model()
    assert teacher is not None
    images = batch().images
    expected = method.teacher_trunk(images)
    torch.testing.assert_close(teacher.visual.trunk.eval()(images), expected)
    assert torch.equal(teacher.text.text_projection, method.model.text.text_projection)
    assert teacher.state_dict().keys() == method.model.state_dict().keys()


def test_maskclip__frozen_teacher(clip_folder: Path) -> None:
    method = maskclip(teacher="open_clip", teacher_model=f"local-dir:{clip_folder}")
    before = {n: p.clone() for n, p in method.frozen_teacher.named_parameters()}
    _, gradients = step(method, batch())
    assert not any("teacher" in name for name in gradients)
    method.after_step(step=1, total_steps=2)
    for name, parameter in method.frozen_teacher.named_parameters():
        assert torch.equal(parameter, before[name])
    assert method.teacher_model() is None


@pytest.mark.parametrize("name", ["maskclip", "mvp"])
def test_frozen_teacher__of_another_grid(name: str, clip_folder: Path) -> None:
    fields: dict[str, Any] = {"teacher_model": f"local-dir:{clip_folder}"}
    if name == "maskclip":
        fields["teacher"] = "open_clip"
    else:
        fields["teacher_pretrained"] = None
    vision = VisionConfig(timm_model="vit_tiny_patch16_224")
    model = MODEL.model_copy(update={"vision": vision, "image_size": 224})
    with pytest.raises(ConfigError, match=r"divides an image into 36 patches, the student"):
        build_method(name, fields, model)


def test_maskclip__two_stages_start_from_clip(clip_folder: Path) -> None:
    method = maskclip(stages="two_stage", start_from=clip_folder)
    state = load_file(clip_folder / "open_clip_model.safetensors")
    for name, value in method.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for name, value in method.teacher_trunk.state_dict().items():
        assert torch.equal(value, state[f"visual.trunk.{name}"]), name


def test_maskclip__start_is_missing_or_other(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no open_clip_model.safetensors. Give the"):
        maskclip(stages="two_stage", start_from=tmp_path)
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match=r"are of another model"):
        maskclip(stages="two_stage", start_from=tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": "two_stage"}, "stages: two_stage and start_from"),
        ({"start_from": "x"}, "stages: two_stage and start_from"),
        ({"teacher": "open_clip"}, "teacher: open_clip and teacher_model"),
        ({"teacher_model": "ViT-B-16"}, "teacher: open_clip and teacher_model"),
        (
            {"teacher": "open_clip", "teacher_model": "ViT-B-16", "target": "pixels"},
            "target pixels uses no teacher",
        ),
        ({"teacher": "momentum_head", "target": "features"}, "target features uses no teacher"),
        (
            {"teacher": "momentum_head", "loss": "mse"},
            "momentum_head is of the quantizer; set loss",
        ),
        ({"ema_memory": 0.1, "ema_momentum": 0.9}, "ema_memory and ema_momentum are both given"),
        ({"ema_memory": None}, "give ema_memory .a share of the run., ema_memory_pairs or"),
        (
            {"ema_memory_pairs": 9, "ema_momentum": 0.9},
            "ema_memory_pairs and ema_momentum are both given",
        ),
        ({"full_ema": True, "target": "pixels"}, "full_ema goes with a momentum teacher"),
        ({"full_ema": True, "teacher": "momentum_head"}, "full_ema goes with a momentum teacher"),
        ({"full_ema": True, "distillation_weight": 0}, "full_ema goes with a momentum teacher"),
        ({"ema_momentum_end": 1.0}, "ema_momentum_end goes with ema_momentum, its start"),
    ],
    ids=str,
)
def test_maskclip_config__fields_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskCLIPConfig.model_validate(fields)


def test_maskclip_config__defaults_are_the_papers() -> None:
    config = MaskCLIPConfig()
    assert (config.distillation_weight, config.mlm_weight) == (0.05, 0.05)
    assert (config.mask_ratio, config.text_mask_ratio) == (0.75, 0.2)
    assert (config.decoder_depth, config.text_decoder_depth) == (1, 4)
    assert (config.target, config.loss) == ("ema_features", "cross_entropy")


def test_maskclip__full_ema_is_a_model_of_one_age() -> None:
    """Every weight of the teacher is half of the first and half of the second student."""
    method = maskclip(full_ema=True, ema_momentum=0.5)
    before = {name: value.clone() for name, value in method.model.named_parameters()}
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.mul_(0.5)
    method.after_step(step=1, total_steps=2)
    teacher = method.teacher_model()
    assert teacher is not None
    for name, value in teacher.named_parameters():
        torch.testing.assert_close(value, 0.75 * before[name], msg=name)
    only_trunk = maskclip(ema_momentum=0.5)
    losses = [step(one, batch(8))[0] for one in (maskclip(full_ema=True), only_trunk)]
    assert losses[0] == losses[1]  # the losses need the trunk's copy alone


def test_maskclip__head_only_ema_is_the_students_own_features() -> None:
    """No teacher pass: one trunk; only the quantizer's head follows by momentum."""
    method = maskclip(teacher="momentum_head", ema_momentum=0.5)
    assert method.teacher_trunk is None
    assert not any("teacher_trunk" in name for name in method.state_dict())
    trunk, images = method.model.visual.trunk, batch().images
    pooled, target = method.see_whole_image(images, embed_patches(trunk, images))
    torch.testing.assert_close(target, trunk.forward_features(images)[:, 1:])
    assert not target.requires_grad
    assert pooled.requires_grad
    before = method.quantizer.teacher.codewords.clone()
    with torch.no_grad():
        method.quantizer.student.codewords.add_(1.0)
    method(batch())
    assert method.after_step(step=1, total_steps=10)["ema_momentum"] == 0.5
    torch.testing.assert_close(method.quantizer.teacher.codewords, before + 0.5)


def test_maskclip__own_features_have_no_momentum_anywhere() -> None:
    method = maskclip(target="features")
    with torch.no_grad():
        method.quantizer.student.codewords.add_(1.0)
    method(batch())
    method.after_step(step=1, total_steps=10)
    assert torch.equal(method.quantizer.teacher.codewords, method.quantizer.student.codewords)


def test_maskclip__logs_the_age_of_its_teacher() -> None:
    method = maskclip(ema_momentum=0.5)
    ages = []
    for number in (1, 2, 3):
        method(batch())
        ages.append(method.after_step(step=number, total_steps=10)["teacher_age_steps"])
    assert ages == [0.5, 0.75, 0.875]
