"""Image-text pairs in batches: exact epochs, exact resume, any number of workers and ranks.

What a batch holds follows from (seed, epoch, step, rank) alone:

* The order of an epoch is a permutation drawn from (seed, epoch). Batch `step` of rank `r` takes
  positions `step * G + r * B` to `+ B` of it (B samples a rank, G = B x ranks in the global batch).
  Every sample comes once; the `len % G` samples left over differ from epoch to epoch.
* Which caption and which crops a sample shows is drawn from (seed, epoch, its key)
  (`samples.py`).
* All ranks have the same number of steps. A sample that turns out broken is replaced by one of
  the samples left over, or, when there are too few, by one drawn from the whole epoch; which one
  is fixed beforehand too. So an epoch of intact data shows no sample twice, and one with broken
  samples still has its length, and can still be entered at any step.

Workers make parts of at most `PART_SIZE` samples, which are joined here: the shared memory of a
rank holds workers x `prefetch_batches` parts, however large its batches are. Where all images are
held on the device (`data.held`), workers hand over what they drew, and `held.py` makes the batch.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from maskclip_bench.data.batch import RawBatch
from maskclip_bench.data.pair_config import DataConfig, SourceConfig
from maskclip_bench.data.pairs.batch_parts import (
    BatchRequest,
    Indices,
    LoadedBatch,
    PairDraws,
    join,
)
from maskclip_bench.data.pairs.caption_tables import TableSource
from maskclip_bench.data.pairs.held import HeldPairs
from maskclip_bench.data.pairs.identity import data_identity
from maskclip_bench.data.pairs.pair_sources import BadSamples, PairSource, shown
from maskclip_bench.data.pairs.samples import PairDataset
from maskclip_bench.data.pairs.shards import TarSource
from maskclip_bench.data.tokenizer import CaptionTokenizer
from maskclip_bench.errors import DataError
from maskclip_bench.runtime import derive_seed

logger = logging.getLogger(__name__)

PART_SIZE = 64
"""Samples that are made at a time. A constant, so that what stands in for a broken sample depends
on nothing else."""

SHUFFLED_RUN = 1024
"""Neighbouring samples that stay together when shuffling within windows."""

SOURCES: dict[str, Callable[..., PairSource]] = {
    "webdataset": TarSource,
    "csv": TableSource,
    "parquet": TableSource,
}


def open_source(config: SourceConfig, *, data_root: Path) -> PairSource:
    """Open (and, the first time, index) the samples of a recipe.

    Raises:
        DataError: Files are missing, or are not what the configuration says.
    """
    return SOURCES[config.kind](config, data_root=data_root)


def epoch_order(num_samples: int, *, seed: int, epoch: int, window: int | None) -> Indices:
    """Every sample once, in the order of an epoch: int64 [num_samples].

    Args:
        num_samples: How many there are.
        seed: Of the run.
        epoch: Counted from 0.
        window: Shuffle within windows of this many samples; None shuffles all.
    """
    rng = _rng(seed, "order", epoch)
    if window is None or window >= num_samples:
        return rng.permutation(num_samples).astype(np.int64)
    run = max(1, min(SHUFFLED_RUN, window // 8))
    starts = rng.permutation(np.arange(0, num_samples, run))
    order = np.concatenate([np.arange(s, min(s + run, num_samples)) for s in starts])
    for begin in range(0, num_samples, window):
        rng.shuffle(order[begin : begin + window])
    return order.astype(np.int64)


def resampled_order(
    part_sizes: list[int], weights: list[float], num_draws: int, *, seed: int, epoch: int
) -> Indices:
    """Samples drawn with replacement, each in proportion to its part's weight: [num_draws].

    With parts of equal shards this is what open_clip's `--train-data-upsampling-factors` does.
    """
    rng = _rng(seed, "order", epoch)
    sizes = np.array(part_sizes, dtype=np.float64)
    shares = sizes * np.array(weights)
    parts = rng.choice(len(sizes), size=num_draws, p=shares / shares.sum())  # [num_draws]
    starts = np.concatenate([[0], np.cumsum(part_sizes)[:-1]])
    within = np.floor(rng.random(num_draws) * sizes[parts])
    return (starts[parts] + within).astype(np.int64)


class PairLoader:
    """Batches of image-text pairs for one rank.

    Attributes:
        steps_per_epoch: Batches of an epoch; the same on every rank.
        num_samples: Samples there are, on all ranks together.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        data_root: Path,
        tokenizer: CaptionTokenizer,
        image_size: int,
        num_ssl_views: int,
        batch_size_per_gpu: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        """Open the source, and with `held: device` read all of it.

        Raises:
            DataError: Files are missing, more samples than allowed are unusable, there are fewer
                samples than one global batch, or more than the device can hold.
        """
        self._config = config.source
        self._source = open_source(config.source, data_root=data_root)
        self._batch_size = batch_size_per_gpu
        self._global_batch_size = batch_size_per_gpu * world_size
        self._seed = seed
        self._rank = rank
        self._order: tuple[int, Indices] | None = None
        self._bad = BadSamples()
        self._warned: set[str] = set()
        self.num_samples = len(self._source)
        self._epoch_samples = self._config.epoch_samples or self.num_samples
        self.steps_per_epoch = self._epoch_samples // self._global_batch_size
        self._check_lost()
        for shard in self._source.noted.counts:
            logger.warning("%s: %s.", shown(shard), self._source.noted.reasons(shard))
        if self.steps_per_epoch == 0 or self.num_samples == 0:
            raise DataError(
                f"{self._config.path} has {self.num_samples} usable samples, fewer than one "
                f"global batch of {self._global_batch_size}. Lower the batch size or add data."
            )
        settings: dict[str, Any] = {
            "tokenizer": tokenizer,
            "image_size": image_size,
            "num_ssl_views": num_ssl_views,
            "seed": seed,
        }
        given = (self._source, config.source, config.augment)
        self._held: HeldPairs | None = None
        if config.held == "device":
            self._held = HeldPairs(*given, **settings, device=torch.device(device))
        self._dataset: Dataset[LoadedBatch] = (
            self._held.draws if self._held else PairDataset(*given, **settings)
        )
        self._requests = _Requests()
        self._workers = self._start_workers(config) if config.num_workers else None

    def epoch(self, epoch: int, *, start_step: int = 0) -> Generator[RawBatch, None, None]:
        """The batches of an epoch from `start_step` on; those before are not touched.

        When it is exhausted, closed or fails, a warning says how many samples were replaced.

        Args:
            epoch: Counted from 0.
            start_step: Batches to leave out, as when a run is resumed.

        Raises:
            DataError: More samples than `max_bad_fraction` of the epoch are unusable.
        """
        self._bad = BadSamples()
        self._check_lost()
        steps = range(start_step, self.steps_per_epoch)
        requests = (part for step in steps for part in self._parts(epoch, step))
        try:
            for loaded in self._joined(self._load(requests)):
                self._count(epoch, loaded)
                batch = loaded.batch
                if batch is None:
                    raise DataError(
                        f"Too many broken samples in one batch of epoch {epoch}. "
                        f"{self._bad.describe()}. Repair or replace these shards."
                    )
                yield self._made(batch)
        finally:
            if self._bad.counts:
                logger.warning(
                    "Epoch %d, rank %d: %d samples replaced. %s",
                    epoch,
                    self._rank,
                    self._bad.total(),
                    self._bad.describe(),
                )

    def _made(self, batch: RawBatch | PairDraws) -> RawBatch:
        if isinstance(batch, RawBatch):
            return batch
        assert self._held is not None
        return self._held.batch(batch)

    @property
    def num_replaced(self) -> int:
        """Samples this rank found unusable in the epoch under way or just finished."""
        return self._bad.total()

    @property
    def num_lost(self) -> int:
        """Samples left out when the data were indexed; the same for all ranks."""
        return self._source.lost.total()

    def identity(self, *, device: torch.device | str = "cpu") -> dict[str, Any]:
        """What decides which samples a run sees (`data_identity`); every rank calls it."""
        return data_identity(self._source, device=device)

    def report(self) -> dict[str, dict[str, int]]:
        """Unusable samples by shard and reason.

        Those found when the data were indexed (missing and truncated shards; the same for all
        ranks), and those this rank met in the epoch under way or just finished.
        """
        return self._together().as_dict()

    def _together(self) -> BadSamples:
        together = BadSamples()
        together.add_all(self._source.lost)
        together.add_all(self._bad)
        return together

    def _start_workers(self, config: DataConfig) -> DataLoader[LoadedBatch]:
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._requests,
            num_workers=config.num_workers,
            prefetch_factor=config.prefetch_batches,
            persistent_workers=True,
            pin_memory=torch.cuda.is_available() and self._held is None,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # else it would draw from torch's global one
        )

    def _load(self, requests: Iterator[BatchRequest]) -> Iterator[LoadedBatch]:
        if self._workers is None:
            return map(self._dataset.__getitem__, requests)
        self._requests.pending = requests
        return iter(self._workers)

    def _parts(self, epoch: int, step: int) -> list[BatchRequest]:
        """What is asked for to make one batch; no sample stands in for broken ones of two parts."""
        order = self._epoch_order(epoch)
        position = step * self._global_batch_size + self._rank * self._batch_size
        indices = order[position : position + self._batch_size]
        spare = self._substitutes(order, epoch, position)
        starts = range(0, self._batch_size, PART_SIZE)
        if len(starts) > 1:
            taken = set(indices.tolist())
            fresh = [index for index in dict.fromkeys(spare.tolist()) if index not in taken]
            spare = np.array(fresh, dtype=np.int64)
        return [
            BatchRequest(
                epoch,
                position + start,
                indices[start : start + PART_SIZE],
                spare[number :: len(starts)],
            )
            for number, start in enumerate(starts)
        ]

    def _joined(self, parts: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
        """Whole batches."""
        num_parts = math.ceil(self._batch_size / PART_SIZE)
        while group := list(itertools.islice(parts, num_parts)):
            yield join(group)

    def _substitutes(self, order: Indices, epoch: int, position: int) -> Indices:
        """Candidates for broken samples of the batch at `position`, left-over ones first."""
        rng = _rng(self._seed, "substitutes", epoch, position)
        left_over = order[self.steps_per_epoch * self._global_batch_size :]
        num = self._batch_size
        near = left_over[rng.integers(len(left_over), size=num)] if len(left_over) else left_over
        return np.concatenate([near, order[rng.integers(len(order), size=num)]])

    def _epoch_order(self, epoch: int) -> Indices:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._draw_order(epoch))
        return self._order[1]

    def _draw_order(self, epoch: int) -> Indices:
        config = self._config
        if config.sampling == "exact":
            return epoch_order(
                self.num_samples, seed=self._seed, epoch=epoch, window=config.shuffle_window
            )
        sizes = list(self._source.part_sizes)
        weights = list(config.weights) or [1.0] * len(sizes)
        return resampled_order(sizes, weights, self._epoch_samples, seed=self._seed, epoch=epoch)

    def _count(self, epoch: int, loaded: LoadedBatch) -> None:
        """Add the bad samples of a batch; a shard is named in the log the first time."""
        if not loaded.bad:
            return
        for shard, index, reason, detail in loaded.bad:
            self._bad.add(shard, reason, example=index)
            if shard not in self._warned:
                self._warned.add(shard)
                logger.warning(
                    "%s: sample %s skipped: %s. More of this shard are only counted.",
                    shard,
                    index,
                    f"{reason} ({detail})" if detail else reason,
                )
        self._check(f"epoch {epoch}", self._bad.total(), self.steps_per_epoch * self._batch_size)

    def _check_lost(self) -> None:
        lost = self._source.lost
        for shard in lost.counts.keys() - self._warned:
            self._warned.add(shard)
            logger.warning("%s: samples left out: %s.", shown(shard), lost.reasons(shard))
        self._check("the index", 0, 1)

    def _check(self, where: str, num_bad: int, num_samples: int) -> None:
        """Stop if too many samples are unusable.

        Raises:
            DataError: With the counts and the shards.
        """
        lost = self._source.lost.total()
        fraction = lost / max(1, lost + self.num_samples) + num_bad / num_samples
        allowed = self._config.max_bad_fraction
        if fraction <= allowed:
            return
        together = self._together()
        raise DataError(
            f"{together.total()} samples are unusable in {where}, {fraction:.1%} of them, and "
            f"data.source.max_bad_fraction allows {allowed:.1%}. {together.describe()}. Repair or "
            "replace these files, or raise max_bad_fraction."
        )


class _Requests:
    """The sampler of the worker processes: hands on the requests of the epoch under way."""

    def __init__(self) -> None:
        self.pending: Iterator[BatchRequest] = iter(())

    def __iter__(self) -> Iterator[BatchRequest]:
        return self.pending


def _unchanged(loaded: Any) -> Any:
    return loaded


def _rng(seed: int, *purpose: object) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *purpose)))
