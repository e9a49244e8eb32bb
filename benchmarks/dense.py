"""Where the time of a dense training iteration goes, and what the backbone adapter costs.

    python benchmarks/dense.py                      # UperNet on ViT-B/16 at 512 px, two images
    python benchmarks/dense.py --model mask-rcnn    # Mask R-CNN on ViT-B/16 at 1024 px
    python benchmarks/dense.py --image-size 128 --batch-size 8 --iterations 5
    python benchmarks/dense.py --device cuda --iterations 20 --bf16

Weights are random and images are noise: times do not depend on them. Heads and optimizer are those
of the shipped configs; `--bf16` is their optimizer wrapper (autocast in bfloat16, no loss scaler),
without it mmengine's plain one. UperNet's images are written to disk and read by its config's
pipeline; those of Mask R-CNN, with 20 objects each, are made in memory.

The "adapter" lines compare `MaskCLIPViT` with the bare timm trunk that it wraps (patch embedding,
all blocks, final norm), in the same process, by turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

warnings.filterwarnings("ignore")

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {
    "upernet": "configs/mmseg/mae_vit-b-16_upernet_8xb2-amp-160k_ade20k-512x512.py",
    "mask-rcnn": "configs/mmdet/mae_vit-b-16_mask-rcnn_8xb2-amp-1x_coco-1024.py",
}
SIZES = {"upernet": 512, "mask-rcnn": 1024}
"""Pixels of an image where none are asked for."""
NUM_OBJECTS = 20
PARTS = ("data", "backbone", "neck and heads", "backward", "optimizer")


def write_data(root: Path, size: int, count: int) -> None:
    """ADE20K's layout, with noise."""
    generator = np.random.default_rng(0)
    for folder in ("images", "annotations"):
        (root / folder / "training").mkdir(parents=True)
    for index in range(count):
        pixels = generator.integers(0, 255, (size, size, 3), dtype=np.uint8)
        labels = generator.integers(0, 151, (size, size), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images/training" / f"{index}.jpg")
        Image.fromarray(labels).save(root / "annotations/training" / f"{index}.png")


class Clock:
    """Seconds by part; waits for the device before it reads the time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, part: str, work: Callable[[], Any]) -> Any:
        """Do `work` and add its seconds to `part`; returns what it returns."""
        started = self._now()
        result = work()
        self.seconds.setdefault(part, []).append(self._now() - started)
        return result

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def load_config(arguments: argparse.Namespace) -> Any:
    """The shipped config of a model, with random weights and for this image size."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    config = Config.fromfile(str(ROOT / CONFIGS[arguments.model]))
    size = arguments.image_size
    if arguments.model == "upernet":
        import mmseg.datasets
        import mmseg.models

        assert mmseg.models and mmseg.datasets
        config.model.data_preprocessor.size = (size, size)
        config.crop_size = (size, size)
    else:
        import mmdet.models

        assert mmdet.models
        config.model.data_preprocessor.pad_size_divisor = size
    init_default_scope(config.default_scope)
    config.model.backbone.pretrained = False
    if not arguments.bf16:
        config.optim_wrapper.type = "OptimWrapper"
    return config


def segmentation_samples(config: Any, arguments: argparse.Namespace, folder: Path) -> Any:
    """A function that reads one batch as ADE20K's pipeline does."""
    from mmengine.registry import DATASETS

    size = arguments.image_size
    dataset_config = config.train_dataloader.dataset
    for step in dataset_config.pipeline:
        if step.type == "RandomCrop":
            step.crop_size = (size, size)
        if step.type == "RandomResize":
            step.scale = (4 * size, size)
    write_data(folder, size, arguments.batch_size)
    dataset_config.data_root = str(folder)
    dataset = DATASETS.build(dataset_config)
    dataset.full_init()
    return lambda: [dataset[index] for index in range(arguments.batch_size)]


def detection_samples(arguments: argparse.Namespace) -> Any:
    """A function that makes one batch of images with boxes and masks."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    size = arguments.image_size
    generator = np.random.default_rng(0)

    def sample() -> dict[str, Any]:
        corners = generator.uniform(0, size * 0.8, (NUM_OBJECTS, 2))
        sides = generator.uniform(size / 64, size * 0.2, (NUM_OBJECTS, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1)
        masks = np.zeros((NUM_OBJECTS, size, size), dtype=np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.round().astype(int), strict=True):
            mask[top : bottom + 1, left : right + 1] = 1
        found = DetDataSample(
            metainfo={"img_shape": (size, size), "ori_shape": (size, size), "scale_factor": (1, 1)}
        )
        found.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.tensor(boxes, dtype=torch.float32)),
            labels=torch.from_numpy(generator.integers(0, 80, NUM_OBJECTS)),
            masks=BitmapMasks(masks, size, size),
        )
        found.ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0, dtype=torch.int64)
        )
        pixels = generator.integers(0, 255, (3, size, size), dtype=np.uint8)
        return {"inputs": torch.from_numpy(pixels), "data_samples": found}

    return lambda: [sample() for _ in range(arguments.batch_size)]


def split_iteration(arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Median seconds of each part of an iteration of a shipped config."""
    from mmengine.dataset import pseudo_collate
    from mmengine.model import revert_sync_batchnorm
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS

    config = load_config(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model == "upernet":
            samples = segmentation_samples(config, arguments, Path(folder))
        else:
            samples = detection_samples(arguments)
        model = revert_sync_batchnorm(MODELS.build(config.model)).to(device).train()
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
        features: dict[str, Any] = {}
        model.backbone.register_forward_hook(lambda *given: features.update(maps=given[2]))
        clock = Clock(device)

        def heads(batch: dict[str, Any]) -> torch.Tensor:
            """Everything after the backbone: its maps are put in place of a second pass."""
            forward = model.backbone.forward
            model.backbone.forward = lambda images: features["maps"]
            try:
                losses = model.loss(batch["inputs"], batch["data_samples"])
            finally:
                model.backbone.forward = forward
            return model.parse_losses(losses)[0]

        def update() -> None:
            wrapper.step()
            wrapper.zero_grad()

        for _ in range(arguments.iterations + arguments.warmup):
            batch = clock(
                "data", lambda: model.data_preprocessor(pseudo_collate(samples()), training=True)
            )
            with wrapper.optim_context(model):
                clock("backbone", lambda batch=batch: model.backbone(batch["inputs"]))
                loss = clock("neck and heads", lambda batch=batch: heads(batch))
            clock("backward", lambda loss=loss: wrapper.backward(loss))
            clock("optimizer", update)
    return {
        part: statistics.median(seconds[arguments.warmup :])
        for part, seconds in clock.seconds.items()
    }


def adapter_cost(
    arguments: argparse.Namespace, device: torch.device
) -> tuple[float, float, list[float]]:
    """Forward and backward of the bare timm trunk, and of `MaskCLIPViT` around it.

    Both do the same work but for this: the adapter adds the class token's position by itself, and
    copies the patch tokens into a contiguous map [B, D, h, w] at the end.

    Returns:
        Median seconds of the trunk, of the adapter, and the ratio adapter / trunk of each pair of
        neighbours in time. The two take turns in being first, so that neither profits from the
        order.
    """
    import timm

    from maskclip_bench.backbones.openmmlab.vit import MaskCLIPViT

    size = arguments.image_size
    options = {"img_size": size, "num_classes": 0}
    bare = timm.create_model("vit_base_patch16_224", **options).to(device).train()
    adapter = MaskCLIPViT(timm="vit_base_patch16_224", model_args=options).to(device).train()
    images = torch.randn(arguments.batch_size, 3, size, size, device=device)
    clock = Clock(device)

    def run(name: str) -> None:
        model = bare if name == "bare" else adapter
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
            clock(name, lambda: forward(name).float().mean().backward())

    def forward(name: str) -> torch.Tensor:
        return bare.forward_features(images) if name == "bare" else adapter(images)[0]

    first = max(arguments.warmup, 1)
    for pair in range(arguments.pairs + first):
        names = ("bare", "adapter") if pair % 2 == 0 else ("adapter", "bare")
        for name in names:
            run(name)
    bare_seconds, adapter_seconds = clock.seconds["bare"][first:], clock.seconds["adapter"][first:]
    ratios = [own / other for own, other in zip(adapter_seconds, bare_seconds, strict=True)]
    return statistics.median(bare_seconds), statistics.median(adapter_seconds), ratios


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=CONFIGS, default="upernet")
    parser.add_argument("--image-size", type=int, help="default: 512, of Mask R-CNN 1024")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=8, help="of trunk and adapter")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast in bfloat16")
    arguments = parser.parse_args()
    arguments.image_size = arguments.image_size or SIZES[arguments.model]
    device = torch.device(arguments.device)

    parts = split_iteration(arguments, device)
    total = sum(parts.values())
    print(
        f"{arguments.model}, ViT-B/16, {arguments.image_size} px, batch {arguments.batch_size}, "
        f"{device}, {torch.get_num_threads()} threads, {'bf16' if arguments.bf16 else 'fp32'}"
    )
    for part in PARTS:
        print(f"  {part:<16}{parts[part]:8.3f} s  {100 * parts[part] / total:5.1f} %")
    print(f"  {'iteration':<16}{total:8.3f} s")
    bare, adapter, ratios = adapter_cost(arguments, device)
    print(f"trunk, forward and backward: timm {bare:.3f} s, MaskCLIPViT {adapter:.3f} s (medians)")
    added = [100 * (ratio - 1) for ratio in ratios]
    print(
        f"the adapter adds {statistics.median(added):+.1f} % (median of {len(added)} pairs, "
        f"{min(added):+.1f} to {max(added):+.1f} %)"
    )


if __name__ == "__main__":
    main()
