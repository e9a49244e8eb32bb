"""Few-shot: draws, and the closed form against refitting."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskclip_bench.errors import DataError, NonFiniteError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.measure import measure
from maskclip_bench.tasks.protocols.few_shot import (
    Fit,
    draw_shots,
    fit_big_vision,
    fit_clip_benchmark,
    fit_ridge,
)
from tests.tasks.conftest import (
    CollapsedEncoder,
    ColourEncoder,
    MakeContext,
    make_backbone,
    run,
    squares_task,
)


def test_few_shot__draws_are_of_every_class_and_deterministic() -> None:
    labels = np.repeat([0, 1, 2], [5, 9, 7])
    chosen = draw_shots(labels, 3, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [3, 3, 3]
    assert len(set(chosen.tolist())) == 9
    assert np.array_equal(chosen, draw_shots(labels, 3, seed=1))
    assert not np.array_equal(chosen, draw_shots(labels, 3, seed=2))


def test_few_shot__leave_one_out_equals_leaving_one_out() -> None:
    """The chosen penalty is the one that naive refitting without each image chooses."""
    from maskclip_bench.tasks.protocols import few_shot

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 4, generator=generator).double()
    labels = torch.arange(12) % 3
    targets = 2 * F.one_hot(labels, 3).double() - 1

    def ridge(
        x: torch.Tensor, y: torch.Tensor, penalty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        centred = x - x.mean(0)
        gram = centred.T @ centred + penalty * torch.eye(4, dtype=torch.float64)
        weight = torch.linalg.solve(gram, centred.T @ (y - y.mean(0)))
        return weight, y.mean(0) - x.mean(0) @ weight

    variance = float((features - features.mean(0)).pow(2).sum())
    accuracy = []
    for relative in few_shot.PENALTIES:
        hits = 0
        for out in range(12):
            keep = torch.arange(12) != out
            weight, bias = ridge(features[keep], targets[keep], relative * variance)
            hits += int((features[out] @ weight + bias).argmax() == labels[out])
        accuracy.append(hits)
    assert len(set(accuracy)) > 1
    best = few_shot.PENALTIES[int(np.argmax(accuracy))] * variance
    weight, bias = fit_ridge(features.float(), labels, num_classes=3)
    expected_weight, expected_bias = ridge(features.float().double(), targets, best)
    torch.testing.assert_close(weight, expected_weight)
    torch.testing.assert_close(bias, expected_bias)


def test_few_shot__too_few_images_a_class(make_context: MakeContext) -> None:
    task = squares_task(protocols={"few_shot": {"shots": 10}})
    with pytest.raises(DataError, match="wants 10 train images of every class; the smallest"):
        run(make_context("few_shot", task, ColourEncoder()), "few_shot")


def test_fit_ridge__without_variance_all_classes_are_equal() -> None:
    features = torch.linspace(0.1, 3, 5).expand(8, -1)
    weight, bias = fit_ridge(features, torch.arange(8) % 4, num_classes=4)
    assert not weight.any()
    assert bias.unique().numel() == 1


def test_fit_ridge__refuses_what_is_not_finite() -> None:
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    features[2, 3] = torch.inf
    with pytest.raises(NonFiniteError, match="1 of 8 rows of the features"):
        fit_ridge(features, torch.arange(8) % 4, num_classes=4)


def test_big_vision__whitened_ridge_with_a_fixed_penalty() -> None:
    """Against the normal equations of the whitened features with the constant, solved at once."""
    generator = torch.Generator().manual_seed(0)
    for num, width in ((30, 4), (6, 9)):  # more shots than features, and fewer
        features = torch.randn(num, width, generator=generator) * 3 + 1
        labels = torch.arange(num) % 3
        weight, bias = fit_big_vision(features, labels, num_classes=3)
        x = features.double().numpy()
        white = (x - x.mean(0)) / (x.std(0) + 1e-5)
        white = np.concatenate([white, np.full((num, 1), 100.0)], axis=1)
        targets = 2 * np.eye(3)[labels.numpy()] - 1
        penalty = 1024 * np.eye(width + 1)
        solution = np.linalg.solve(white.T @ white + penalty, white.T @ targets)
        found = x @ weight.numpy() + bias.numpy()
        assert found == pytest.approx(white @ solution, abs=1e-8)


def test_big_vision__draws_of_its_own_seeds(make_context: MakeContext) -> None:
    labels = np.repeat([0, 1, 2], 6)
    generator = np.random.default_rng(1)
    expected = [generator.permutation(np.where(labels == label)[0])[:2] for label in range(3)]
    assert draw_shots(labels, 2, seed=1).tolist() == np.concatenate(expected).tolist()
    task = squares_task(protocols={"few_shot": {"preset": "big_vision_ridge"}})
    found = run(make_context("few_shot", task, ColourEncoder()), "few_shot")
    assert set(found.metrics) == {"top1_accuracy_1_shot", "top1_accuracy_5_shots"}
    assert len(found.details["by_draw"]["top1_accuracy_1_shot"]) == 3
    assert found.details["normalized"] is False


def test_clip_benchmark__learns_and_is_deterministic(make_context: MakeContext) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = F.normalize(torch.eye(3)[labels] + 0.1 * torch.randn(60, 3, generator=generator))
    weight, bias = fit_clip_benchmark(features, labels, num_classes=3, seed=1)
    assert ((features.double() @ weight + bias).argmax(1) == labels).all()
    again, _ = fit_clip_benchmark(features, labels, num_classes=3, seed=1)
    other, _ = fit_clip_benchmark(features, labels, num_classes=3, seed=2)
    assert torch.equal(weight, again)
    assert not torch.equal(weight, other)
    task = squares_task(protocols={"few_shot": {"preset": "clip_benchmark_probe"}})
    assert PROTOCOLS["few_shot"].needs_text_tower(task)
    found = run(make_context("few_shot", task, ColourEncoder()), "few_shot")
    assert found.details["feature_point"] == "joint"
    assert found.metrics["top1_accuracy_5_shots"].value > 0.8


@pytest.mark.parametrize("fit", [fit_ridge, fit_big_vision, fit_clip_benchmark])
def test_fits__without_variance_all_classes_tie_and_nan_is_refused(fit: Fit) -> None:
    labels = torch.arange(6) % 3
    weight, bias = fit(torch.full((6, 4), 0.3), labels, num_classes=3)
    assert float(weight.abs().max()) == 0
    assert len(bias.unique()) == 1
    with pytest.raises(NonFiniteError, match="features"):
        fit(torch.full((6, 4), torch.nan), labels, num_classes=3)


@pytest.mark.parametrize("preset", ["big_vision_ridge", "clip_benchmark_probe"])
def test_collapsed_model__scores_chance_with_every_preset(
    preset: str, make_context: MakeContext
) -> None:
    task = squares_task(protocols={"few_shot": {"preset": preset}})
    found = run(make_context("few_shot", task, CollapsedEncoder()), "few_shot")
    for metric in found.metrics.values():
        assert metric.value == pytest.approx(metric.chance_level)


@pytest.mark.parametrize(
    ("images", "limit", "message"),
    [
        (48, None, r"the smallest class has 8. Set shots to one of 1, 2, 5.$"),
        (48, 6, r"the smallest class has 1. Use a larger limit than 6.$"),
        (40, None, r"the smallest class has 0. Add images, or remove the class.$"),
    ],
)
def test_few_shot__says_what_helps(
    images: int, limit: int | None, message: str, data_root: Path, tmp_path: Path
) -> None:
    task = squares_task(protocols={"few_shot": {"shots": 10}})
    shutil.copytree(data_root, tmp_path / "data")
    if images < 48:
        for path in (tmp_path / "data/squares/train/c0").iterdir():
            path.unlink()
    workspace = Workspace(root=tmp_path / "workspace", data=tmp_path / "data")
    with pytest.raises(DataError, match=message):
        measure(
            PROTOCOLS["few_shot"],
            task,
            make_backbone(ColourEncoder()),
            workspace=workspace,
            limit=limit,
        )
