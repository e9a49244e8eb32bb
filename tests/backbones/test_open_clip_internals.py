"""Which of open_clip's internals the package relies on; an update that removes one fails here."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import maskclip_bench

PACKAGE = Path(maskclip_bench.__file__).parent

PUBLIC = "open_clip"
"""What `open_clip/__init__.py` exports is its interface; names of its modules are internals."""

INTERNALS = {
    "open_clip.model.CustomTextCLIP",
    "open_clip.model._build_vision_tower",
    "open_clip.model.convert_to_custom_text_state_dict",
    "open_clip.pretrained",
    "open_clip.tokenizer.SimpleTokenizer",
    "open_clip.tokenizer.default_bpe",
    "open_clip.transformer.QuickGELU",
    "open_clip.transformer.ResidualAttentionBlock",
    "open_clip.transformer.VisionTransformer",
}


def imported() -> set[str]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("open_clip."):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {a.name for a in node.names if a.name.startswith("open_clip.")}
    return found


def test_internals__are_listed_here() -> None:
    assert imported() == INTERNALS


@pytest.mark.parametrize("name", sorted(INTERNALS))
def test_internals__exist(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    found = hasattr(importlib.import_module(module), attribute)
    assert found or importlib.import_module(name)


def test_attributes_of_towers__exist() -> None:
    """What `OpenClipEncoder` reads of models that it does not build itself."""
    import torch
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    vision = CLIPVisionCfg(image_size=32, layers=1, width=64, patch_size=16)
    text = CLIPTextCfg(context_length=8, vocab_size=99, width=16, heads=2, layers=1)
    model = CustomTextCLIP(embed_dim=8, vision_cfg=vision, text_cfg=text)
    tokens = model.visual.transformer(model.visual._embeds(torch.zeros(1, 3, 32, 32)))
    assert model.visual._pool(tokens)[0].shape == (1, 64)
    for name in ("transformer", "attn_mask", "ln_final", "text_projection", "pool_type"):
        assert hasattr(model.text, name)
