"""The models: towers, masks, decoders, heads, losses. torch only; nothing here reads or writes.

Importing it registers the demo world's ViT in timm.
"""

from maskclip_bench.modeling.model import (
    DEMO_VIT,
    ModelConfig,
    TextConfig,
    VisionConfig,
    build_model,
    open_clip_config,
)

__all__ = [
    "DEMO_VIT",
    "ModelConfig",
    "TextConfig",
    "VisionConfig",
    "build_model",
    "open_clip_config",
]
