"""A trained model as a folder that others load: open_clip, timm, the Hugging Face hub.

The student (or the momentum teacher) is an open_clip model with a timm trunk, so nothing is
converted; what is written is its weights, the files that describe them, and a model card.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from open_clip.model import CustomTextCLIP
from safetensors.torch import save
from torch import Tensor, nn

from maskclip_bench import storage
from maskclip_bench.config import read_yaml
from maskclip_bench.data.tokenizer import merges_file
from maskclip_bench.errors import (
    CheckpointError,
    ConfigError,
    MaskCLIPBenchError,
    NonFiniteError,
)
from maskclip_bench.modeling.model import build_model, open_clip_config
from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.methods.base import STUDENT, TEACHER_REST, TEACHER_TRUNK
from maskclip_bench.pretrain.methods.teacher import restore_text_and_projections
from maskclip_bench.pretrain.recipe import Recipe, recorded_recipe
from maskclip_bench.runtime import CHECKPOINT_FOLDER, PROVENANCE_FILE, RECIPE_FILE
from maskclip_bench.training.checkpoint import (
    Checkpoint,
    CheckpointStore,
    load_checkpoint,
    restore_module,
)
from maskclip_bench.training.nonfinite import local, shortened
from maskclip_bench.training.shards import SHARDS_SUFFIX

Target = Literal["open_clip", "timm", "hf"]
Weights = Literal["student", "teacher"]

TARGETS: tuple[Target, ...] = ("open_clip", "timm", "hf")
WEIGHTS: tuple[Weights, ...] = ("student", "teacher")

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
TIMM_CONFIG = "config.json"
TIMM_WEIGHTS = "model.safetensors"
MODEL_CARD = "README.md"


def write_model_folder(
    model: CustomTextCLIP,
    folder: Path,
    *,
    recipe: Recipe,
    weights: Weights,
    provenance: Mapping[str, Any],
    target: Target = "open_clip",
) -> Path:
    """Write a model as a folder, atomically; an existing folder is replaced.

    Args:
        model: What to write.
        folder: Where.
        recipe: What made it.
        weights: Which part of the run it is.
        provenance: See `runtime.provenance`, with the step.
        target: `open_clip`: a `local-dir:` folder of open_clip. `timm`: the trunk alone, for
            timm. `hf`: both, with a model card, to be uploaded to the Hugging Face hub as it is.

    Raises:
        NonFiniteError: A weight is NaN or infinite; an existing folder is untouched.
        StorageError: The disk refused; an existing folder is untouched.
    """
    check_finite(model, what=f"The {weights}")
    with storage.atomic_folder(folder) as temporary:
        if target in ("open_clip", "hf"):
            _write_open_clip(model, temporary, recipe, final=folder, portable=target == "hf")
        if target in ("timm", "hf"):
            _write_timm(model.visual.trunk, temporary, recipe)
        if target == "hf":
            _write_text(temporary / MODEL_CARD, model_card(recipe, weights, provenance))
        _write_text(
            temporary / RECIPE_FILE,
            yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
        )
        origin = {
            **provenance,
            "recipe": recipe.name,
            "recipe_fingerprint": recipe.computation_fingerprint(),
            "weights": weights,
        }
        _write_text(temporary / PROVENANCE_FILE, json.dumps(origin, indent=2) + "\n")
        storage.write_checksums(temporary)
    return folder


def check_finite(model: nn.Module, *, what: str) -> None:
    """Refuse weights that are not finite: no number is to be measured with them.

    Raises:
        NonFiniteError: Which tensors, how many of how many.
    """
    state = {name: local(tensor) for name, tensor in model.state_dict().items()}
    bad = {
        name: tensor.numel() - int(tensor.isfinite().sum())
        for name, tensor in state.items()
        if not bool(tensor.isfinite().all())
    }
    if bad:
        num_values = sum(state[name].numel() for name in bad)
        raise NonFiniteError(
            f"{what} is not written: {len(bad)} of {len(state)} tensors hold values that are not "
            f"finite ({sum(bad.values())} of {num_values} values): {shortened(list(bad))}. Lower "
            "optimizer.lr, set optimizer.clip_grad_norm=1 or precision=fp32, and train again in "
            "another folder; checkpoints of a run are finite, so an earlier one can be exported."
        )


def export_checkpoint(
    source: Path,
    folder: Path,
    *,
    target: Target = "open_clip",
    weights: Weights = "student",
) -> Path:
    """Turn a checkpoint into a folder for open_clip, timm or the Hugging Face hub.

    Args:
        source: A file `checkpoints/step_*.pt`, a folder `step_*.dcp`, or the folder of a run (its
            newest checkpoint).
        folder: What to write.
        target: See `write_model_folder`.
        weights: The student, or the momentum teacher if the method has one.

    Raises:
        CheckpointError: There is no readable checkpoint, or it has no teacher.
        ConfigError: `target` or `weights` is no such thing.
        NonFiniteError: The weights are not finite.
        StorageError: The disk refused.
    """
    if target not in TARGETS:
        raise ConfigError(f"Cannot export to {target!r}. Choose one of: {', '.join(TARGETS)}.")
    if weights not in WEIGHTS:
        raise ConfigError(f"No weights {weights!r}. Choose one of: {', '.join(WEIGHTS)}.")
    checkpoint = _find_checkpoint(source)
    recipe = recorded_recipe(checkpoint.recipe, where=f"the recipe in {source}")
    model = model_of(checkpoint.method, recipe, weights=weights, where=str(source))
    origin: dict[str, Any] = {"step": checkpoint.step, "exported_from": source.name}
    return write_model_folder(
        model, folder, recipe=recipe, weights=weights, provenance=origin, target=target
    )


def model_of(
    state: Mapping[str, Any], recipe: Recipe, *, weights: Weights, where: str
) -> CustomTextCLIP:
    """The student or the teacher of a method's state, as an open_clip model on the CPU.

    Only the model is built, and not the method around it: what a run started from, and a frozen
    teacher's weights, need not be there any more.

    Raises:
        CheckpointError: The state is of another model, or the method has no teacher.
    """
    if weights == "teacher" and not has_teacher(state):
        raise CheckpointError(
            f"{where} has no teacher: method {recipe.method.name!r} has none. Export the student."
        )
    model = build_model(recipe.model)
    restore_module(model, _part(state, STUDENT), where=where)
    if weights == "teacher":
        trunk = _part(state, TEACHER_TRUNK)
        restore_module(model.visual.trunk, trunk, where=where)
        if rest := _part(state, TEACHER_REST):
            restore_text_and_projections(model, rest, where=where)
    return model.eval()


def models_of(
    state: Mapping[str, Any], *, recipe: Recipe, where: str
) -> tuple[CustomTextCLIP, CustomTextCLIP | None]:
    """Student, and teacher where there is one, of a method's state; see `model_of`."""
    student = model_of(state, recipe, weights="student", where=where)
    if not has_teacher(state):
        return student, None
    return student, model_of(state, recipe, weights="teacher", where=where)


