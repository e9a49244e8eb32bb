"""A finetuned segmentor or detector as a small folder: weights, config, classes, checksums.

What training alone needs (optimizer, schedules, logs) is left out. `mmseg.apis.init_model`,
`mmdet.apis.init_detector`, inferencers and the test scripts take `config.py` and `model.pth`. They
need neither the pretrained weights nor a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from maskclip_bench import storage
from maskclip_bench.backbones.openmmlab.dense_cell import write_config
from maskclip_bench.backbones.openmmlab.dense_checkpoints import checkpoint_to_test
from maskclip_bench.backbones.openmmlab.safe_loading import load_from_local
from maskclip_bench.errors import CheckpointError, ConfigError, NonFiniteError

WEIGHTS_FILE = "model.pth"
CONFIG_FILE = "config.py"
CLASSES_FILE = "classes.json"


def export_finetuned(source: Path, output: Path, *, config: Path | None = None) -> Path:
    """Write the folder.

    Args:
        source: A checkpoint (`iter_*.pth`, `epoch_*.pth`), or the work folder, of which the newest
            whole one is taken.
        output: The folder; must be empty or absent.
        config: Config it was trained with; None = the one in the work folder.

    Returns:
        `output`.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged or holds no weights.
        NonFiniteError: Weights are NaN or infinite.
        ConfigError: No config, or several, are beside the checkpoint; `output` is not empty.
    """
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty. Name another folder, or empty it.")
    file = checkpoint_to_test(source) if source.is_dir() else source
    loaded = load_from_local(str(file), map_location="cpu")
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state:
        raise CheckpointError(
            f"{file} holds no state_dict, so it is no checkpoint of mmengine. Give iter_*.pth or "
            "epoch_*.pth of a work folder."
        )
    bad = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise NonFiniteError(
            f"{file}: {len(bad)} tensors are not finite, e.g. {bad[0]}. Export a checkpoint from "
            "before the training diverged."
        )
    settings = _for_use(Config.fromfile(str(config or _config_beside(file))))
    meta = dict((loaded.get("meta") or {}).get("dataset_meta") or {})
    kept = {key: meta[key] for key in ("classes", "palette") if key in meta}
    output.mkdir(parents=True, exist_ok=True)
    with storage.atomic_file(output / WEIGHTS_FILE) as temporary:
        torch.save({"meta": {"dataset_meta": kept}, "state_dict": state}, temporary)
    write_config(settings, output / CONFIG_FILE)
    storage.write_json(output / CLASSES_FILE, list(kept.get("classes") or []))
    digest = storage.sha256_file(output / WEIGHTS_FILE)
    storage.write_text(output / f"{WEIGHTS_FILE}.sha256", f"{digest}  {WEIGHTS_FILE}\n")
    return output


def _config_beside(file: Path) -> Path:
    """The config of a work folder: a dense cell's, or the one that mmengine wrote."""
    own = file.parent / "config_train.py"
    found = [own] if own.is_file() else sorted(file.parent.glob("*.py"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigError(
            f"Beside {file} there should be one config (*.py); found {names}. Name it with "
            "--config."
        )
    return found[0]


def _for_use(config: Config) -> Config:
    """A config without the paths of the run that it is from."""
    config.load_from, config.resume = None, False
    config.pop("work_dir", None)
    hooks: list[dict[str, Any]] = list(config.get("custom_hooks") or [])
    config.custom_hooks = [
        {"type": "RunReport"} if hook.get("type") == "RunReport" else hook for hook in hooks
    ]
    return config
