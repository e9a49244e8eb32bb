"""Identity of pretraining data: the content of every file, in the order of the index.

A run that is resumed on other data would mix two runs, so every checkpoint holds the identity of
the data. Files are hashed once and remembered (`content_hash`); ranks share the work.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from maskclip_bench import content_hash, distributed
from maskclip_bench.data.pairs.pair_sources import PairSource
from maskclip_bench.progress import Throttle

logger = logging.getLogger(__name__)

HASH_BYTES = 32
MISSING = "0" * 2 * HASH_BYTES
"""Stands for the hash of a file that is not there."""

MAX_NAMES = 5
SECONDS_BETWEEN_MESSAGES = 30.0


def data_identity(source: PairSource, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What decides which samples a run sees, as plain values.

    Args:
        source: The opened data.
        device: Where tensors are for the exchange between ranks; every rank calls this.

    Returns:
        `num_samples`; `files`, a list of [name, SHA-256] of the shards, tables and archives; and
        `images`, one SHA-256 over all images that are files of their own (else empty).

    Raises:
        DataError: A file cannot be read.
    """
    files, images = source.files(), source.image_files()
    hashes = _hashes([path for _, path in files] + images, device=device)
    named = [[name, one] for (name, _), one in zip(files, hashes, strict=False)]
    digest = hashlib.sha256("".join(hashes[len(files) :]).encode()).hexdigest()
    return {
        "num_samples": len(source),
        "files": named,
        "images": digest if images else "",
    }


def describe_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How two identities differ, for a message; empty if both give the same samples in order.

    Files that were renamed, in the same order and with the same content, do not differ.
    """
    contents = [[one for _, one in identity["files"]] for identity in (then, now)]
    same_samples = then["num_samples"] == now["num_samples"] and then["images"] == now["images"]
    if contents[0] == contents[1] and same_samples:
        return ""
    before, after = (_present(identity) for identity in (then, now))
    changes = {
        "no longer there": [name for name in before if name not in after],
        "new": [name for name in after if name not in before],
        "with other content": [
            name for name in before if after.get(name, before[name]) != before[name]
        ],
    }
    parts = [f"{what}: {_shortened(names)}" for what, names in changes.items() if names]
    if then["num_samples"] != now["num_samples"]:
        parts.insert(0, f"{then['num_samples']} samples then, {now['num_samples']} now")
    if then["images"] != now["images"]:
        parts.append("image files with other content, or other ones")
    return "; ".join(parts) or "the same files in another order"


def _present(identity: Mapping[str, Any]) -> dict[str, str]:
    """Name -> hash of the files that were there."""
    return {name: one for name, one in identity["files"] if one != MISSING}


def _hashes(paths: Sequence[Path], *, device: torch.device | str) -> list[str]:
    """SHA-256 of each file; ranks take turns in the list."""
    rank, world_size = distributed.rank(), distributed.world_size()
    per_rank = -(-len(paths) // world_size)
    own = torch.zeros(per_rank, HASH_BYTES, dtype=torch.uint8)
    here = [(number, path) for number, path in enumerate(paths[rank::world_size]) if path.is_file()]
    found = content_hash.file_hashes([path for _, path in here], _Messages())
    for (number, _), one in zip(here, found, strict=True):
        own[number] = torch.tensor(list(bytes.fromhex(one)), dtype=torch.uint8)
    whole = distributed.gather(own.to(device), with_gradient=False).cpu()
    ordered = whole.view(world_size, per_rank, HASH_BYTES).transpose(0, 1).reshape(-1, HASH_BYTES)
    return [bytes(row).hex() for row in ordered[: len(paths)].numpy()]


class _Messages:
    """Says now and then how far the first reading of large data is."""

    def __init__(self) -> None:
        self._throttle = Throttle(SECONDS_BETWEEN_MESSAGES)
        self._throttle.due()  # nothing is said in the first seconds

    def __call__(self, done: int, total: int) -> None:
        if self._throttle.due():
            logger.info("Hashing the data, once: %.1f of %.1f GB.", done / 1e9, total / 1e9)


def _shortened(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")
