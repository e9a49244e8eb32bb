"""What the protocols that segment with a frozen backbone's patch tokens share.

| protocol | a patch's class scores |
| --- | --- |
| `knn_segmentation` | votes of the nearest labelled patches (arXiv 2306.01667) |
| `linear_segmentation` | a linear layer trained on frozen patches |
| `zero_shot_segmentation` | cosine of projected patches with the class names |

An image is resized to a square of `tiles` x `tiles` windows of the size the backbone was trained
with, so that no position embedding is resampled. The scores of the patches are upsampled to the
mask's size (bilinear) before the largest one is taken.

S images, G patches along a side, N patches, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from maskclip_bench.config import Declaration
from maskclip_bench.data.masks import class_shares, count_pixels, read_mask
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.results.measurement import Measurement
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.dense_outcomes import SplitResult, outcome_table
from maskclip_bench.tasks.features import identity_of, name_not_finite
from maskclip_bench.tasks.metrics import check_finite
from maskclip_bench.tasks.protocols.base import Protocol, ProtocolContext, evenly_spaced
from maskclip_bench.tasks.protocols.segmentation import (
    class_iou,
    classes_of,
    segmentation_metrics,
)

if TYPE_CHECKING:
    from maskclip_bench.backbones import Backbone

IMAGES_AT_ONCE = 16
CLASSES_AT_ONCE = 16
"""Score maps that are upsampled by one call: it decides the last bit of some."""
SCORE_BYTES = 32 * 2**20
"""Upsampled scores that are held at a time; a strip takes about three times as much."""
STORED_BYTES = 64 * 2**20
"""Tokens of test images in one file of the store."""


class PatchSettings(Declaration):
    """What a data set may set for a patch protocol."""

    tiles: int = 2
    """Windows along a side of the image; the grid has tiles * image size / patch size patches."""
    max_patches: int = 20_000
    """Labelled patches that are kept, drawn evenly from the training images."""
    max_images: int = 2_000
    """Training images looked at, evenly spaced."""
    prompts: str = "class_name_only"
    """Prompt set of the zero-shot classifier."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Labelled patches of the training images.

    Attributes:
        tokens: float32 [N, D].
        labels: float32 [N, C], shares of the classes among the labelled pixels of each patch.
    """

    tokens: Tensor
    labels: Tensor


class PatchProtocol(Protocol):
    """Base of the three: scores for each patch of the test images, then pixel counts."""

    settings_model: ClassVar[type[Declaration]] = PatchSettings
    metric_labels: ClassVar[Mapping[str, str]] = {"mean_iou": "mIoU"}
    expected_seconds = 4.0
    version: ClassVar[int] = 1
    """Raised when a number changes its meaning or its value."""

    def preset_version(self, task: TaskDeclaration) -> int:
        """The protocol's version; its settings are part of a cell's identity by themselves."""
        return self.version

    def scorer(
        self, context: ProtocolContext, num_classes: int
    ) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
        """A function tokens [N, D] -> class scores [N, C], and details for the record."""
        raise NotImplementedError

    def run(self, context: ProtocolContext) -> Measurement:
        """Segment the test split.

        Raises:
            ConfigError: The backbone gives no patch tokens, or no class names are declared.
            DataError: The data is missing or broken.
            NonFiniteError: Patch tokens or their scores are NaN or infinite.
        """
        settings: PatchSettings = context.settings
        dataset = context.dataset("test")
        names, kinds = self._classes(context)
        dataset.check_masks(len(names))
        score, details = self.scorer(context, len(names))
        tokens = tokens_of_images(context, dataset, settings.tiles)
        counts = []
        for index in range(len(dataset)):
            mask = read_mask(dataset.annotations[index], num_classes=len(names))
            scores = score(tokens(index).to(context.device))
            check_finite(scores, f"patch scores of {dataset.sample_ids[index]}")
            predicted = segment(scores, mask.shape)
            counts.append(count_pixels(predicted, mask, len(names)))
            if index % 32 == 0:
                context.progress("segmenting", index, len(dataset))
        stacked = {key: np.stack([count[key] for count in counts]) for key in counts[0]}
        metrics, lists = segmentation_metrics(stacked, kinds)
        split = SplitResult("", dataset.split, {}, {"sample_id": np.array(dataset.sample_ids)})
        return Measurement(
            metrics=metrics,
            primary_metric="mean_iou",
            outcomes=outcome_table(
                [split], {name: {dataset.split: pair} for name, pair in lists.items()}
            ),
            preset=self.name,
            preset_version=self.version,
            details={
                "class_iou": class_iou(stacked, names),
                "tiles": settings.tiles,
                "transform": context.backbone.transform_id,
                "data": dataset.fingerprint,
                **details,
            },
        )

    @staticmethod
    def _classes(context: ProtocolContext) -> tuple[list[str], list[str] | None]:
        """Names of the classes of mask values 1..C, and their kinds where the data says them."""
        found, kinds = classes_of(context)
        if found is None:
            raise ConfigError(
                f"{context.task.name} declares no classes for the values of its masks. "
                "Set reader.classes to a JSON list, or class_names.names."
            )
        return found, kinds


def training_bank(context: ProtocolContext, num_classes: int) -> Bank:
    """At most `max_patches` labelled patches of the training split, drawn by the context's seed."""
    settings: PatchSettings = context.settings
    dataset = context.dataset("train")
    dataset.check_masks(num_classes)
    identity = [
        *_tokens_identity(context, dataset, settings.tiles),
        "bank",
        context.seed,
        settings.max_patches,
        settings.max_images,
        num_classes,
    ]

    def make() -> dict[str, Tensor]:
        indices = evenly_spaced(len(dataset), settings.max_images)
        per_image = -(-settings.max_patches // len(indices))
        generator = torch.Generator().manual_seed(context.seed)
        tokens, labels = [], []
        for done, (index, patches) in enumerate(_encode(context, dataset, indices, settings.tiles)):
            grid = round(len(patches) ** 0.5)
            mask = read_mask(dataset.annotations[index], num_classes=num_classes)
            shares = patch_labels(mask, num_classes, grid)  # [N, C]
            known = shares.sum(1) > 0.5
            chosen = torch.randperm(int(known.sum()), generator=generator)[:per_image]
            tokens.append(patches[known][chosen])
            labels.append(shares[known][chosen])
            if done % 32 == 0:
                context.progress("patches of the training images", done, len(indices))
        if not sum(map(len, tokens)):
            raise DataError(
                f"{dataset.name} ({dataset.split}): no patch of {len(indices)} images is labelled "
                "for more than half, so there is nothing to compare with. Check the masks."
            )
        return {"tokens": torch.cat(tokens), "labels": torch.cat(labels)}

    def stored() -> Bank:
        note = f"labelled patches of {context.backbone.row_id}, {dataset.name} ({dataset.split})"
        return Bank(**_kept(context, {"bank": identity}, make, note))

    return context.features.remembered(
        identity, stored, lambda bank: 4 * (bank.tokens.numel() + bank.labels.numel())
    )


def _kept(
    context: ProtocolContext,
    identity: dict[str, Any],
    make: Callable[[], dict[str, Tensor]],
    note: str,
) -> dict[str, Tensor]:
    """From the workspace's store; a store in memory would keep them for good, so they are made."""
    if context.features.root is None:
        return make()
    return context.features.get(identity, make, note=note)


def _tokens_identity(context: ProtocolContext, dataset: Dataset, tiles: int) -> list[object]:
    """What the patch tokens of a split depend on."""
    return [
        identity_of(context.backbone),
        context.backbone.transform_id,
        dataset.fingerprint,
        dataset.split,
        tiles,
    ]


def tokens_of_images(
    context: ProtocolContext, dataset: Dataset, tiles: int
) -> Callable[[int], Tensor]:
    """Index of a test image -> its tokens [N, D].

    All frozen heads of a row share them: they are encoded once, and kept in the store of features,
    in float16 where they are finite there. Memory holds the parts that were used last.
    """
    _, first = next(iter(_encode(context, dataset, [0], tiles)))
    per_part = max(STORED_BYTES // (2 * first.numel()) // IMAGES_AT_ONCE, 1) * IMAGES_AT_ONCE
    identity = {
        "tokens of": _tokens_identity(context, dataset, tiles),
        "num_images": len(dataset),
        "per_part": per_part,
    }

    def part_of(start: int) -> Tensor:
        stop = min(start + per_part, len(dataset))

        def encode(dtype: torch.dtype) -> Tensor:
            found = []
            for index, patches in _encode(context, dataset, range(start, stop), tiles):
                found.append(patches.to(dtype))
                if index % 32 == 0:
                    context.progress("patches of the test images", index, len(dataset))
            return torch.stack(found)  # [S, N, D]

        def make() -> dict[str, Tensor]:
            stacked = encode(torch.float16)
            finite = bool(torch.isfinite(stacked).all())
            return {"tokens": stacked if finite else encode(torch.float32)}

        note = f"patches of {context.backbone.row_id}, {dataset.name} ({dataset.split})"
        return _kept(context, {**identity, "start": start}, make, note)["tokens"]

    def tokens(index: int) -> Tensor:
        start = index - index % per_part
        stored = context.features.remembered(
            [identity, start],
            lambda: part_of(start),
            lambda part: part.element_size() * part.numel(),
        )
        return stored[index - start].float()

    return tokens


def _encode(context: ProtocolContext, dataset: Dataset, indices: Any, tiles: int) -> Any:
    """Yield (index, patch tokens [N, D] in row-major order of the whole image)."""
    dataset.check_images(context.progress)
    backbone = context.backbone

    def encode(windows: list[Tensor]) -> Tensor:
        return backbone.patch_tokens(torch.cat(windows)).cpu()  # [B * tiles^2, n, D]

    waiting = list(indices)
    for start in range(0, len(waiting), IMAGES_AT_ONCE):
        part = waiting[start : start + IMAGES_AT_ONCE]
        windows = [image_windows(dataset.image(i), backbone, tiles) for i in part]
        tokens = name_not_finite(encode, windows, [dataset.sample_ids[i] for i in part])
        yield from zip(part, join_tiles(tokens, tiles), strict=True)


def image_windows(image: Image.Image, backbone: Backbone, tiles: int) -> Tensor:
    """One image -> uint8 [tiles^2, 3, S, S], row by row."""
    size = backbone.image_size
    bilinear = backbone.transform.interpolation == "bilinear"
    kernel = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    side = tiles * size
    resized = image if image.size == (side, side) else image.resize((side, side), kernel)
    pixels = torch.from_numpy(np.array(resized, dtype=np.uint8)).permute(2, 0, 1)
    windows = pixels.reshape(3, tiles, size, tiles, size).permute(1, 3, 0, 2, 4)
    return windows.reshape(tiles**2, 3, size, size)


def join_tiles(tokens: Tensor, tiles: int) -> Tensor:
    """[B * tiles^2, n, D] -> [B, tiles^2 * n, D] in row-major order of the whole grid."""
    side, width = round(tokens.shape[1] ** 0.5), tokens.shape[2]
    grid = tokens.view(-1, tiles, tiles, side, side, width).transpose(2, 3)
    return grid.reshape(len(grid), -1, width)


def patch_labels(mask: NDArray[np.uint8], num_classes: int, grid: int) -> Tensor:
    """Shares of the classes in each patch, [grid^2, C]; unlabelled pixels (255) count nowhere."""
    return torch.from_numpy(class_shares(mask, num_classes, grid))


def segment(scores: Tensor, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Scores of the patches [N, C] -> the class of each pixel [H, W].

    The maps are upsampled where the scores are, a strip of rows at a time where all of them
    together would need more than `SCORE_BYTES`.
    """
    height, width = shape
    side, num_classes = round(len(scores) ** 0.5), scores.shape[1]
    maps = scores.T.reshape(1, -1, side, side)
    if num_classes * height * width * 4 <= SCORE_BYTES:
        parts = [
            F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)[0]
            for part in maps.split(CLASSES_AT_ONCE, dim=1)
        ]
        return np.asarray(torch.cat(parts).max(0).indices.cpu().numpy())
    rows_at_once = max(SCORE_BYTES // (num_classes * width * 4), 1)
    classes = torch.empty((height, width), dtype=torch.int64, device=scores.device)
    for start in range(0, height, rows_at_once):
        stop = min(start + rows_at_once, height)
        classes[start:stop] = _strip(maps[0], (start, stop), (height, width)).argmax(0)
    return np.asarray(classes.cpu().numpy())


def _strip(maps: Tensor, rows: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Some rows of maps [C, h, w] upsampled to `shape`, as `F.interpolate` does it -> [C, R, W]."""
    side = maps.shape[1]
    place = (torch.arange(*rows, device=maps.device, dtype=maps.dtype) + 0.5) * (side / shape[0])
    place = (place - 0.5).clamp(min=0)
    above = place.long().clamp(max=side - 1)
    below = (above + 1).clamp(max=side - 1)
    first, last = int(above[0]), int(below[-1])
    part = maps[None, :, first : last + 1]
    wide = F.interpolate(
        part, size=(part.shape[2], shape[1]), mode="bilinear", align_corners=False
    )[0]  # [C, r, W]
    share = (place - above)[:, None]  # of the row below
    return torch.lerp(wide[:, above - first], wide[:, below - first], share)
