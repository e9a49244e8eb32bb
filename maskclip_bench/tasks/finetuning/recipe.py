"""The hyperparameters of a training through the backbone, and the presets of both protocols.

Sources, read in the repositories themselves: facebookresearch/SLIP c6faf5d (README 5.2,
`beit_finetuning/`, `main_linear.py`), facebookresearch/mae efb2a80 (FINETUNE.md,
`main_finetune.py`, `main_linprobe.py`), LightDXY/FT-CLIP 3f9cefa (README,
`run_class_finetuning.py`), mlfoundations/wise-ft (README, `src/models/finetune.py`). Where a preset
deviates from its source, the field or the preset says so.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from maskclip_bench import storage
from maskclip_bench.backbones.preprocess import Interpolation
from maskclip_bench.config import Declaration, merge, validate

Pooling = Literal["own", "mean_then_norm", "norm_then_mean", "joint"]

NORM_EPS = {"mean_then_norm": 1e-6, "norm_then_mean": 1e-5}
"""Of the new LayerNorm: MAE's and FT-CLIP's."""


class Augmentation(Declaration):
    """Of training images; timm's `create_transform` does the work."""

    crop: Literal["random_resized", "random_resized_no_retry", "none"] = "random_resized"
    """random_resized: torchvision's and timm's, which tries ten times to find a crop inside the
    image. random_resized_no_retry: of BYOL and MAE's linear probe, one draw cut to the image.
    none: the row's own test transform."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the crop, as a share of the image's."""
    interpolation: Interpolation = "bicubic"
    """Filter of the resize after the crop."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Chance of a horizontal flip."""
    auto_augment: str | None = None
    """A policy of timm ("rand-m9-mstd0.5-inc1")."""
    erase_prob: float = Field(default=0.0, ge=0, le=1)
    """Chance of random erasing, filled with noise pixel by pixel."""
    mixup: float = Field(default=0.0, ge=0)
    """Alpha of mixup; 0 = none. One draw for each micro-batch, as in the sources."""
    cutmix: float = Field(default=0.0, ge=0)
    """Alpha of CutMix; 0 = none. Where mixup is on, too, each is taken half of the time."""


class TrainRecipe(Declaration):
    """How a classifier is trained through a backbone.

    Sizes in images are of the whole run (`global_batch_size`), not of a device.
    """

    version: int = 1
    """Raised when the preset changes its meaning."""
    trained: Literal["everything", "head"] = "everything"
    """Whether the image tower learns, too, or stays as it is (and in evaluation mode)."""
    pooling: Pooling = "own"
    """What the head reads. own: the row's `backbone` features. mean_then_norm: the mean over patch
    tokens before the final norm, with a new LayerNorm (MAE's global pooling). norm_then_mean: a new
    LayerNorm on each patch token, then their mean (FT-CLIP). joint: the L2-normalised joint
    embedding."""
    head: Literal["linear", "batch_norm_linear", "zero_shot"] = "linear"
    """linear: one layer. batch_norm_linear: BatchNorm without affine parameters before it (MAE's
    probe). zero_shot: one layer that begins as the text classifier (WiSE-FT)."""
    head_init_std: float = Field(default=2e-5, ge=0)
    """Standard deviation of the head's first weights (normal; biases are 0)."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training split."""
    global_batch_size: int = Field(default=1024, ge=1)
    """Images of one step, over all devices."""
    micro_batch_size: int = Field(default=128, ge=1)
    """Images of one forward pass, at most; mixup and BatchNorm see a micro-batch at a time. The
    number of devices changes nothing as long as each has whole micro-batches."""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """AdamW; SGD with momentum; LARS of MoCo v3 (momentum 0.9, trust 0.001, not for vectors)."""
    lr: float = Field(gt=0)
    """Final, after any scaling by the batch."""
    min_lr: float = Field(default=0.0, ge=0)
    """At the end of the cosine."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Length of the linear warm-up."""
    warmup: Literal["s/W", "s/(W-1)", "(s+1)/W"] = "s/W"
    """Share of `lr` at step s (from 0) of W warm-up steps: MAE's, BEiT's, WiSE-FT's way."""
    lr_steps: Literal["step", "epoch"] = "step"
    """Whether the rate changes at every step or once an epoch (MoCo v3, SLIP)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of what `decayed` says."""
    decayed: Literal["matrices", "everything"] = "matrices"
    """matrices: all but vectors, positions and prefix tokens (MAE, BEiT). everything: WiSE-FT."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD and LARS."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the rate from layer to layer, downwards; the head has 1."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of the last block; it grows linearly from 0."""
    freeze_patch_embedding: bool = False
    """Whether the convolution that embeds patches stays as it is (FT-CLIP at 224 pixels)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Of the targets."""
    clip_grad_norm: float | None = Field(default=None, gt=0)
    """Limit of the gradient's norm; None = no limit."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Of an average of the weights, which is then tested instead of the last ones."""
    augmentation: Augmentation = Augmentation()
    """Of training images."""
    test_crop: float | None = Field(default=None, gt=0, le=1)
    """Image size over the short side it is cropped from at test; None = the row's own transform."""
    test_interpolation: Interpolation = "bicubic"
    """Filter at test, where `test_crop` is given."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the training's forward pass. The sources use fp16 with a scaler, whose place
    bf16 takes. Tests are in fp32."""
    evaluate_every_epochs: int | None = Field(default=None, ge=1)
    """Test that often, too. The best of these is reported apart: it is selected on the test
    split, as the source does, and is no measurement."""

    @model_validator(mode="after")
    def _fits(self) -> TrainRecipe:
        if (self.head == "zero_shot") != (self.pooling == "joint"):
            raise ValueError("the head zero_shot reads the joint embedding: set pooling joint")
        if self.trained == "head" and (self.drop_path or self.layer_decay < 1):
            raise ValueError("a frozen backbone has no drop_path and no layer_decay; remove them")
        return self

    @property
    def mixes(self) -> bool:
        """Whether targets are mixtures of labels."""
        return self.augmentation.mixup > 0 or self.augmentation.cutmix > 0


