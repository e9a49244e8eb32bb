from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maskclip_bench.modeling import build_model, open_clip_config

sys.path.insert(0, str(Path(__file__).parent))

from tiny_methods import MODEL


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished model as open_clip's `local-dir:` folder: a frozen teacher, or a start."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(7)
    model = build_model(MODEL)
    config = open_clip_config(MODEL, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
