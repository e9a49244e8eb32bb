"""Colour work on the device, whole batches at a time: flip, jitter, grayscale, blur, normalization.

The recipe of the self-supervised views is SimCLR's as SLIP uses it (`facebookresearch/SLIP`,
main.py): colour jitter, grayscale, Gaussian blur, flip, each with its own chance and strength for
every image. Parameters are drawn on the CPU from the step's generator, so they do not depend on
the device; the number of draws does not depend on their outcome. Each operation equals that of
`torchvision.transforms.v2.functional` on float images, applied image by image.

Legend: B images, b images an operation concerns, S image size; images are float [B, 3, S, S] in
0..1 until they are normalized.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskclip_bench.data.batch import Batch, RawBatch, with_tensors
from maskclip_bench.data.pair_config import AugmentConfig

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a gray value (ITU-R 601), as torchvision rounds them."""

NUM_JITTERS = 4


@dataclass(frozen=True)
class ViewDraws:
    """All random parameters of one set of self-supervised views, on the CPU.

    Attributes:
        jittered: bool [B], which images get colour jitter.
        order: int64 [B, 4], the order of brightness (0), contrast (1), saturation (2), hue (3).
        factors: float [B, 4], their strengths: a factor around 1 for the first three, and a
            shift in turns of the colour circle for hue.
        gray: bool [B], which images lose their colour.
        blurred: bool [B], which images are blurred.
        sigmas: float [B], standard deviations of the blur in pixels.
        flipped: bool [B], which images are mirrored.
    """

    jittered: Tensor
    order: Tensor
    factors: Tensor
    gray: Tensor
    blurred: Tensor
    sigmas: Tensor
    flipped: Tensor


@dataclass(frozen=True)
class ViewPlan:
    """What is done to which views; the same as `ViewDraws`, in the order it is done.

    Attributes:
        jitters: (number of the jitter, int64 [b] the images, float [b, 1, 1, 1] the strengths).
        gray: Int64 [b], images that lose their colour.
        blurred: Int64 [b], images that are blurred.
        sigmas: Float [b], of the blurred ones.
        flipped: Int64 [b], images that are mirrored.
    """

    jitters: list[tuple[int, Tensor, Tensor]]
    gray: Tensor
    blurred: Tensor
    sigmas: Tensor
    flipped: Tensor

    @classmethod
    def of(cls, draws: ViewDraws) -> ViewPlan:
        """The plan of some draws, on the CPU; jitters that concern no image are left out."""
        jitters = []
        for turn in range(NUM_JITTERS):
            for jitter in range(NUM_JITTERS):
                chosen = draws.jittered & (draws.order[:, turn] == jitter)  # [B]
                if chosen.any():
                    factors = draws.factors[chosen, jitter].view(-1, 1, 1, 1)
                    jitters.append((jitter, _indices(chosen), factors))
        sigmas = draws.sigmas[draws.blurred]
        return cls(
            jitters, _indices(draws.gray), _indices(draws.blurred), sigmas, _indices(draws.flipped)
        )


@dataclass(frozen=True)
class AugmentDraws:
    """All that is drawn for one batch's images.

    Attributes:
        flipped: Int64 [b], contrastive views that are mirrored.
        views: Of the self-supervised views; None if there are none.
    """

    flipped: Tensor
    views: ViewPlan | None


