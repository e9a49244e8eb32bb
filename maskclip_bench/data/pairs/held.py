"""A set of pairs that is held in memory where the training is (`data.held: device`).

All images are decoded once and kept there as uint8. A batch is gathered there by index; its crops
are resized there by `data/resize.py`, to the bit as the loader's are. What a batch shows is drawn
as `samples.py` draws it, from (seed, epoch, key), so a run with held pairs and one without are the
same run. Captions are tokenized once; they stay on the host, where methods draw from them.

* A JPEG is also kept at 1/2, 1/4 and 1/8 of its size as far as it is large enough to be decoded
  so, because the loader decodes it so where all crops allow it.
* Images of other sizes are kept in several blocks, each padded to its largest image.
* Every process holds the whole set, because in each epoch any process may show any sample.

Legend: N samples, B of a batch, V views of each (the contrastive one first), S image size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskclip_bench.data.batch import RawBatch
from maskclip_bench.data.images import JPEG_FACTORS, Crop, random_crop
from maskclip_bench.data.pair_config import AugmentConfig, SourceConfig
from maskclip_bench.data.pairs.batch_parts import (
    BatchRequest,
    Indices,
    LoadedBatch,
    PairDraws,
    filled,
)
from maskclip_bench.data.pairs.held_reading import HeldSamples, Pixels, read_samples
from maskclip_bench.data.pairs.pair_sources import BadSampleError, PairSource
from maskclip_bench.data.pairs.samples import draw_caption, sample_rng, view_scales
from maskclip_bench.data.resize import columns_first, resize, windows
from maskclip_bench.data.tokenizer import PAD_TOKEN_ID, CaptionTokenizer
from maskclip_bench.runtime import free_memory

logger = logging.getLogger(__name__)

SHARE = 0.5
"""Of the free memory that the images may take; the rest is for training."""

MOVED_TOGETHER = 256
"""Images that are moved to the device at a time."""

NUM_LEVELS = 1 + len(JPEG_FACTORS)
"""An image and its reductions."""

NOTHING: Pixels = np.zeros((0, 0, 3), dtype=np.uint8)
"""In the place of an image that was moved."""


class HeldDraws(Dataset[LoadedBatch]):
    """Draws parts of batches from requests, where the images are held; `PairDataset` without them.

    Args:
        samples: All samples.
        shards: Sample -> its shard, of the bad ones.
        config: Of the source.
        augment: The crops.
        num_ssl_views: V - 1.
        seed: Of the run.
    """

    def __init__(
        self,
        samples: HeldSamples,
        shards: dict[int, str],
        *,
        config: SourceConfig,
        augment: AugmentConfig,
        num_ssl_views: int,
        seed: int,
    ) -> None:
        self._keys, self._captions, self._sizes = samples.keys, samples.captions, samples.sizes
        self._bad, self._shards = samples.bad, shards
        self._config = config
        self._scales = view_scales(augment, num_ssl_views)
        self._ratio = augment.crop_ratio
        self._seed = seed

    def __getitem__(self, request: BatchRequest) -> LoadedBatch:
        def load(index: int, slot: int) -> tuple[int, int, list[Crop]]:
            if index in self._bad:
                raise BadSampleError(*self._bad[index])
            rng = sample_rng(self._keys[index], request, slot, config=self._config, seed=self._seed)
            caption = draw_caption(self._captions[index], self._config, rng)
            width, height = self._sizes[index]
            crops = [
                random_crop(width, height, scale=scale, ratio=self._ratio, rng=rng)
                for scale in self._scales
            ]
            return index, caption, crops

        found, bad = filled(request, load, self._shards.__getitem__)
        if found is None:
            return LoadedBatch(None, bad)
        crops = np.array([crops for _, _, crops in found], dtype=np.int64)  # [B, V, 4]
        draws = PairDraws(
            indices=np.array([index for index, _, _ in found], dtype=np.int64),
            captions=np.array([caption for _, caption, _ in found], dtype=np.int64),
            crops=np.ascontiguousarray(crops.transpose(1, 0, 2)),
        )
        return LoadedBatch(draws, bad)


@dataclass(frozen=True)
class Block:
    """Images of similar size.

    Attributes:
        images: uint8 [n, 3, A, B] on the device; B is the axis that Pillow resizes first.
        transposed: Whether A are the columns.
    """

    images: Tensor
    transposed: bool


class HeldPairs:
    """The images and captions of a set, and batches of them.

    Attributes:
        draws: What workers are given to draw from.
        num_bytes: Of the images on the device, with what pads them.
    """

    def __init__(
        self,
        source: PairSource,
        config: SourceConfig,
        augment: AugmentConfig,
        *,
        tokenizer: CaptionTokenizer,
        image_size: int,
        num_ssl_views: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Read the whole set.

        Raises:
            DataError: It is too large for the device.
        """
        samples = read_samples(
            source,
            config,
            tokenizer=tokenizer,
            image_size=image_size,
            limit=int(SHARE * free_memory(device)),
            where=str(device),
        )
        self._size, self._device = image_size, device
        self._keys = samples.keys
        self._tokens = np.array(samples.tokens, dtype=np.int32)
        self._starts = np.array(samples.starts, dtype=np.int64)
        self._stored = np.array(samples.sizes, dtype=np.int64)  # [N, 2], width and height
        self._num_levels = np.array([len(levels) for levels in samples.pixels], dtype=np.int64)
        self._sizes = np.ones((NUM_LEVELS, len(source), 2), dtype=np.int64)  # of what is kept
        self._block = np.zeros((NUM_LEVELS, len(source)), dtype=np.int64)
        self._row = np.zeros((NUM_LEVELS, len(source)), dtype=np.int64)
        self._blocks = self._move(samples.pixels)
        self.num_bytes = sum(block.images.numel() for block in self._blocks)
        self.draws = HeldDraws(
            samples,
            {index: source.shard(index) for index in samples.bad},
            config=config,
            augment=augment,
            num_ssl_views=num_ssl_views,
            seed=seed,
        )
        logger.info(
            "%d pairs are held on %s: %.1f MB of images in %d blocks%s.",
            len(source) - len(samples.bad),
            device,
            self.num_bytes / 1e6,
            len(self._blocks),
            f"; {len(samples.bad)} cannot be used" if samples.bad else "",
        )

    def batch(self, draws: PairDraws) -> RawBatch:
        """A batch: images on the device, tokens on the host; nothing waits for the device."""
        levels = self._levels(draws)  # [B]
        places = self._places(draws, levels)  # [2, V, B, 4]
        numbers = self._block[levels, draws.indices]
        rows = self._row[levels, draws.indices]
        used = np.unique(numbers).tolist()
        if len(used) == 1:
            images = self._resized(used[0], rows, places)
        else:
            shape = (places.shape[1], len(rows), 3, self._size, self._size)
            images = torch.empty(shape, dtype=torch.uint8, device=self._device)
            for number in used:
                here = np.flatnonzero(numbers == number)
                part = self._resized(number, rows[here], places[:, :, here])
                images.index_copy_(1, self._on_device(here), part)
        keys = [self._keys[index] for index in draws.indices.tolist()]
        return RawBatch(images[0], self._captions(draws.captions), tuple(images[1:]), keys)

    def _resized(self, number: int, rows: Indices, places: npt.NDArray[np.float64]) -> Tensor:
        """Crops of images of one block: uint8 [V, b, 3, S, S]."""
        block = self._blocks[number]
        images = block.images.index_select(0, self._on_device(rows))
        if block.transposed:
            places = places[::-1]
        found = resize(images, self._on_device(places), self._size)
        return found.transpose(-1, -2) if block.transposed else found

    def _on_device(self, values: npt.NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _levels(self, draws: PairDraws) -> Indices:
        """At which reduction the loader would decode each image: int64 [B], 0 for the whole."""
        smallest = draws.crops[..., 2:].min(axis=(0, 2))  # [B]
        reached = [smallest >= factor * self._size for factor in JPEG_FACTORS]
        counted: Indices = np.sum(reached, axis=0, dtype=np.int64)
        return np.minimum(counted, self._num_levels[draws.indices] - 1)

    def _places(self, draws: PairDraws, levels: Indices) -> npt.NDArray[np.float64]:
        """`windows` of all crops, of rows and of columns: float64 [2, V, B, 4]."""
        kept = self._sizes[levels, draws.indices]  # [B, 2]
        share = kept / self._stored[draws.indices]
        starts, lengths = draws.crops[..., :2], draws.crops[..., 2:]  # each [V, B, 2]
        ends = np.minimum((starts + lengths) * share, kept)
        boxes = np.stack([starts * share, ends], axis=-1)  # [V, B, 2, 2]
        extents = np.broadcast_to(kept, starts.shape)
        found = windows(boxes, extents, self._size)  # [V, B, 2, 4], columns first
        return np.moveaxis(found, 2, 0)[::-1]

    def _captions(self, numbers: Indices) -> Tensor:
        """Tokens of captions: int64 [B, L], padded to the longest."""
        starts = self._starts[numbers]
        lengths = self._starts[numbers + 1] - starts
        offsets = np.arange(lengths.max())
        inside = offsets < lengths[:, None]  # [B, L]
        found = self._tokens[np.where(inside, starts[:, None] + offsets, 0)]
        return torch.from_numpy(np.where(inside, found, PAD_TOKEN_ID).astype(np.int64))

    # Filling.

    def _move(self, pixels: list[list[Pixels]]) -> list[Block]:
        """Bring all images to the device, in blocks; the lists are emptied on the way."""
        members: dict[tuple[int, int, bool], list[tuple[int, int]]] = {}
        for index, levels in enumerate(pixels):
            for level, image in enumerate(levels):
                height, width = image.shape[:2]
                self._sizes[level, index] = width, height
                transposed = columns_first(width, height, self._size)
                key = (_rounded_up(height), _rounded_up(width), transposed)
                members.setdefault(key, []).append((level, index))
        blocks = []
        for number, ((*_, transposed), entries) in enumerate(members.items()):
            for row, (level, index) in enumerate(entries):
                self._block[level, index], self._row[level, index] = number, row
            blocks.append(Block(self._filled(pixels, entries, transposed), transposed))
        return blocks

    def _filled(
        self, pixels: list[list[Pixels]], entries: list[tuple[int, int]], transposed: bool
    ) -> Tensor:
        """uint8 [n, 3, A, B] of the images in `entries`, which are taken out of `pixels`."""
        width, height = np.max([self._sizes[level, index] for level, index in entries], axis=0)
        shape = (3, width, height) if transposed else (3, height, width)
        block = torch.empty((len(entries), *shape), dtype=torch.uint8, device=self._device)
        for first in range(0, len(entries), MOVED_TOGETHER):
            some = entries[first : first + MOVED_TOGETHER]
            host: Pixels = np.zeros((len(some), *shape), dtype=np.uint8)
            for place, image in zip(host, self._taken(pixels, some), strict=True):
                turned = image.transpose((2, 1, 0) if transposed else (2, 0, 1))
                place[:, : turned.shape[1], : turned.shape[2]] = turned
            block[first : first + len(some)].copy_(torch.from_numpy(host))
        return block

    @staticmethod
    def _taken(pixels: list[list[Pixels]], entries: list[tuple[int, int]]) -> Iterator[Pixels]:
        for level, index in entries:
            yield pixels[index][level]
            pixels[index][level] = NOTHING


def _rounded_up(length: int) -> int:
    """To the next of 8, 10, 12, 14, 16, 20, 24...: at most a quarter more."""
    step = 1 << max(0, (length - 1).bit_length() - 3)
    return -(-length // step) * step
