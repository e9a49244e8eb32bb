"""One model on the images: patch tokens, attention, and the text's map over the patches.

S images, G patches along a side of the whole image, N = G * G, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from maskclip_bench.backbones.loading import Backbone
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.attention_maps import pooled_attention
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.report.seeing.scenes import Scenes
from maskclip_bench.tasks.protocols.patch_segmentation import image_windows, join_tiles
from maskclip_bench.tasks.protocols.prompts import build_zero_shot_classifier
from maskclip_bench.tasks.protocols.zero_shot_segmentation import patch_projection
from maskclip_bench.unit_vectors import unit_vectors

Floats = NDArray[np.float32]

TEMPLATES = ("{}",)
"""The class name alone, as in the preset of `zero_shot_segmentation`."""
WINDOWS_AT_ONCE = 64


@dataclass
class Sight:
    """What one model makes of the images.

    Attributes:
        grid: G.
        windows: Along a side.
        tokens: One [N, D] an image.
        attention: One [N] an image, each window sums to 1; empty if the model shows none.
        attention_of: Whose attention it is, in words.
        text_scores: One [N, C] an image, cosines with the class names; empty without them.
        notes: Why something is missing.
    """

    grid: int
    windows: int
    tokens: list[Floats] = field(default_factory=list)
    attention: list[Floats] = field(default_factory=list)
    attention_of: str = ""
    text_scores: list[Floats] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def see(backbone: Backbone, scenes: Scenes, *, progress: Progress = no_progress) -> Sight:
    """Run a model over all images.

    Args:
        backbone: The model.
        scenes: The images.
        progress: Told of the images.

    Raises:
        ConfigError: The model gives no patch tokens.
        NonFiniteError: A token is not finite.
    """
    sight = Sight(grid=0, windows=scenes.tiles)
    score = _text_scorer(backbone, scenes, sight)
    trunk = _trunk(backbone, sight)
    for index, windows in _windows(backbone, scenes):
        parts = windows.split(WINDOWS_AT_ONCE)
        tokens = torch.cat([backbone.patch_tokens(part) for part in parts])  # [t * t, n, D]
        joined = join_tiles(tokens, scenes.tiles)[0]  # [N, D]
        sight.tokens.append(joined.cpu().numpy().astype(np.float32))
        if score is not None:
            sight.text_scores.append(score(joined).cpu().numpy().astype(np.float32))
        if trunk is not None:
            maps = torch.cat([_attention(backbone, trunk, part, sight) for part in parts])
            one = join_tiles(maps.unsqueeze(-1), scenes.tiles)[0, :, 0]  # [N]
            sight.attention.append(one.cpu().numpy().astype(np.float32))
        progress("images", index + 1, len(scenes))
    sight.grid = round(len(sight.tokens[0]) ** 0.5)
    return sight


def _windows(backbone: Backbone, scenes: Scenes) -> Iterator[tuple[int, Tensor]]:
    """(index, uint8 [tiles * tiles, 3, S, S]) of each image."""
    for index, image in enumerate(scenes.images):
        yield index, image_windows(image, backbone, scenes.tiles)


def _trunk(backbone: Backbone, sight: Sight) -> torch.nn.Module | None:
    """The ViT whose attention is shown, if the model has one."""
    try:
        trunk = backbone.vision_trunk()
        size = backbone.image_size
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        _attention(backbone, trunk, blank, sight)
    except ConfigError as error:
        sight.notes.append(f"No attention: {error}")
        return None
    return trunk


def _attention(backbone: Backbone, trunk: torch.nn.Module, windows: Tensor, sight: Sight) -> Tensor:
    images = backbone.transform.normalize(windows.to(backbone.device))
    maps, sight.attention_of = pooled_attention(trunk, images)
    return maps.cpu()


def _text_scorer(
    backbone: Backbone, scenes: Scenes, sight: Sight
) -> Callable[[Tensor], Tensor] | None:
    """Tokens [N, D] -> cosines with the class names [N, C]; None where there are none."""
    if not backbone.has_text:
        sight.notes.append("No text maps: the model has no text tower.")
        return None
    if not scenes.class_names:
        sight.notes.append("No text maps: the images come without class names.")
        return None
    try:
        project = patch_projection(backbone)
    except ConfigError as error:
        sight.notes.append(f"No text maps: {error}")
        return None
    names = [[name] for name in scenes.class_names]
    classifier = build_zero_shot_classifier(names, TEMPLATES, backbone.encode_text)
    classifier = classifier.to(backbone.device)  # [C, P]

    def score(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            joint = project(tokens.to(backbone.device)).float()
            return unit_vectors(joint) @ classifier.T

    return score


def upsampled(scores: Floats, grid: int, shape: tuple[int, ...]) -> Floats:
    """A map over patches [N] at the size of a mask [H, W], bilinear as in the protocols."""
    maps = torch.from_numpy(scores).view(1, 1, grid, grid)
    full = F.interpolate(maps, size=tuple(shape), mode="bilinear", align_corners=False)
    return np.asarray(full[0, 0].numpy())


def resampled(tokens: Floats, grid: int) -> Floats:
    """Patch tokens [N, D] on another grid [grid * grid, D], bilinear."""
    side = round(len(tokens) ** 0.5)
    if side == grid:
        return tokens
    maps = torch.from_numpy(tokens).T.reshape(1, -1, side, side)
    smaller = F.interpolate(maps, size=(grid, grid), mode="bilinear", align_corners=False)
    return np.asarray(smaller[0].flatten(1).T.numpy())
