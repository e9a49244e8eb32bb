"""Zero-shot segmentation: cosine of projected patches with the class names' text embeddings.

N patches, D width, P joint width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.errors import ConfigError
from maskclip_bench.tasks.protocols.base import ProtocolContext
from maskclip_bench.tasks.protocols.patch_segmentation import PatchProtocol
from maskclip_bench.tasks.protocols.prompts import (
    build_zero_shot_classifier,
    prompt_set,
    prompts_of,
    templates_of,
)
from maskclip_bench.unit_vectors import unit_vectors

if TYPE_CHECKING:
    from maskclip_bench.backbones import Backbone


class ZeroShotSegmentation(PatchProtocol):
    """Cosine of projected patches and the class names' text embeddings."""

    name = "zero_shot_segmentation"
    title = "Segmentation, zero-shot"
    needs_text = True
    expected_seconds = 2.0
    version = 2  # 2: patches that are not finite are refused, and texts are encoded by length

    def texts(self, context: ProtocolContext) -> list[str]:
        """Every template with every class."""
        names, _ = self._classes(context)
        templates = templates_of(prompt_set(context.task, context.settings.prompts))
        return [text for texts in prompts_of([[n] for n in names], templates) for text in texts]

    def scorer(
        self, context: ProtocolContext, num_classes: int
    ) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
        """Cosines with the classes."""
        names, _ = self._classes(context)
        templates = templates_of(prompt_set(context.task, context.settings.prompts))
        classifier = build_zero_shot_classifier(
            [[name] for name in names],
            templates,
            lambda texts: context.features.texts(context.backbone, texts),
        ).to(context.device)  # [C, P]
        project = patch_projection(context.backbone)

        def score(tokens: Tensor) -> Tensor:
            with torch.no_grad():
                return unit_vectors(project(tokens).float()) @ classifier.T

        return score, {
            "prompts": context.settings.prompts,
            "templates_hash": storage.fingerprint(templates),
        }


def patch_projection(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """The map of a backbone's pooled token into the joint space, for patch tokens.

    Raises:
        ConfigError: The model's image tower has no projection of its own.
    """
    visual: Any = getattr(backbone.model, "visual", None)
    if hasattr(visual, "trunk") and hasattr(visual, "head"):
        return lambda tokens: visual.head(tokens)
    if getattr(visual, "proj", None) is not None:
        return lambda tokens: tokens @ visual.proj
    raise ConfigError(
        f"{backbone.name} has no projection that patch tokens can go through: zero-shot "
        "segmentation needs an open_clip model. Use knn_segmentation for it."
    )