def with_options(recipe: TrainRecipe, options: dict[str, Any], *, where: str) -> TrainRecipe:
    """A recipe with dotted keys laid over it ("augmentation.mixup").

    Raises:
        ConfigError: A key is unknown, or a value does not fit.
    """
    values: dict[str, Any] = recipe.model_dump()
    for key, value in options.items():
        *parents, last = key.split(".")
        change: dict[str, Any] = {last: value}
        for parent in reversed(parents):
            change = {parent: change}
        values = merge(values, change)
    return validate(values, TrainRecipe, where=where)


def preset_name(preset: str, options: dict[str, Any]) -> str:
    """Name in records; a preset that was changed gets its own, so that tables keep it apart."""
    return f"{preset}+own-{storage.fingerprint(options)[:8]}" if options else preset


_RANDAUGMENT = "rand-m9-mstd0.5-inc1"

FINETUNE_PRESETS: dict[str, TrainRecipe] = {
    "slip_beit": TrainRecipe(
        epochs=100,
        global_batch_size=1024,
        micro_batch_size=128,
        lr=4e-3,
        min_lr=1e-6,
        warmup_epochs=20,
        warmup="s/(W-1)",
        weight_decay=0.05,
        layer_decay=0.65,
        drop_path=0.1,
        label_smoothing=0.1,
        augmentation=Augmentation(
            auto_augment=_RANDAUGMENT, erase_prob=0.25, mixup=0.8, cutmix=1.0
        ),
        test_crop=0.875,
    ),
    "mae": TrainRecipe(
        pooling="mean_then_norm",
        epochs=100,
        global_batch_size=1024,
        micro_batch_size=32,
        lr=2e-3,  # 5e-4 x 1024 / 256
        min_lr=1e-6,
        warmup_epochs=5,
        weight_decay=0.05,
        layer_decay=0.65,
        drop_path=0.1,
        label_smoothing=0.1,
        augmentation=Augmentation(
            auto_augment=_RANDAUGMENT, erase_prob=0.25, mixup=0.8, cutmix=1.0
        ),
        test_crop=0.875,
    ),
    "ft_clip": TrainRecipe(
        pooling="norm_then_mean",
        epochs=50,
        global_batch_size=2048,
        micro_batch_size=256,
        lr=6e-4,
        min_lr=1e-6,
        warmup_epochs=10,
        warmup="s/(W-1)",
        weight_decay=0.05,
        layer_decay=0.6,
        freeze_patch_embedding=True,
        label_smoothing=0.1,
        ema_decay=0.9998,
        augmentation=Augmentation(auto_augment=_RANDAUGMENT, erase_prob=0.25),
        test_crop=1.0,
    ),
    "wise_ft": TrainRecipe(
        pooling="joint",
        head="zero_shot",
        epochs=10,
        global_batch_size=512,
        micro_batch_size=128,
        lr=3e-5,
        warmup_epochs=0.2,  # 500 of 2,502 steps an epoch
        warmup="(s+1)/W",
        weight_decay=0.1,
        decayed="everything",
        clip_grad_norm=1.0,
        augmentation=Augmentation(crop_scale=(0.9, 1.0), flip=0.0),
        precision="fp32",
    ),
    "small": TrainRecipe(
        epochs=20,
        global_batch_size=64,
        micro_batch_size=64,
        lr=5e-4,
        warmup_epochs=2,
        weight_decay=0.05,
        layer_decay=0.75,
        label_smoothing=0.1,
        head_init_std=0.01,
        augmentation=Augmentation(crop_scale=(0.35, 1.0)),
        precision="fp32",
    ),
}
FINETUNE_PRESETS["slip_beit_small"] = FINETUNE_PRESETS["slip_beit"].model_copy(
    update={"drop_path": 0.0}
)
FINETUNE_PRESETS["slip_beit_large"] = FINETUNE_PRESETS["slip_beit"].model_copy(
    update={"epochs": 50.0, "warmup_epochs": 5.0, "layer_decay": 0.75}
)
FINETUNE_PRESETS["demo"] = FINETUNE_PRESETS["small"].model_copy(
    update={
        "epochs": 3.0,
        "global_batch_size": 32,
        "micro_batch_size": 32,
        "lr": 4e-3,
        "warmup_epochs": 0.5,
    }
)
"""slip_beit: SLIP's ViT-B/16 (beside CLIP 80.5, SLIP 82.6, and, whose recipe is not known,
MaskCLIP 83.6); slip_beit_small, slip_beit_large: its ViT-S/16 (CLIP 78.2, SLIP 80.3) and ViT-L/16
(CLIP 81.0, SLIP 84.2). mae: MAE's ViT-B/16 (83.6, seeds 83.46 to 83.66). ft_clip: FT-CLIP's
ViT-B/16 (85.7 from OpenAI's weights); its published number is the best of all epochs, this one the
last. wise_ft: WiSE-FT's end to end finetuning of a zero-shot classifier. small: beside no published
number; a start for small data, not tuned. demo: for the demo world's models of 4 blocks, in 45
seconds of one core; its rate and batch were chosen between two on images that are in no table."""

