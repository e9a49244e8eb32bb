"""The contrastive loss on pairs that a run is not trained on, for its log.

The same pairs, in the same groups, for every method, seed and number of processes: one caption
each (drawn by the pair's name, where `captions` is not `first`) and the largest central square of
the image. The loss is InfoNCE of the student's embeddings with its own temperature,
(L_I + L_T) / 2, without the weights of the method, so that methods can be compared. Nothing that
training draws depends on it.

B pairs of a group, S image size, J width of the joint space.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from PIL import Image, ImageOps
from torch import Tensor

from maskclip_bench.data.images import decode
from maskclip_bench.data.pair_config import AugmentConfig, SourceConfig
from maskclip_bench.data.pairs.loader import epoch_order, open_source
from maskclip_bench.data.pairs.pair_files import list_files
from maskclip_bench.data.pairs.pair_sources import BadSampleError
from maskclip_bench.data.pairs.samples import choose_caption
from maskclip_bench.data.readers.base import open_dataset
from maskclip_bench.data.tokenizer import CaptionTokenizer, pad
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.modeling.towers import encode_image, encode_text
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.recipe import HeldOutSection, Recipe
from maskclip_bench.runtime import derive_seed

logger = logging.getLogger(__name__)

LOSS, ACCURACY = "held_out_contrastive_loss", "held_out_accuracy"
"""Names in the log. The accuracy is the share of images whose own caption is the nearest of the
group, and of captions with their image, on average."""

SEED = 0
"""Of the choice of pairs and captions; the run's own seed has no part in it."""

Pair = tuple[Image.Image, str]


def check_held_out(recipe: Recipe, method: Method, *, data_root: Path) -> None:
    """Make sure that a recipe's held-out pairs mean something.

    Raises:
        ConfigError: The method trains no embeddings of pairs, or the pairs are trained on.
    """
    section = recipe.evaluation.held_out
    if section is None:
        return
    if not method.trains_pairs:
        raise ConfigError(
            f"evaluation.held_out compares embeddings of images and captions, and method "
            f"{recipe.method.name} trains none as this recipe sets it. Leave held_out out."
        )
    if section.source is None:
        return
    theirs = {file.path.resolve() for file in list_files(section.source.path, data_root=data_root)}
    ours = list_files(recipe.data.source.path, data_root=data_root)
    both = [file.name for file in ours if file.path.resolve() in theirs]
    if both:
        raise ConfigError(
            f"evaluation.held_out.source and data.source share {len(both)} files, e.g. {both[0]}: "
            "the run is trained on those pairs. Name other files."
        )


class HeldOutPairs:
    """Held-out pairs in memory (uint8, S x S pixels each) and their loss; an evaluator.

    Args:
        section: Which pairs.
        augment: Their normalization.
        tokenizer: Of the captions.
        image_size: S.
        global_batch_size: Pairs compared with each other, if the section does not say.
        data_root: What paths are relative to.
        device: Where the loss is computed.
        bf16: Whether under autocast, as training is.

    Raises:
        DataError: They cannot be read, or fewer than two are usable.
    """

    def __init__(
        self,
        section: HeldOutSection,
        *,
        augment: AugmentConfig,
        tokenizer: CaptionTokenizer,
        image_size: int,
        global_batch_size: int,
        data_root: Path,
        device: torch.device,
        bf16: bool,
    ) -> None:
        images: list[npt.NDArray[np.uint8]] = []
        captions: list[list[int]] = []
        for image, caption in _pairs(section, data_root):
            square = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
            images.append(np.asarray(square))
            captions.append(tokenizer.encode_caption(caption))
            if len(images) == section.num_pairs:
                break
        batch_size = min(section.batch_size or global_batch_size, len(images))
        self.num_pairs = len(images) - len(images) % batch_size if batch_size > 1 else 0
        if not self.num_pairs:
            raise DataError(
                f"evaluation.held_out has {len(images)} usable pairs, and a contrastive loss needs "
                "two. Name other data."
            )
        self.batch_size = batch_size
        stacked = torch.from_numpy(np.stack(images[: self.num_pairs]))
        self._images = stacked.permute(0, 3, 1, 2).split(batch_size)  # each uint8 [B, 3, S, S]
        self._tokens = pad(captions[: self.num_pairs]).split(batch_size)  # each int64 [B, L]
        self._mean = torch.tensor(augment.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(augment.std, device=device).view(3, 1, 1)
        self._device, self._bf16 = device, bf16

    @torch.no_grad()
    def __call__(self, model: CustomTextCLIP, step: int) -> dict[str, float]:
        """Loss and accuracy of a model in evaluation mode."""
        model.to(self._device)
        scale = model.logit_scale.exp().float()
        totals = torch.zeros(2, device=self._device)
        for images, tokens in zip(self._images, self._tokens, strict=True):
            pixels = images.to(self._device).contiguous().float().div_(255)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                image_features = encode_image(model, (pixels - self._mean).div_(self._std))
                text_features = encode_text(model, tokens.to(self._device))
            totals += _loss_and_accuracy(scale * (image_features.float() @ text_features.float().T))
        loss, accuracy = (totals / len(self._images)).tolist()
        return {LOSS: loss, ACCURACY: accuracy}


def _loss_and_accuracy(logits: Tensor) -> Tensor:
    """Logits [B, B] of images and captions -> [2]: mean InfoNCE and top-1 accuracy both ways."""
    targets = torch.arange(len(logits), device=logits.device)
    both = [
        torch.stack([F.cross_entropy(rows, targets), (rows.argmax(1) == targets).float().mean()])
        for rows in (logits, logits.T)
    ]
    return (both[0] + both[1]) / 2


def _pairs(section: HeldOutSection, data_root: Path) -> Iterator[Pair]:
    """Usable pairs in a fixed order; those that are not are counted in a warning."""
    if section.source is not None:
        return _pairs_of_source(section.source, data_root)
    return _pairs_of_reader(section, data_root)


def _pairs_of_source(config: SourceConfig, data_root: Path) -> Iterator[Pair]:
    source = open_source(config, data_root=data_root)
    order = epoch_order(len(source), seed=SEED, epoch=0, window=None)
    bad = 0
    try:
        for index in order.tolist():
            try:
                raw = source.read(index)
                rng = random.Random(derive_seed(SEED, "held_out", raw.key))
                yield decode(raw.image), choose_caption(raw.captions, config, rng)
            except (BadSampleError, DataError):
                bad += 1
    finally:
        if bad:
            logger.warning("evaluation.held_out: %d pairs cannot be used and are left out.", bad)


def _pairs_of_reader(section: HeldOutSection, data_root: Path) -> Iterator[Pair]:
    assert section.reader is not None
    assert section.split is not None
    dataset = open_dataset(
        section.reader, section.split, splits=[section.split], data_root=data_root
    )
    if dataset.captions is None:
        raise ConfigError(
            f"evaluation.held_out.reader: kind {section.reader.kind} gives no captions. Choose a "
            "data set with captions (kind: karpathy)."
        )
    for index in epoch_order(len(dataset), seed=SEED, epoch=0, window=None).tolist():
        yield dataset.read(index), dataset.captions[index][0]
