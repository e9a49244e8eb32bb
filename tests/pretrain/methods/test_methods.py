"""What every method must hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny_methods import MODEL, batch, build, drawn_batch, fields, part, repeating_draws, step
from torch import Tensor

from maskclip_bench import distributed
from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.modeling import ModelConfig, VisionConfig
from maskclip_bench.modeling.packing import PackedLayout
from maskclip_bench.pretrain.accumulation import accumulated_backward
from maskclip_bench.pretrain.methods import METHODS, build_method
from maskclip_bench.pretrain.methods.parts import masked_language

HIDING = ["clip_mae", "maskclip", "filip", "mae", "simmim", "mvp"]


@pytest.mark.parametrize("name", METHODS)
def test_method__terms_add_up_and_nothing_else_is_drawn(name: str, clip_folder: Path) -> None:
    method = build(name, clip_folder)
    before = torch.random.get_rng_state()
    terms = method(batch())
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(term.shape == () and torch.isfinite(term) for term in terms.values())
    assert all(key.endswith("loss") for key in terms)
    total = sum(float(t.detach()) for key, t in terms.items() if key != "loss")
    assert float(terms["loss"].detach()) == pytest.approx(total, rel=1e-6)
    again = build(name, clip_folder)(batch())
    other = build(name, clip_folder)(batch(seed=1))
    for key, term in terms.items():
        assert torch.equal(term, again[key])
    draws = name not in ("clip", "slip", "filip", "simclr")
    assert (not torch.equal(terms["loss"], other["loss"])) == draws


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].uses_text])
def test_method__looks_at_captions_on_the_cpu(
    name: str, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layout and choice of words come from the loader's tokens: nothing waits for the device."""
    whole = batch()
    whole.tokens_on_cpu = whole.tokens.clone()
    looked_at: list[Tensor] = []
    for owner, function in ((PackedLayout, "of"), (masked_language, "choose_words")):
        plain = getattr(owner, function)

        def spy(tokens: Tensor, *arguments: Any, plain: Any = plain) -> Any:
            looked_at.append(tokens)
            return plain(tokens, *arguments)

        monkeypatch.setattr(owner, function, spy)
    terms = build(name, clip_folder)(whole)
    assert looked_at
    assert all(tokens is whole.tokens_on_cpu for tokens in looked_at)
    torch.testing.assert_close(terms["loss"], build(name, clip_folder)(batch())["loss"])


@pytest.mark.parametrize("name", METHODS)
def test_method__every_trained_parameter_gets_a_gradient(name: str, clip_folder: Path) -> None:
    method = build(name, clip_folder)
    step(method, batch())
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    if not METHODS[name].uses_text:
        assert not any(p.requires_grad for p in method.model.text.parameters())


FALLING: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS if name not in ("maskclip", "mvp")},
    # A teacher, a quantizer of the targets and a centre that stand still: targets stay the same.
    "maskclip": (
        "maskclip",
        {"ema_momentum": 1, "center_momentum": 1, "teacher_temp_warmup": 0},
    ),
    "maskclip_mse": ("maskclip", {"ema_momentum": 1, "loss": "mse"}),
    "maskclip_pixels": ("maskclip", {"target": "pixels"}),
    "mvp": ("mvp", {"quantizer_momentum": 1, "center_momentum": 1, "teacher_temp_warmup": 0}),
    "mvp_cosine": ("mvp", {"loss": "cosine"}),
}


