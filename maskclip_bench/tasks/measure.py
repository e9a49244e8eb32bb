"""Measure one task on one loaded backbone: the only place that makes a protocol's context.

The suite (`execution`), evaluation while training and the Python door all call `measure` or
`measure_record`, so that the same model gives the same number on every way.

    measurement = measure(PROTOCOLS["knn"], load_task_declaration("cifar10"), backbone)

A model in memory needs no folder: without `features` they are kept in memory for this one call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, cast

from maskclip_bench.errors import ConfigError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.results.measurement import Measurement
from maskclip_bench.results.records import Record, measured_record
from maskclip_bench.runtime import Workspace, provenance
from maskclip_bench.tasks.cell import cell_of, fingerprints_of_backbone
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.protocols.base import Protocol, ProtocolContext

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from maskclip_bench.backbones import Backbone, UnloadedBackbone


def measure(
    protocol: Protocol,
    task: TaskDeclaration,
    backbone: Backbone | UnloadedBackbone,
    *,
    workspace: Workspace | None = None,
    features: FeatureStore | None = None,
    device: torch.device | None = None,
    progress: Progress = no_progress,
    seed: int = 0,
    num_threads: int = 1,
    cancel: threading.Event | None = None,
    limit: int | None = None,
    validate: bool = False,
    shared_maps: Path | None = None,
) -> Measurement:
    """Run a protocol on a data set for a loaded backbone.

    Args:
        protocol: From `PROTOCOLS`, or any instance.
        task: The data set; its `protocols` may hold settings for the protocol.
        backbone: The model, from `load_backbone` or `as_backbone`.
        workspace: Where data and job folders are; None opens the default one.
        features: Store of features; None keeps them in memory for this call.
        device: Where the protocol computes; None = the backbone's device.
        progress: Told (stage, done, total) of anything long.
        seed: For what the protocol itself draws (splits, shots).
        num_threads: Threads that a job of the protocol may use.
        cancel: When set, jobs stop with `JobCancelled`.
        limit: Use at most this many images of each split, evenly spaced over it; recorded in
            `Measurement.budget`, so that no table puts the number beside those of full runs.
        validate: Whether segmentation and detection validate while they train; no score depends on
            it.
        shared_maps: File by which jobs of one row may hand on what they computed; no score depends
            on it.

    Raises:
        ConfigError: The settings are wrong, the backbone lacks what the protocol needs (a text
            tower), or `limit` is not possible.
        DataError: The data is missing or broken.
        NonFiniteError: The backbone's outputs are NaN or infinite.
        JobError: A job of the protocol failed.
        StorageError: The disk refused.
    """
    whole = isinstance(limit, Integral) and not isinstance(limit, bool)
    if limit is not None and (not whole or limit < 1):
        raise ConfigError(
            f"limit is {limit!r}; give at least 1 image a split, a whole number, or no limit."
        )
    if limit is not None and protocol.runs_as_job:
        raise ConfigError(
            f"{protocol.name} trains on whole splits, so limit={limit} has no meaning for it. "
            "Measure it without a limit."
        )
    missing = protocol.missing_in(backbone, task)
    if missing is not None:
        raise ConfigError(f"{backbone.name}: {missing}.")
    context = context_of(
        protocol,
        task,
        backbone,
        workspace=workspace,
        features=features,
        device=device,
        progress=progress,
        seed=seed,
        num_threads=num_threads,
        cancel=cancel,
        limit=limit,
        validate=validate,
        shared_maps=shared_maps,
    )
    measurement = protocol.run(context)
    left_over = context.left_over()
    if left_over:
        details = {**measurement.details, "left_over": left_over}
        measurement = replace(measurement, details=details)
    if limit is not None:
        measurement = replace(measurement, budget={**measurement.budget, "limit": limit})
    precision = getattr(backbone, "precision", "float32")
    if precision != "float32" and not protocol.runs_as_job:
        details = {**measurement.details, "precision": precision}
        measurement = replace(measurement, details=details)
    return measurement


def context_of(
    protocol: Protocol,
    task: TaskDeclaration,
    backbone: Backbone | UnloadedBackbone,
    *,
    workspace: Workspace | None = None,
    features: FeatureStore | None = None,
    device: torch.device | None = None,
    progress: Progress = no_progress,
    seed: int = 0,
    num_threads: int = 1,
    cancel: threading.Event | None = None,
    limit: int | None = None,
    validate: bool = False,
    shared_maps: Path | None = None,
) -> ProtocolContext:
    """What a protocol is run with; for the arguments see `measure`.

    Raises:
        ConfigError: The settings do not fit.
    """
    return ProtocolContext(
        task=task,
        settings=protocol.settings_of(task),
        backbone=cast("Backbone", backbone),  # an unloaded one where the job loads it
        features=features if features is not None else FeatureStore(),
        workspace=workspace or Workspace.open(),
        device=device or backbone.device,
        progress=progress,
        seed=seed,
        num_threads=num_threads,
        cancel=cancel or threading.Event(),
        limit=limit,
        validate=validate,
        shared_maps=shared_maps,
    )


def measure_record(
    protocol: Protocol,
    task: TaskDeclaration,
    backbone: Backbone | UnloadedBackbone,
    *,
    workspace: Workspace | None = None,
    features: FeatureStore | None = None,
    device: torch.device | None = None,
    progress: Progress = no_progress,
    seed: int = 0,
    num_threads: int = 1,
    cancel: threading.Event | None = None,
    limit: int | None = None,
    validate: bool = False,
    shared_maps: Path | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> tuple[Record, pd.DataFrame]:
    """Measure, and make the record of it -> (record, per-sample outcomes); nothing is saved.

    `RecordStore(workspace.records).save(record, outcomes)` saves it.

    Args:
        protocol: See `measure`; so are the arguments that are not named here.
        task: The data set.
        backbone: The model.
        workspace: Where data and job folders are.
        features: Store of features.
        device: Where the protocol computes.
        progress: Told of anything long.
        seed: For what the protocol itself draws.
        num_threads: Threads that a job may use.
        cancel: When set, jobs stop.
        limit: At most this many images of each split.
        validate: Whether segmentation and detection validate while they train.
        shared_maps: File by which jobs of one row may hand on what they computed.
        fingerprints: Hashes of the parts that the number depends on, where the caller has them
            already; None computes them.

    Raises:
        MaskCLIPBenchError: See `measure`.
    """
    workspace = workspace or Workspace.open()
    began = time.monotonic()
    origin = {
        **provenance(device or backbone.device),
        "weights_state": backbone.weights_fingerprint,
        "transform": backbone.transform_id,
    }
    if fingerprints is None:
        fingerprints = fingerprints_of_backbone(protocol, task, backbone, workspace, limit=limit)
    measurement = measure(
        protocol,
        task,
        backbone,
        workspace=workspace,
        features=features,
        device=device,
        progress=progress,
        seed=seed,
        num_threads=num_threads,
        cancel=cancel,
        limit=limit,
        validate=validate,
        shared_maps=shared_maps,
    )
    record = measured_record(
        cell_of(protocol, task, backbone.name, backbone.seed, fingerprints),
        measurement,
        fingerprints=fingerprints,
        provenance=origin,
        protocol_title=protocol.title,
        labels=protocol.metric_labels,
        table_columns=protocol.table_columns,
        seconds=time.monotonic() - began,
    )
    return record, measurement.outcomes
