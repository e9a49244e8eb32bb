"""Linear probe through the backbone: the tower is frozen, and sees augmented images every epoch.

The published linear probes of SLIP, MaskCLIP and MAE are of this kind. `linear_probe` is the other
kind, logistic regression on features of plain images; the two are not comparable.

| preset | recipe | may stand beside |
| --- | --- | --- |
| `slip_sgd` | SLIP's `main_linear.py` as published | CLIP 66.5, SLIP 72.1, MaskCLIP 73.7 |
| `slip_sgd_intended` | with MoCo v3's rule for the rate, 64 times higher | rows measured here |
| `mae_lars` | MAE's `main_linprobe.py`: LARS, BatchNorm | MAE 67.8 |
| `small_sgd` | for small data | rows measured here |

All published numbers are of ViT-B/16; the first three of pretraining on YFCC15M-V1.

SLIP's script tests every tenth epoch and keeps the best, which selects on the test split. Here the
last epoch is the score; that best one is `top1_accuracy_best_evaluation`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from maskclip_bench.config import Declaration
from maskclip_bench.tasks.finetuning.recipe import PROBE_PRESETS
from maskclip_bench.tasks.trained_jobs import TrainedProtocol, TrainedSettings


class Settings(TrainedSettings):
    """`protocols: {augmented_linear_probe: ...}` of a data set."""

    preset: Literal["slip_sgd", "slip_sgd_intended", "mae_lars", "small_sgd"] = "slip_sgd"
    """The recipe."""


class AugmentedLinearProbe(TrainedProtocol):
    """A linear classifier on a frozen tower that sees augmented images."""

    name = "augmented_linear_probe"
    title = "Linear probe, augmented"
    settings_model: ClassVar[type[Declaration]] = Settings
    presets = PROBE_PRESETS
