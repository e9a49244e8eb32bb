"""Image-text pairs for pretraining: where they come from, and how batches are made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskclip_bench.data.pairs.loader import PairLoader, open_source

__all__ = ["PairLoader", "open_source"]


def __getattr__(name: str) -> Any:
    """Import the loader, and torch with it, when it is first asked for."""
    if name in __all__:
        from maskclip_bench.data.pairs import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
