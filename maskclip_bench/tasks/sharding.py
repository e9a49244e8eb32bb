"""Feature extraction over the processes of `torchrun`: one data set, a batch for each in turn.

    torchrun --nproc-per-node 8 -m maskclip_bench run --suite slip26

Rank 0 runs the suite as a single process does; when it needs the features of a split, the others
help: batch b is computed by rank b modulo the number of ranks, so batches are those of a single
process, none is padded, no image is seen twice, and the records are the same. Every message is
between processes of one run (gloo), which is why it may be pickled.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from PIL import Image

from maskclip_bench import distributed
from maskclip_bench.backbones import load_backbone
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.progress import Progress, no_progress, throttled
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.feature_files import Tensors
from maskclip_bench.tasks.features import REPORT_SECONDS, FeatureStore, PassOptions, extract

if TYPE_CHECKING:
    from maskclip_bench.backbones import Backbone, BackboneDeclaration
    from maskclip_bench.data.readers import Dataset

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(days=7)
"""Ranks wait for rank 0 while it runs protocols, which may take hours."""

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")
"""What torchrun sets; removed once the group exists, so that jobs of rank 0 join nothing."""


@dataclass(frozen=True)
class Request:
    """A split that all ranks compute together.

    Attributes:
        declaration: The row.
        seed: Of its pretraining.
        precision: Of the forward pass.
        weights: Its fingerprint on rank 0, which every rank must find, too.
        name: Of the data set.
        split: The data set's own name of it.
        sample_ids: Names of the images.
        read: Index -> image.
        start: First image to compute.
        options: Batch and workers.
    """

    declaration: BackboneDeclaration
    seed: int
    precision: str
    weights: str
    name: str
    split: str
    sample_ids: Sequence[str]
    read: Any
    start: int
    options: PassOptions


def under_torchrun() -> bool:
    """Whether several processes were started for one run."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextlib.contextmanager
def group() -> Iterator[None]:
    """Join the processes that torchrun started; features travel over gloo, on CPUs."""
    dist.init_process_group("gloo", timeout=TIMEOUT)
    local_rank = distributed.local_rank()
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    try:
        yield
    finally:
        dist.destroy_process_group()


class ShardedStore(FeatureStore):
    """Rank 0's store: a split that is not stored is computed by all ranks."""

    def __init__(self, root: Path | None = None, *, options: PassOptions | None = None) -> None:
        super().__init__(root, options=options)

    def extract(
        self, backbone: Backbone, dataset: Dataset, start: int, progress: Progress
    ) -> Iterator[Tensors]:
        """Outputs of the images from `start` on, batch by batch in their order."""
        request = Request(
            declaration=backbone.declaration,
            seed=backbone.seed,
            precision=backbone.precision,
            weights=backbone.weights_fingerprint,
            name=dataset.name,
            split=dataset.split,
            sample_ids=dataset.sample_ids,
            read=dataset.read,
            start=start,
            options=replace(self.options, image_batch=self.batch_of(backbone)),
        )
        dataset.check_images(progress)
        _send(request)
        report = throttled(progress, seconds=REPORT_SECONDS)
        done = start
        for outputs in _compute_together(request, backbone):
            done += len(outputs["backbone"])
            report(f"features of {dataset.split}", done, len(dataset))
            yield outputs

    def close(self) -> None:
        """Tell the other ranks that the run is over."""
        _send(None)


def serve(workspace: Workspace, device: torch.device) -> None:
    """The work of every rank but 0: compute its batches of what rank 0 asks for, until it ends."""
    loaded: tuple[Any, Backbone] | None = None
    while True:
        request = _receive()
        if request is None:
            return
        row = (request.declaration.name, request.seed, request.precision)
        error: BaseException | None = None
        if loaded is None or loaded[0] != row:
            loaded = None
            try:
                loaded = (
                    row,
                    load_backbone(
                        request.declaration,
                        workspace=workspace,
                        seed=request.seed,
                        device=device,
                        precision=request.precision,  # type: ignore[arg-type]
                    ),
                )
            except BaseException as raised:  # rank 0 reports it
                error = raised
        backbone = None if loaded is None else loaded[1]
        if backbone is not None and backbone.weights_fingerprint != request.weights:
            error = ConfigError(
                f"{request.declaration.name} is another model on rank {distributed.rank()} than on "
                "rank 0. Let all ranks see the same files."
            )
        for _ in _compute_together(request, backbone, error=error):
            pass


def _compute_together(
    request: Request, backbone: Backbone | None, *, error: BaseException | None = None
) -> Iterator[Tensors]:
    """Every rank's part of a split; rank 0 gets all batches, in their order.

    Raises:
        MaskCLIPBenchError: On rank 0, what a rank raised.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    batch = request.options.image_batch
    assert isinstance(batch, int)
    starts = range(request.start, len(request.sample_ids), batch)
    own = _own_batches(request, backbone, list(starts)[rank::world_size], batch)
    for first in range(0, len(starts), world_size):
        mine: Any = None
        if first + rank < len(starts) and error is None:
            try:
                mine = next(own)
            except BaseException as raised:  # told to rank 0, which raises it
                error = raised
        answers: list[Any] | None = [None] * world_size if rank == 0 else None
        dist.gather_object((mine, _told(error)), answers, dst=0)
        problem = _first_problem(answers) if answers is not None else None
        if _stop_together(problem is not None):
            if answers is not None:
                raise problem if error is None or rank != 0 else error  # type: ignore[misc]
            return
        for outputs, _ in answers or ():
            if outputs is not None:
                yield outputs


def _own_batches(
    request: Request, backbone: Backbone | None, starts: list[int], batch: int
) -> Iterator[Tensors]:
    """The outputs of this rank's batches."""
    from maskclip_bench.data.dataset import ChosenImages

    if backbone is None or not starts:
        return
    end = len(request.sample_ids)
    indices = [i for start in starts for i in range(start, min(start + batch, end))]
    part = _Part(
        name=request.name,
        split=request.split,
        sample_ids=[request.sample_ids[index] for index in indices],
        read=ChosenImages(request.read, tuple(indices)),
    )
    yield from extract(backbone, part, 0, no_progress, request.options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Part:
    """What `extract` needs of a data set."""

    name: str
    split: str
    sample_ids: list[str]
    read: Any

    def __len__(self) -> int:
        return len(self.sample_ids)

    def image(self, index: int) -> Image.Image:
        return self.read(index)

    def check_images(self, progress: Progress | None = None) -> None:
        """Rank 0 has checked them."""


def _told(error: BaseException | None) -> BaseException | None:
    """An error that can be sent; others become one of ours with their text."""
    from maskclip_bench.errors import MaskCLIPBenchError

    if error is None or isinstance(error, MaskCLIPBenchError):
        return error
    return DataError(f"rank {distributed.rank()}: {type(error).__name__}: {error}")


def _first_problem(answers: list[Any]) -> BaseException | None:
    return next((problem for _, problem in answers if problem is not None), None)


def _stop_together(stop: bool) -> bool:
    """Rank 0's decision, on every rank."""
    told = [stop]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def _send(request: Request | None) -> None:
    dist.broadcast_object_list([request], src=0)


def _receive() -> Request | None:
    told: list[Request | None] = [None]
    dist.broadcast_object_list(told, src=0)
    return told[0]
