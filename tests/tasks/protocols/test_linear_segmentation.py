"""linear segmentation: scores that are known in advance."""

from __future__ import annotations

from pathlib import Path

import torch

from maskclip_bench.tasks.protocols.linear_segmentation import LinearSegmentation, fit_linear

from .scenes import context, write_scenes


def test_run__colours_are_easy(tmp_path: Path) -> None:
    protocol = LinearSegmentation()
    write_scenes(tmp_path / "halves")
    measurement = protocol.run(context(tmp_path, protocol, classes="classes.json"))
    assert measurement.metrics["mean_iou"].value > 0.85
    assert measurement.metrics["thing_mean_iou"].value > 0.85
    assert set(measurement.details["class_iou"]) <= {"blue", "red", "green"}
    assert len(measurement.outcomes) == 4
    labelled = sum(sum(row) for row in measurement.outcomes["pixel_accuracy.denominator"])
    assert labelled == 4 * 88 * 96


def test_fit_linear__minimum_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(200, 5, generator=generator)
    labels = torch.eye(3)[(tokens[:, :3]).argmax(1)]
    weight, bias = fit_linear(tokens, labels, l2=1e-2)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    loss = -(labels * (tokens @ weight.T + bias).log_softmax(1)).sum(1).mean()
    (loss + 1e-2 * weight.square().sum()).backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-3
    assert ((tokens @ weight.T + bias).argmax(1) == labels.argmax(1)).float().mean() > 0.9
