"""Learning rates that fall from the last layer of a tower to the first, for continued training.

    lr of layer l = lr * layer_decay ** (L - l)                (BEiT, arXiv 2106.08254; ELECTRA)

Layer 0 are the embeddings, 1 to D the blocks, the last with the final norm (timm's groups), and
L = D + 1 the projection. What is outside of the towers (the temperature, decoders, heads) has the
whole rate.
"""

from __future__ import annotations

import re
from typing import Any

from open_clip.model import CustomTextCLIP
from timm.models import group_parameters

from maskclip_bench.errors import ConfigError

_TEXT_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")


def layer_scales(model: CustomTextCLIP, layer_decay: float) -> dict[str, float]:
    """Factor of the learning rate of each parameter of both towers, by its name in the model.

    Args:
        model: Its trunk is timm's.
        layer_decay: Factor from a layer to the one before it, 0 to 1.

    Raises:
        ConfigError: timm does not know the layers of the trunk.
    """
    trunk: Any = model.visual.trunk
    if not hasattr(trunk, "group_matcher"):
        raise ConfigError(
            f"optimizer.layer_decay: timm does not know the layers of a {type(trunk).__name__}. "
            "Leave it out, or choose another model.vision.timm_model."
        )
    trunk_layers = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
    text_layers = {name: _text_layer(name, model) for name, _ in model.text.named_parameters()}
    towers = (
        ("visual.trunk.", trunk_layers, max(trunk_layers.values())),
        ("text.", text_layers, len(model.text.transformer.resblocks)),
    )
    return {
        f"{prefix}{name}": layer_decay ** (depth + 1 - layer)
        for prefix, layers, depth in towers
        for name, layer in layers.items()
    }


def _text_layer(name: str, model: CustomTextCLIP) -> int:
    """Layer of a parameter of open_clip's text tower."""
    block = _TEXT_BLOCK.match(name)
    if block:
        return int(block[1]) + 1
    if name.startswith(("token_embedding", "positional_embedding")):
        return 0
    depth = len(model.text.transformer.resblocks)
    return depth if name.startswith("ln_final") else depth + 1
