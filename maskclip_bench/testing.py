"""Conformance tests for extensions: call one from your own test, with your class or its name.

    from maskclip_bench.testing import check_method, check_protocol, check_family, check_reader

    def test_my_method() -> None:
        check_method(MyMethod, {"my_weight": 0.5}, changes={"my_weight": 0.1})

Each raises `AssertionError` with what does not hold. They run in seconds on a CPU, use a model of a
few thousand weights, and need no network. `docs/extending.md` has a worked example of each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from maskclip_bench.data.batch import Batch
    from maskclip_bench.modeling.model import ModelConfig
    from maskclip_bench.pretrain.methods.base import Method

VOCABULARY = 64
IMAGE_SIZE = 48
NUM_PAIRS = 8


# --- methods -------------------------------------------------------------------------------------


def tiny_model() -> ModelConfig:
    """A ViT of 96 x 4 and a text tower of 32 x 2: the architecture that methods are checked on."""
    from maskclip_bench.modeling import DEMO_VIT, ModelConfig, TextConfig, VisionConfig

    return ModelConfig(
        proj_dim=24,
        image_size=IMAGE_SIZE,
        vision=VisionConfig(timm_model=DEMO_VIT),
        text=TextConfig(context_length=16, vocab_size=VOCABULARY, width=32, num_heads=2, depth=2),
    )


def tiny_batch(*, num_ssl_views: int = 0, seed: int = 0) -> Batch:
    """Eight pairs of noise images [3, 48, 48] and random captions of 3 to 12 words."""
    import torch

    from maskclip_bench.data.batch import Batch

    generator = torch.Generator().manual_seed(4)
    images = torch.randn(NUM_PAIRS, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    views = tuple(
        images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(num_ssl_views)
    )
    captions = torch.zeros(NUM_PAIRS, 12, dtype=torch.int64)
    for row, length in zip(captions, (12, 3, 7, 5, 9, 4, 11, 6), strict=True):
        row[1 : length - 1] = torch.randint(1, VOCABULARY - 2, (length - 2,), generator=generator)
        row[0], row[length - 1] = VOCABULARY - 2, VOCABULARY - 1
    return Batch(images, captions, views, torch.Generator().manual_seed(seed))


def check_method(
    method: type[Method] | str,
    fields: Mapping[str, Any] | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    exempt: Collection[str] = (),
    num_steps: int = 30,
) -> None:
    """Check a pretraining method: its terms, its gradients, its randomness, and that it learns.

    Args:
        method: The class, or a registered name.
        fields: Values of its `Config` that make it small.
        changes: Field -> another value, for every field of its `Config`: each must change the
            losses of three steps or the number of weights. A missing field is an error.
        exempt: Fields that act only elsewhere, such as over several processes.
        num_steps: AdamW steps on one batch, after which the loss must be lower.

    Raises:
        AssertionError: Something does not hold; says what.
    """
    import torch

    from maskclip_bench.pretrain.methods import METHODS

    cls: Any = METHODS[method] if isinstance(method, str) else method
    values = dict(fields or {})
    built = _build(cls, values)
    terms = built(tiny_batch(num_ssl_views=cls.num_ssl_views))
    _check_terms(cls, terms)
    terms["loss"].backward()
    without = [n for n, p in built.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"{cls.__name__}: no gradient reaches {without[:5]}; freeze or remove them"
    wrong = [
        n
        for n, p in built.named_parameters()
        if p.grad is not None and not bool(torch.isfinite(p.grad).all())
    ]
    assert not wrong, f"{cls.__name__}: the gradient of {wrong[:5]} is not finite"
    first, again = (_loss(cls, values, ambient=seed) for seed in (1, 2))
    assert first == again, (
        f"{cls.__name__}: the loss depends on torch's global generator ({first} and {again}); "
        "draw from batch.generator"
    )
    _check_learns(cls, values, num_steps)
    if changes is not None:
        _check_every_field(cls, values, changes, exempt)


def _build(cls: Any, fields: Mapping[str, Any]) -> Method:
    import torch

    from maskclip_bench.config import validate

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = validate(fields, cls.Config, where=cls.__name__)
        return cls(config, tiny_model()).train()  # type: ignore[no-any-return]


def _loss(cls: Any, fields: Mapping[str, Any], *, ambient: int = 0) -> float:
    import torch

    built = _build(cls, fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ambient)
        return float(built(tiny_batch(num_ssl_views=cls.num_ssl_views))["loss"].detach())


def _check_terms(cls: Any, terms: Mapping[str, Tensor]) -> None:
    assert "loss" in terms, f"{cls.__name__} returns no 'loss' (keys: {sorted(terms)})"
    for name, value in {name: term.detach() for name, term in terms.items()}.items():
        assert value.ndim == 0, f"{cls.__name__}: {name} has the shape {tuple(value.shape)}"
        assert math.isfinite(float(value)), f"{cls.__name__}: {name} is {float(value)}"
        assert name == "loss" or name.endswith("_loss"), f"{cls.__name__}: {name} ends in no _loss"
    loss = float(terms["loss"].detach())
    total = sum(float(value.detach()) for name, value in terms.items() if name != "loss")
    assert abs(total - loss) <= 1e-4 * max(1.0, abs(total)), (
        f"{cls.__name__}: the terms sum to {total}, and loss is {loss}"
    )


def _losses(cls: Any, fields: Mapping[str, Any], num_steps: int) -> tuple[list[float], int]:
    """Losses of AdamW steps on one batch, and the number of weights."""
    import torch

    built = _build(cls, fields)
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for step in range(1, num_steps + 1):
        loss = built(tiny_batch(num_ssl_views=cls.num_ssl_views))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logged = built.after_step(step=step, total_steps=num_steps)
        losses.append(float(loss.detach()))
        wrong = {name: value for name, value in logged.items() if not math.isfinite(value)}
        assert not wrong, f"{cls.__name__}: after_step logs {wrong} at step {step}"
    return losses, sum(parameter.numel() for parameter in built.parameters())


def _check_learns(cls: Any, fields: Mapping[str, Any], num_steps: int) -> None:
    losses, _ = _losses(cls, fields, num_steps)
    assert losses[-1] < losses[0], (
        f"{cls.__name__}: the loss went from {losses[0]:.4f} to {losses[-1]:.4f} in {num_steps} "
        "steps on one batch"
    )


def _check_every_field(
    cls: Any, fields: Mapping[str, Any], changes: Mapping[str, Any], exempt: Collection[str]
) -> None:
    declared = set(cls.Config.model_fields) - set(exempt)
    assert declared <= set(changes), (
        f"{cls.__name__}: give another value for {sorted(declared - set(changes))} in `changes`"
    )
    assert set(changes) <= declared, f"{cls.__name__} has no {sorted(set(changes) - declared)}"
    before = _losses(cls, fields, 3)
    same = [n for n, value in changes.items() if _losses(cls, {**fields, n: value}, 3) == before]
    assert not same, f"{cls.__name__}: changing {same} changes neither the losses nor the weights"
