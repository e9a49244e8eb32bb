"""Where features are taken from a model, in words, and the errors for models without them."""

from __future__ import annotations

from maskclip_bench.errors import ConfigError

BEFORE_PROJECTION = "pooled output before the projection"
AFTER_PROJECTION = "embedding after the projection, not normalised (the model has no other output)"
POOLED = "pooled output"


def no_text_tower(name: str) -> ConfigError:
    """The error for texts given to a model that reads none."""
    return ConfigError(
        f"{name} has no text tower: zero-shot classification and retrieval need one. "
        "Use linear_probe or knn for it."
    )


def no_patch_tokens(tower: object) -> ConfigError:
    """The error for a model that gives no patch tokens."""
    return ConfigError(
        f"{type(tower).__name__} gives no patch tokens. Use a ViT, or give an encoder of your own "
        "a method patch_tokens."
    )