class DeviceAugment:
    """Turns a `RawBatch` into a `Batch` on the device."""

    def __init__(self, config: AugmentConfig) -> None:
        self._config = config
        self._blur: dict[tuple[int, torch.device], Blur] = {}
        self._channels: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, raw: RawBatch, *, device: torch.device, generator: torch.Generator) -> Batch:
        """Draw, move a batch to the device, and augment it there.

        Args:
            raw: uint8 images and tokens.
            device: Where the model is.
            generator: CPU generator of this step; handed on in the batch.
        """
        draws = self.draw(raw, generator)
        images, tokens, views, draws = with_tensors(
            (raw.images, raw.tokens, raw.ssl_images, draws),
            lambda tensor: tensor.to(device, non_blocking=True),
        )
        moved = RawBatch(images, tokens, views, raw.keys)
        batch = self.apply(moved, draws, generator=generator)
        batch.tokens_on_cpu = raw.tokens
        return batch

    def draw(self, raw: RawBatch, generator: torch.Generator) -> AugmentDraws:
        """Draw the parameters of a batch, on the CPU."""
        flipped = _indices(_chance(len(raw.keys), self._config.flip, generator))
        if not raw.ssl_images:
            return AugmentDraws(flipped, None)
        num_views = sum(len(view) for view in raw.ssl_images)
        return AugmentDraws(flipped, ViewPlan.of(draw_views(num_views, self._config, generator)))

    def apply(self, raw: RawBatch, draws: AugmentDraws, *, generator: torch.Generator) -> Batch:
        """Augment a batch that is on the device, as are its draws; nothing waits for the device."""
        images = flip(_to_float(raw.images), draws.flipped)
        views: list[Tensor] = []
        if draws.views is not None:
            together = torch.cat([_to_float(view) for view in raw.ssl_images])  # [V * B, 3, S, S]
            together = self.normalize(self.augment_views(together, draws.views))
            views = list(together.split(len(raw.keys)))
        return Batch(
            images=self.normalize(images),
            tokens=raw.tokens,
            ssl_views=tuple(views),
            generator=generator,
        )

    def augment_views(self, images: Tensor, plan: ViewPlan) -> Tensor:
        """Jitter, grayscale, blur, flip: float [B, 3, S, S] in 0..1 -> the same."""
        images = color_jitter(images, plan)
        images = _on_some(images, plan.gray, grayscale)
        if len(plan.blurred):
            blur = self._blur_of(images.shape[-1], images.device)
            images = _on_some(images, plan.blurred, lambda some: blur(some, plan.sigmas))
        return flip(images, plan.flipped)

    def normalize(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation of each channel."""
        device = images.device
        if device not in self._channels:  # copied once
            channels = (self._config.mean, self._config.std)
            mean, std = (images.new_tensor(values).view(3, 1, 1) for values in channels)
            self._channels[device] = mean, std
        mean, std = self._channels[device]
        return (images - mean).div_(std)

    def _blur_of(self, size: int, device: torch.device) -> Blur:
        key = (size, device)
        if key not in self._blur:
            self._blur[key] = Blur(size, max_sigma=self._config.ssl_blur_sigma[1], device=device)
        return self._blur[key]


def draw_views(num_images: int, config: AugmentConfig, generator: torch.Generator) -> ViewDraws:
    """Draw the parameters of `num_images` self-supervised views."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(num_images, *shape).uniform_(low, high, generator=generator)

    *strengths, hue = config.ssl_jitter
    factors = [uniform(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
    factors.append(uniform(-hue, hue))
    return ViewDraws(
        jittered=_chance(num_images, config.ssl_jitter_probability, generator),
        order=torch.rand(num_images, NUM_JITTERS, generator=generator).argsort(dim=1),
        factors=torch.stack(factors, dim=1),
        gray=_chance(num_images, config.ssl_grayscale, generator),
        blurred=_chance(num_images, config.ssl_blur, generator),
        sigmas=uniform(*config.ssl_blur_sigma),
        flipped=_chance(num_images, config.ssl_flip, generator),
    )


def color_jitter(images: Tensor, plan: ViewPlan) -> Tensor:
    """Apply the four jitters to each image in its own order: float [B, 3, S, S] -> the same."""
    if not plan.jitters:
        return images
    result = images.clone()
    for jitter, indices, factors in plan.jitters:
        result[indices] = JITTERS[jitter](result[indices], factors)
    return result


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Scale: images [b, 3, S, S], factors [b, 1, 1, 1]."""
    return (images * factors).clamp_(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the mean gray of the image: images [b, 3, S, S], factors [b, 1, 1, 1]."""
    means = _gray(images).mean(dim=(2, 3), keepdim=True)  # [b, 1, 1, 1]
    return torch.lerp(means, images, factors).clamp_(0, 1)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the gray image: images [b, 3, S, S], factors [b, 1, 1, 1]."""
    return torch.lerp(_gray(images), images, factors).clamp_(0, 1)


def hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn the colour circle: images [b, 3, S, S], shifts [b, 1, 1, 1] in turns.

    Through hue, value and chroma (HSV); back by `value - chroma * ramp(hue)` with a ramp for each
    channel, which needs no sorting into sextants.
    """
    red, green, blue = images.unbind(1)  # each [b, S, S]
    value = images.amax(dim=1)
    chroma = value - images.amin(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    turned = sextant + 6 * shifts[:, 0]  # [b, S, S], not yet wrapped to 0..6
    result = torch.empty_like(images)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        position = (turned + offset).remainder_(6)
        ramp = torch.minimum(position, 4 - position).clamp_(0, 1)
        torch.addcmul(value, chroma, ramp, value=-1, out=result[:, channel])
    return result


JITTERS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness, contrast, saturation, hue)


def grayscale(images: Tensor) -> Tensor:
    """Gray images with three equal channels: [b, 3, S, S] -> the same."""
    return _gray(images).expand_as(images)


def flip(images: Tensor, indices: Tensor) -> Tensor:
    """Mirror the images at `indices` left to right."""
    return _on_some(images, indices, lambda some: some.flip(3))


class Blur:
    """Gaussian blur with a standard deviation of its own for each image.

    Blurring along an axis is a product with a banded [S, S] matrix (edges reflected), so a batch
    of images with different sigmas is two batched matrix products.
    """

    def __init__(self, size: int, *, max_sigma: float, device: torch.device) -> None:
        """Prepare for images of `size` pixels and sigmas up to `max_sigma`."""
        radius = min(max(1, math.ceil(3 * max_sigma)), size - 1)
        offsets = torch.arange(-radius, radius + 1)  # [T]
        columns = torch.arange(size)[None, :] + offsets[:, None]  # [T, S]
        reflected = (size - 1) - (columns.abs() - (size - 1)).abs()
        moves = torch.zeros(len(offsets), size, size)  # [T, S, S]
        moves.scatter_(2, reflected[:, :, None], 1.0)
        self.kernel_size = 2 * radius + 1
        self._moves = moves.flatten(1).to(device)  # [T, S * S]
        self._squares = (offsets.float() ** 2).to(device)  # [T]
        self._size = size

    def __call__(self, images: Tensor, sigmas: Tensor) -> Tensor:
        """Blur images [b, 3, S, S] with sigmas [b] in pixels."""
        weights = torch.exp(-0.5 * self._squares / sigmas[:, None] ** 2)  # [b, T]
        weights = weights / weights.sum(dim=1, keepdim=True)
        band = (weights @ self._moves).view(-1, 1, self._size, self._size)  # [b, 1, S, S]
        return band @ images @ band.transpose(2, 3)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)  # each [b, 1, S, S]
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _to_float(images: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> float in 0..1, contiguous."""
    return images.contiguous().to(torch.float32).div_(255)


def _chance(num_images: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(num_images, generator=generator) < probability


def _indices(chosen: Tensor) -> Tensor:
    """Indices where `chosen`, on the CPU, is true."""
    return chosen.nonzero().squeeze(1)


def _on_some(images: Tensor, indices: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
    """Images with `apply` done to those at `indices`."""
    if len(indices) == 0:
        return images
    return images.index_copy(0, indices, apply(images[indices]))