def has_teacher(state: Mapping[str, Any]) -> bool:
    """Whether a method's state holds a momentum teacher."""
    return bool(_part(state, TEACHER_TRUNK))


def _part(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The state of a method's submodule."""
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def finished_fingerprint(folder: Path) -> str | None:
    """`Recipe.computation_fingerprint` of the run that wrote a model folder; None without one.

    It is that of the folder's recipe as this version reads it, so that a field which was added
    since, with a default that changes nothing, does not make old models look like other ones.
    """
    try:
        origin = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
        recorded = str(origin["recipe_fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    try:
        path = folder / RECIPE_FILE
        return recorded_recipe(read_yaml(path), where=str(path)).computation_fingerprint()
    except (MaskCLIPBenchError, OSError):
        return recorded


def model_card(recipe: Recipe, weights: Weights, provenance: Mapping[str, Any]) -> str:
    """The README of an exported model, with the header the Hugging Face hub reads."""
    method = recipe.method.name
    facts = _card_facts(recipe, weights, provenance)
    tokenizer = merges_file(recipe.tokenizer).name if recipe.tokenizer.kind == "demo" else None
    options = f', bpe_path="FOLDER/{tokenizer}"' if tokenizer else ""
    imports = "import open_clip\n"
    if recipe.model.vision.timm_model.startswith("vit_demo"):
        imports += "import maskclip_bench.modeling  # registers the demo trunk in timm\n"
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    reads_text = METHODS[method].uses_text
    kind = "zero-shot-image-classification" if reads_text else "image-feature-extraction"
    said = " ".join(recipe.description.split()).rstrip(".")
    about = (
        ""
        if reads_text
        else (
            "\nThis method trains the image tower alone: the text tower and the projections have\n"
            "their random start, so use the trunk.\n"
        )
    )
    return f"""---
library_name: open_clip
tags:
- clip
- {method.replace("_", "-")}
- {kind}
pipeline_tag: {kind}
---

# {recipe.name or method}

{METHODS[method].__name__}, pretrained with maskclip-bench, which implements MaskCLIP
(arXiv 2208.12262) and its baselines.{f" Its recipe says: {said}." if said else ""}
`{RECIPE_FILE}` is the whole recipe; `{PROVENANCE_FILE}` says when and with which versions it ran.
{about}
| | |
| --- | --- |
{table}

## Use

```python
{imports}model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER"{options})
```

The trunk alone: `timm.create_model("local-dir:FOLDER")`. From the hub, replace `local-dir:FOLDER`
by `hf-hub:OWNER/NAME`; upload with `huggingface_hub.upload_folder(folder_path="FOLDER", ...)`.
"""


def _card_facts(
    recipe: Recipe, weights: Weights, provenance: Mapping[str, Any]
) -> dict[str, object]:
    """The lines of a model card's table."""
    length = f"{recipe.length} pairs" if recipe.num_pairs else recipe.length
    augment = recipe.data.augment
    return {
        "method": METHODS[recipe.method.name].__name__,
        "weights": weights,
        "vision trunk (timm)": recipe.model.vision.timm_model,
        "image size": recipe.model.image_size,
        "joint space": recipe.model.proj_dim,
        "text tower": (
            f"{recipe.model.text.depth} blocks, {recipe.model.text.width} wide, "
            f"{recipe.model.text.context_length} tokens"
        ),
        "training data": recipe.data.source.path,
        "length": f"{length}, global batch {recipe.global_batch_size}",
        "steps": provenance.get("step"),
        "seed": recipe.seed,
        "normalization": f"mean {list(augment.mean)}, std {list(augment.std)}",
    }


def _find_checkpoint(source: Path) -> Checkpoint:
    if source.is_dir() and source.suffix != SHARDS_SUFFIX:
        found = CheckpointStore(source / CHECKPOINT_FOLDER, keep=1).latest()
        if found is None:
            found = CheckpointStore(source, keep=1).latest()
        if found is None:
            raise CheckpointError(
                f"No checkpoint in {source}. Give a file checkpoints/step_*.pt, or the folder of "
                "a run that has one."
            )
        return found
    return load_checkpoint(source)


def _write_open_clip(
    model: CustomTextCLIP, folder: Path, recipe: Recipe, *, final: Path, portable: bool
) -> None:
    """open_clip's configuration, the weights, and the merges of a tokenizer that is not CLIP's."""
    tokenizer_kwargs: dict[str, Any] = {}
    if recipe.tokenizer.kind != "clip":
        merges = merges_file(recipe.tokenizer)
        shutil.copyfile(merges, folder / merges.name)
        # open_clip takes the path as it stands: whole here, so that `local-dir:` finds the
        # tokenizer; only its name in a folder to be uploaded, whose place is not known.
        inside = final.absolute() / merges.name
        tokenizer_kwargs["bpe_path"] = merges.name if portable else str(inside)
    augment = recipe.data.augment
    config = open_clip_config(
        recipe.model, mean=augment.mean, std=augment.std, tokenizer_kwargs=tokenizer_kwargs or None
    )
    _write_text(folder / OPEN_CLIP_CONFIG, json.dumps(config, indent=2) + "\n")
    _save_weights(model, folder / OPEN_CLIP_WEIGHTS)


def _write_timm(trunk: nn.Module, folder: Path, recipe: Recipe) -> None:
    """The trunk's weights, and timm's description of them: features, no classifier."""
    augment = recipe.data.augment
    size = recipe.model.image_size
    pretrained = dict(getattr(trunk, "pretrained_cfg", {}) or {})
    config = {
        "architecture": recipe.model.vision.timm_model.partition(".")[0],
        "num_classes": 0,
        "num_features": trunk.num_features,
        "pretrained_cfg": {
            "tag": "maskclip_bench",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(augment.mean),
            "std": list(augment.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": pretrained.get("first_conv"),
            "classifier": pretrained.get("classifier"),
        },
    }
    native = pretrained.get("input_size", (3, size, size))[-1]
    arguments: dict[str, Any] = {}
    if native != size:
        arguments["img_size"] = size
    if recipe.model.vision.pool:
        arguments["global_pool"] = recipe.model.vision.pool
        if hasattr(trunk, "fc_norm"):  # open_clip pools after the trunk's norm; timm would before
            arguments["fc_norm"] = not isinstance(trunk.fc_norm, nn.Identity)
    if arguments:
        config["model_args"] = arguments
    _write_text(folder / TIMM_CONFIG, json.dumps(config, indent=2) + "\n")
    _save_weights(trunk, folder / TIMM_WEIGHTS)


def _save_weights(module: nn.Module, path: Path) -> None:
    """Weights as safetensors, whole tensors on the CPU."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        tensors[name] = whole.detach().cpu().contiguous().clone()
    path.write_bytes(save(tensors, metadata={"format": "pt"}))  # OSError, unlike save_file
    storage.fsync_path(path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    storage.fsync_path(path)
