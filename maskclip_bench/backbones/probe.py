"""A second net under identities: the features of fixed images and one text, compared at each load.

An identity says from which files a row is made. If the same identity gives other features (a
library of another version, code that an identity does not reach), the row gets a new generation:
what was stored for the old one is not used again, and a warning says so once.
"""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.backbones.row_identity import GENERATION_FILE, generation, probe_folder
from maskclip_bench.backbones.transform import probe_images
from maskclip_bench.errors import ConfigError
from maskclip_bench.runtime import Workspace, device_kind
from maskclip_bench.unit_vectors import unit_vectors

if TYPE_CHECKING:
    from maskclip_bench.backbones.loading import Backbone

logger = logging.getLogger(__name__)

PROBE_TEXT = "a photo of two dogs on a red sofa."

OTHER_TEXTS = ("a dog", "a photo of a small brown dog that runs along the beach after a red ball.")

BATCH_TOLERANCE = 0.05
"""Largest difference of unit vectors between batches, whose kernels may differ in bfloat16."""

TOLERANCE = 1e-4
"""Largest difference of unit vectors between machines, and on accelerators, whose libraries choose
among kernels by their speed. On one kind of CPU, with one version of torch, nothing may differ."""


def probe_outputs(backbone: Backbone) -> dict[str, Tensor]:
    """Features of the probe images and the probe text, as unit vectors on the CPU.

    Raises:
        MaskCLIPBenchError: The model fails on them; see `Backbone`.
    """
    images = [backbone.transform(image) for image in probe_images(64)[:3]]
    outputs = backbone.image_outputs(torch.stack(images))  # {point: [3, D]}
    if backbone.has_text:
        outputs["text"] = backbone.encode_text([PROBE_TEXT])  # [1, P]
    return {name: unit_vectors(value).cpu() for name, value in sorted(outputs.items())}


def check_deterministic(backbone: Backbone, first: Mapping[str, Tensor]) -> None:
    """Run the probe again and compare.

    Raises:
        ConfigError: The same image or text has other features each time.
    """
    largest = _difference(first, probe_outputs(backbone))
    if largest > TOLERANCE:
        raise ConfigError(
            f"{backbone.row_id} gives other features for the same image each time (unit vectors "
            f"differ by {largest:.2g}), so its score would be one of many. Turn off dropout, "
            "masking or sampling in evaluation mode."
        )


def check_independent(backbone: Backbone, first: Mapping[str, Tensor]) -> None:
    """Run one image of the probe alone, and its text beside others, and compare.

    Raises:
        ConfigError: Features depend on what else is in the batch, so on its size.
    """
    alone = backbone.image_outputs(backbone.transform(probe_images(64)[0])[None])
    if backbone.has_text:
        alone["text"] = backbone.encode_text([PROBE_TEXT, *OTHER_TEXTS])[:1]
    found = {name: unit_vectors(value).cpu() for name, value in alone.items()}
    largest = _difference({name: value[:1] for name, value in first.items()}, found)
    if largest > BATCH_TOLERANCE:
        raise ConfigError(
            f"{backbone.row_id} gives other features for the same image or text in another batch "
            f"(unit vectors differ by {largest:.2g}), so its score would depend on the batch size. "
            "Turn off what looks at the whole batch (statistics of a batch, padding that is read)."
        )


def check_against_stored(
    backbone: Backbone, identity: str, outputs: dict[str, Tensor], workspace: Workspace
) -> int:
    """Compare a probe with the one of earlier loads; store it if it is the first or differs.

    Returns:
        The generation of the identity; see `generation`.

    Raises:
        StorageError: The disk refused.
    """
    folder = probe_folder(identity, workspace)
    path = folder / f"{_variant(backbone)}.safetensors"
    number = generation(identity, workspace)
    machine = machine_class(backbone)
    stored = read_probe(path)
    if stored is not None:
        notes, before = stored
        exact = notes.get("machine") == machine and backbone.device.type == "cpu"
        if _difference(before, outputs) <= (0.0 if exact else TOLERANCE):
            return number
        if notes.get("generation") == str(number):
            logger.warning(
                "%s gives other features than when it was measured before, though its files, code "
                "and settings are the same (a library of another version?). What is stored for it "
                "is not used again; its cells are measured again.",
                backbone.row_id,
            )
            number += 1
            storage.write_text(folder / GENERATION_FILE, f"{number}\n")
    with storage.exclusive(path), storage.atomic_file(path) as temporary:
        tensors = {name: value.contiguous() for name, value in outputs.items()}
        notes = {"machine": machine, "generation": str(number), "sha256": _digest(tensors)}
        save_file(tensors, str(temporary), notes)
    return number


def machine_class(backbone: Backbone) -> str:
    """What decides the last bits of a forward pass."""
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    kind = f"{backbone.device.type} {platform.machine()} {capability}"
    return f"{kind} torch {torch.__version__} {threads} threads"


def _variant(backbone: Backbone) -> str:
    """Outputs of one identity that may differ: by preprocessing, precision, kind of device."""
    kind = device_kind(backbone.device)
    return storage.fingerprint([backbone.transform_id, backbone.precision, kind])


def read_probe(path: Path) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """Notes and tensors of a stored probe; None if there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:  # type: ignore[no-untyped-call]
            notes = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError):
        return None
    damaged = "sha256" in notes and notes["sha256"] != _digest(tensors)
    return None if damaged else (notes, tensors)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Largest difference of two probes; infinite if they are of other outputs or shapes."""
    if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in second.items()}:
        return float("inf")
    return max(float((first[name] - second[name]).abs().max()) for name in first)