PROBE_PRESETS: dict[str, TrainRecipe] = {
    "slip_sgd": TrainRecipe(
        trained="head",
        head_init_std=0.01,
        epochs=90,
        global_batch_size=1024,
        micro_batch_size=128,
        optimizer="sgd",
        lr=0.00625,  # 0.1 x int(128 / 8) / 256, what the script does on 8 GPUs
        lr_steps="epoch",
        augmentation=Augmentation(interpolation="bilinear"),
        test_crop=0.875,
        test_interpolation="bilinear",
        precision="fp32",
        evaluate_every_epochs=10,
    ),
    "mae_lars": TrainRecipe(
        trained="head",
        head="batch_norm_linear",
        head_init_std=0.01,
        epochs=90,
        global_batch_size=16384,
        micro_batch_size=512,
        optimizer="lars",
        lr=6.4,  # 0.1 x 16384 / 256
        warmup_epochs=10,
        augmentation=Augmentation(crop="random_resized_no_retry"),
        test_crop=0.875,
    ),
    "small_sgd": TrainRecipe(
        trained="head",
        head_init_std=0.01,
        epochs=4,
        global_batch_size=64,
        micro_batch_size=64,
        optimizer="sgd",
        lr=0.05,
        augmentation=Augmentation(crop_scale=(0.35, 1.0)),
        precision="fp32",
    ),
}
"""slip_sgd: SLIP's script as published, on 8 GPUs (beside CLIP 66.5, SLIP 72.1, MaskCLIP 73.7): its
rate is 64 times below the rule that it takes over from MoCo v3. mae_lars: MAE's script (67.8 for
its ViT-B; BootMAE 66.1). small_sgd: beside no published number."""

PROBE_PRESETS["slip_sgd_intended"] = PROBE_PRESETS["slip_sgd"].model_copy(update={"lr": 0.4})
"""MoCo v3's rule, 0.1 x 1024 / 256; beside no published number."""
