"""What a sample shows: its caption, its crops, and the parts of batches that are made of samples.

Which caption and which crops a sample shows is drawn from (seed, epoch, its key), so it depends
neither on the batch nor on how often another sample drew.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from maskclip_bench.data.batch import RawBatch
from maskclip_bench.data.images import decode_crops
from maskclip_bench.data.pair_config import AugmentConfig, SourceConfig
from maskclip_bench.data.pairs.batch_parts import BatchRequest, LoadedBatch, filled
from maskclip_bench.data.pairs.pair_sources import EMPTY_CAPTION, BadSampleError, PairSource
from maskclip_bench.data.tokenizer import CaptionTokenizer, pad
from maskclip_bench.runtime import derive_seed

T = TypeVar("T")


class PairDataset(Dataset[LoadedBatch]):
    """Makes parts of batches from requests; a pure function of the request and the files."""

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
    ) -> None:
        self._source = source
        self._config = config
        self._tokenizer = tokenizer
        self._image_size = image_size
        self._scales = view_scales(augment, num_ssl_views)
        self._ratio = augment.crop_ratio
        self._seed = seed

    def __getitem__(self, request: BatchRequest) -> LoadedBatch:
        size = self._image_size
        shape = (len(self._scales), len(request.indices), size, size, 3)
        views: npt.NDArray[np.uint8] = np.empty(shape, dtype=np.uint8)  # [V, B, S, S, 3]

        def load(index: int, slot: int) -> tuple[str, list[int]]:
            return self._load(index, request, slot, views)

        found, bad = filled(request, load, self._source.shard)
        if found is None:
            return LoadedBatch(None, bad)
        keys, tokens = [key for key, _ in found], [row for _, row in found]
        images = torch.from_numpy(views).permute(0, 1, 4, 2, 3)  # [V, B, 3, S, S]
        return LoadedBatch(RawBatch(images[0], pad(tokens), tuple(images[1:]), keys), bad)

    def _load(
        self, index: int, request: BatchRequest, slot: int, views: npt.NDArray[np.uint8]
    ) -> tuple[str, list[int]]:
        """Decode one sample into `views[:, slot]`; returns its key and its tokens."""
        pair = self._source.read(index)
        rng = sample_rng(pair.key, request, slot, config=self._config, seed=self._seed)
        caption = choose_caption(pair.captions, self._config, rng)
        outputs = list(views[:, slot])
        decode_crops(pair.image, outputs, scales=self._scales, ratio=self._ratio, rng=rng)
        return pair.key, self._tokenizer.encode_caption(caption)


def view_scales(augment: AugmentConfig, num_ssl_views: int) -> list[tuple[float, float]]:
    """For each view of a sample, the range of its crop's area."""
    return [augment.crop_scale, *[augment.ssl_crop_scale] * num_ssl_views]


def sample_rng(
    key: str, request: BatchRequest, slot: int, *, config: SourceConfig, seed: int
) -> random.Random:
    """What a sample's caption is drawn from, and then its crops.

    Args:
        key: Of the sample.
        request: That it is loaded for.
        slot: Its number in the request.
        config: Its `sampling`.
        seed: Of the run.
    """
    purpose: tuple[object, ...] = ("sample", request.epoch, key)
    if config.sampling == "resampled":  # the same sample may come again in an epoch
        purpose = (*purpose, request.position + slot)
    return random.Random(derive_seed(seed, *purpose))


def choose_caption(captions: list[list[str]], config: SourceConfig, rng: random.Random) -> str:
    """One caption of a sample, by the rule of its configuration.

    Args:
        captions: For each field, its captions.
        config: `captions` and `empty_captions` are the rule.
        rng: What to draw from.

    Raises:
        BadSampleError: There is none.
    """
    return draw_caption(usable_captions(captions, config), config, rng)


def usable_captions(captions: list[list[str]], config: SourceConfig) -> list[list[str]]:
    """The captions that may be drawn, without fields that have none.

    Raises:
        BadSampleError: There is none.
    """
    if config.empty_captions == "drop":
        captions = [[text for text in of_field if text.strip()] for of_field in captions]
    fields = [of_field for of_field in captions if of_field]
    if not fields:
        raise BadSampleError(EMPTY_CAPTION)
    return fields


def draw_caption(fields: Sequence[Sequence[T]], config: SourceConfig, rng: random.Random) -> T:
    """One of the usable captions, or of what stands for them."""
    if config.captions == "first":
        return fields[0][0]
    if config.captions == "random_of_fields":
        return rng.choice(rng.choice(fields))
    return rng.choice([text for of_field in fields for text in of_field])