@pytest.mark.parametrize("case", FALLING)
def test_method__every_term_falls_on_drawn_shapes(case: str, clip_folder: Path) -> None:
    name, changes = FALLING[case]
    method = build(name, clip_folder, **changes)
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    history: dict[str, list[float]] = {}
    for number in range(20):
        losses, _ = step(method, drawn_batch(8, seed=number))
        optimizer.step()
        optimizer.zero_grad()
        logged = method.after_step(step=number + 1, total_steps=20)
        assert all(isinstance(value, float) for value in logged.values())
        for key, value in losses.items():
            history.setdefault(key, []).append(value)
    assert len(history) > 1
    for key, values in history.items():
        early, late = sum(values[:5]) / 5, sum(values[-5:]) / 5
        assert late < early, (key, early, late)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each parameter's gradient differs by less than 2e-5 of its length."""
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        difference = float((found[key] - gradient).norm())
        assert difference < 2e-5 * max(1.0, float(gradient.norm())), key


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> dict[str, Any]:
    """Losses and gradients of every method from two gloo processes with DDP."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("tiny_methods.py")
    arguments = [str(folder / "store"), str(clip_folder), str(folder / "results.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)[-4000:]
    return dict(torch.load(folder / "results.pt", weights_only=True))


@pytest.mark.parametrize("name", METHODS)
def test_method__two_processes_equal_one(
    name: str,
    two_processes: dict[str, Any],
    clip_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repeating_draws(monkeypatch, 4)
    method = build(name, clip_folder)
    losses, gradients = step(method, batch(8))
    logged = method.after_step(step=1, total_steps=10)
    found = two_processes[name]
    assert found["losses"] == pytest.approx(losses, rel=1e-5, abs=1e-5)
    assert found["logged"] == pytest.approx(logged)
    assert found["lengths"] == [12, 9]  # the ranks' captions are not equally long
    assert_same_gradients(found["gradients"], gradients)
    for key, buffer in method.named_buffers():
        torch.testing.assert_close(found["buffers"][key], buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_method__accumulated_equals_whole_batch(
    name: str, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeating_draws(monkeypatch, 4)
    whole = build(name, clip_folder)
    losses, gradients = step(whole, batch(8))
    method = build(name, clip_folder)
    halves = [part(batch(8), 0, 4), part(batch(8), 4, 8)]
    terms = accumulated_backward(
        method,
        halves,
        reseed=lambda number: None,
        autocast=lambda: torch.autocast("cpu", enabled=False),
    )
    assert {key: float(term) for key, term in terms.items()} == pytest.approx(losses, rel=1e-5)
    found = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    assert_same_gradients(found, gradients)
    for one in (whole, method):
        one.after_step(step=1, total_steps=10)
    for (key, buffer), expected in zip(method.named_buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=key)


@pytest.mark.parametrize("name", METHODS)
def test_method__embed_is_what_encode_embeds(name: str, clip_folder: Path) -> None:
    """For the first pass of accumulation; it draws as `encode` does, stochastic depth included.

    What enters a term linearly is left out, as zeros.
    """
    vision = MODEL.vision.model_copy(update={"drop_path_rate": 0.5})
    method = build_method(
        name, fields(name, clip_folder), MODEL.model_copy(update={"vision": vision})
    ).train()
    torch.manual_seed(3)
    expected, _ = method.encode(batch())
    torch.manual_seed(3)
    found = method.embed(batch())
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key in method.linear_embeddings:
            assert not found[key].any()
            assert value.any()
        else:
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)


VIT_B = 85_798_656 + 768 * 512
TEXT = 49408 * 512 + 77 * 512 + 12 * (12 * 512**2 + 13 * 512) + 2 * 512 + 512 * 512
CLIP = VIT_B + TEXT + 1


def block(width: int) -> int:
    return 12 * width**2 + 13 * width


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def decoder(width: int, depth: int, output: int) -> int:
    """Embedding, mask token, blocks, norm, head; positions are fixed."""
    return linear(768, width) + width + depth * block(width) + 2 * width + linear(width, output)


def quantizer(width: int) -> int:
    return linear(width, 2048) + linear(2048, 2048) + linear(2048, 256) + 8192 * 256


SSL = linear(768, 4096) + 2 * 4096 + linear(4096, 4096) + 2 * 4096 + linear(4096, 256)
VIT_B_16 = 86_192_640  # open_clip's own, with class token, norms and projection

EXTRA = {
    "clip": 0,
    "slip": SSL,
    "clip_mae": decoder(768, 1, 768),
    # Decoder, quantizer twice, teacher; mask word, text decoder, vocabulary bias.
    "maskclip": decoder(768, 1, 768)
    + 2 * quantizer(768)
    + 85_798_656
    + 512
    + 4 * block(512)
    + 2 * 512
    + 49408,
    "filip": 0,
    "simclr": SSL,
    "mae": decoder(512, 8, 768),
    "simmim": 768 + linear(768, 768),
    "mvp": VIT_B_16 + 768 + linear(768, 768) + 2 * quantizer(768),
}


@pytest.mark.parametrize("name", METHODS)
def test_method__size_for_vit_base(name: str) -> None:
    with torch.device("meta"):
        method = build_method(name, {}, ModelConfig())
    assert sum(p.numel() for p in method.parameters()) == CLIP + EXTRA[name]


@pytest.mark.parametrize("name", METHODS)
def test_method__weight_decay_spares_vectors(name: str, clip_folder: Path) -> None:
    method = build(name, clip_folder)
    exempt = method.parameters_without_weight_decay()
    assert "model.logit_scale" in exempt
    assert "model.visual.trunk.blocks.0.norm1.weight" in exempt
    assert "model.visual.trunk.blocks.0.mlp.fc1.weight" not in exempt


@pytest.mark.parametrize("name", HIDING)
def test_method__that_hides_patches_needs_a_vit(name: str, clip_folder: Path) -> None:
    model = MODEL.model_copy(update={"vision": VisionConfig(timm_model="resnet10t")})
    with pytest.raises(ConfigError, match=r"hides patches, which needs a ViT, and the trunk is a"):
        build_method(name, fields(name, clip_folder), model)


@pytest.mark.parametrize("name", ["clip", "slip", "simclr"])
def test_method__that_hides_nothing_takes_any_trunk(name: str, clip_folder: Path) -> None:
    model = MODEL.model_copy(update={"vision": VisionConfig(timm_model="resnet10t")})
    method = build_method(name, fields(name, clip_folder), model)
    losses, _ = step(method, batch(4))
    assert losses["loss"] > 0


def test_build_method__unknown_name() -> None:
    with pytest.raises(UnknownNameError, match=r"No method 'maskclp'. Did you mean 'maskclip'"):
        build_method("maskclp", {}, MODEL)


def test_build_method__unknown_field() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'mask_ration'. Did you mean 'mask_ratio'"):
        build_method("maskclip", {"mask_ration": 0.5}, MODEL)


def test_build_method__other_vocabulary() -> None:
    class Tokenizer:
        vocab_size = 7

    with pytest.raises(ConfigError, match=r"tokenizer has 7 tokens, and model.text.vocab_size is"):
        build_method("clip", {}, MODEL, Tokenizer())
    build_method("simclr", {}, MODEL, Tokenizer())  # uses no captions


def test_gather__paper_stops_gradients_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    plain = distributed.gather

    def gather(tensor: torch.Tensor, *, with_gradient: bool) -> torch.Tensor:
        seen.append(with_gradient)
        return plain(tensor, with_gradient=with_gradient)

    monkeypatch.setattr(distributed, "gather", gather)
    build("clip", Path(), gather="paper")(batch(4))
    assert seen == [False, False]
    build("clip", Path())(batch(4))
    assert seen[2:] == [True, True]


def test_demo_vit_is_registered() -> None:
    assert timm.is_model(MODEL.vision.timm_model)
