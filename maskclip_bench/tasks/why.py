"""Why a cell is measured again: what its record was made of, and what there is today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maskclip_bench.backbones import missing_weights, resolve_backbone
from maskclip_bench.errors import ConfigError
from maskclip_bench.results.records import Record, RecordStore, row_id
from maskclip_bench.runtime import Workspace, provenance
from maskclip_bench.tasks.cell import Column, Row, records_of
from maskclip_bench.tasks.declaration import load_task
from maskclip_bench.tasks.plan import ABSENT, changed_parts, weights_now
from maskclip_bench.tasks.protocols import PROTOCOLS

PARTS = {
    "weights": "the row itself: weights, code of an encoder, tokenizer, own preprocessing",
    "preprocess": "the preprocessing that the row declares",
    "data": "the content of the data: files, labels, captions, classes, splits",
    "settings": "the protocol's settings in the data set's file",
    "class_names": "the class names in the data set's file",
    "prompts": "the prompt sets in the data set's file",
    "versions": "the version of the preset or of the task",
    "configs": "the OpenMMLab configs",
    "own_recipe": "what the row changes of the OpenMMLab recipe",
    "limit": "the limit of images a split",
    "precision": "the arithmetic of the forward pass",
}
"""What each part of a cell's fingerprint means."""


@dataclass(frozen=True)
class Why:
    """Whether a cell's record still holds, and why not.

    Attributes:
        cell: "row/protocol/data set".
        record: The cell's record, or None.
        changes: Part -> (hash then, hash now); empty where the record holds.
        other: What differs without making the record invalid: versions of libraries, the commit.
    """

    cell: str
    record: Record | None
    changes: dict[str, tuple[str, str]] = field(default_factory=dict)
    other: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the cell is not measured again."""
        return self.record is not None and self.record.status == "ok" and not self.changes


def explain(cell: str, workspace: Workspace, *, limit: int | None = None) -> Why:
    """Compare a cell's record with today's row, data and settings.

    Args:
        cell: "row/protocol/data set"; a row of another seed than 0 is "row__seed1".
        workspace: Where data, weights and records are.
        limit: Of a run with `--limit`.

    Raises:
        ConfigError: The name is not of that form.
        UnknownNameError: There is no such row, protocol or data set.
        DataError: The record is damaged.
    """
    parts = cell.rsplit("/", 2)  # a row may be named as `run --backbone` takes it
    if len(parts) != 3 or not all(parts):
        raise ConfigError(
            f"{cell!r} is no cell. Write row/protocol/data set, "
            "e.g. clip_vit-demo_demo/knn/demo_objects."
        )
    name, _, seed = parts[0].partition("__seed")
    if seed and not seed.isdecimal():
        raise ConfigError(f"{parts[0]!r}: after __seed comes a whole number, e.g. {name}__seed1.")
    protocol, task = load_task(f"{parts[1]}/{parts[2]}")
    declaration = resolve_backbone(name)
    row = Row(declaration.name, declaration, int(seed or 0))
    column = Column(PROTOCOLS.get_known(protocol), task)
    store = RecordStore(records_of(workspace, limit))
    record = store.load(row_id(row.name, row.seed), protocol, task.name)
    if record is None:
        return Why(cell, None)
    absent = missing_weights(declaration, workspace, row.seed) is not None
    weights = ABSENT if absent else weights_now(row, workspace)
    return Why(
        cell,
        record,
        changed_parts(record, row, column, workspace, weights, limit),
        differences(record.provenance, provenance()),
    )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What differs of the software: our version, the commit, Python, the libraries."""
    pairs = {
        name: (str(then.get(name)), str(now.get(name)))
        for name in ("maskclip_bench", "git_commit", "python")
    }
    libraries_then, libraries_now = then.get("libraries") or {}, now.get("libraries") or {}
    for name in sorted({*libraries_then, *libraries_now}):
        pairs[name] = (str(libraries_then.get(name)), str(libraries_now.get(name)))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
