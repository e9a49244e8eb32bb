from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as reference

from maskclip_bench.data import augment
from maskclip_bench.data.augment import Blur, DeviceAugment, ViewDraws, ViewPlan, draw_views
from maskclip_bench.data.batch import RawBatch
from maskclip_bench.data.pair_config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig

CPU = torch.device("cpu")
CONFIG = AugmentConfig()


def some_images(num: int = 12, size: int = 20) -> torch.Tensor:
    """Float images in 0..1, with gray, black and saturated areas among them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(num, 3, size, size, generator=generator)
    images[0] = 0.5
    images[1, :, :5] = 0
    images[2] = images[2].round()
    images[3, 1] = images[3, 0]
    return images


def draws_for(num: int, seed: int = 1) -> ViewDraws:
    return draw_views(num, CONFIG, torch.Generator().manual_seed(seed))


def raw_batch(images: torch.Tensor, num_views: int = 2) -> RawBatch:
    pixels = (images * 255).round().to(torch.uint8)
    keys = [str(index) for index in range(len(images))]
    tokens = torch.ones(len(images), 5, dtype=torch.int64)
    return RawBatch(pixels, tokens, tuple(pixels.clone() for _ in range(num_views)), keys)


@pytest.mark.parametrize(
    ("jitter", "ours", "theirs"),
    [
        (0, augment.brightness, reference.adjust_brightness),
        (1, augment.contrast, reference.adjust_contrast),
        (2, augment.saturation, reference.adjust_saturation),
        (3, augment.hue, reference.adjust_hue),
    ],
)
def test_jitters__equal_torchvision(jitter: int, ours: object, theirs: object) -> None:
    images = some_images()
    factors = draws_for(len(images)).factors[:, jitter]
    result = ours(images, factors.view(-1, 1, 1, 1))
    for image, factor, one in zip(images, factors, result, strict=True):
        torch.testing.assert_close(one, theirs(image, float(factor)), atol=1e-5, rtol=0)


def test_blur__equals_torchvision() -> None:
    images = some_images()
    sigmas = draws_for(len(images)).sigmas
    blur = Blur(20, max_sigma=2.0, device=CPU)
    for image, sigma, one in zip(images, sigmas, blur(images, sigmas), strict=True):
        expected = reference.gaussian_blur(image, blur.kernel_size, float(sigma))
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=0)


def test_views__equal_torchvision_image_by_image() -> None:
    images = some_images(24)
    draws = draws_for(24)
    result = DeviceAugment(CONFIG).augment_views(images.clone(), ViewPlan.of(draws))
    apply = (
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    )
    for index, image in enumerate(images):
        if draws.jittered[index]:
            for jitter in draws.order[index].tolist():
                image = apply[jitter](image, float(draws.factors[index, jitter]))
        if draws.gray[index]:
            image = reference.rgb_to_grayscale(image, num_output_channels=3)
        if draws.blurred[index]:
            image = reference.gaussian_blur(image, 13, float(draws.sigmas[index]))
        if draws.flipped[index]:
            image = reference.horizontal_flip(image)
        torch.testing.assert_close(result[index], image, atol=3e-5, rtol=0)


def test_draws__have_the_asked_chances() -> None:
    draws = draws_for(20_000)
    for chosen, chance in (
        (draws.jittered, 0.8),
        (draws.gray, 0.2),
        (draws.blurred, 0.5),
        (draws.flipped, 0.5),
    ):
        assert float(chosen.float().mean()) == pytest.approx(chance, abs=0.02)
    assert draws.order.sort(dim=1).values.eq(torch.arange(4)).all()
    assert len(draws.order.unique(dim=0)) == 24
    assert draws.factors[:, :3].min() >= 0.6 and draws.factors[:, :3].max() <= 1.4
    assert draws.factors[:, 3].abs().max() <= 0.1
    assert draws.sigmas.min() >= 0.1 and draws.sigmas.max() <= 2.0


def test_batch__normalized_and_deterministic() -> None:
    raw = raw_batch(some_images())
    before = raw.images.clone()
    call = DeviceAugment(CONFIG)
    first = call(raw, device=CPU, generator=torch.Generator().manual_seed(3))
    again = call(raw, device=CPU, generator=torch.Generator().manual_seed(3))
    other = call(raw, device=CPU, generator=torch.Generator().manual_seed(4))
    assert torch.equal(raw.images, before)
    expected = reference.normalize(
        reference.to_dtype(raw.images, torch.float32, scale=True),
        list(IMAGENET_MEAN),
        list(IMAGENET_STD),
    )
    torch.testing.assert_close(first.images, expected, atol=1e-6, rtol=0)
    assert torch.equal(first.tokens, raw.tokens)
    assert len(first.ssl_views) == 2 and first.ssl_views[0].shape == raw.images.shape
    assert torch.equal(first.ssl_views[0], again.ssl_views[0])
    assert not torch.equal(first.ssl_views[0], other.ssl_views[0])
    assert not torch.equal(first.ssl_views[0], first.ssl_views[1])


def test_flip__mirrors_the_contrastive_view() -> None:
    raw = raw_batch(some_images(), num_views=0)
    generator = torch.Generator().manual_seed(0)
    plain = DeviceAugment(CONFIG)(raw, device=CPU, generator=generator)
    mirrored = DeviceAugment(AugmentConfig(flip=1.0))(raw, device=CPU, generator=generator)
    assert torch.equal(mirrored.images, plain.images.flip(3))
    assert plain.ssl_views == () and plain.generator is generator


def test_nothing_chosen__leaves_views_alone() -> None:
    config = AugmentConfig(
        ssl_jitter_probability=0,
        ssl_grayscale=0,
        ssl_blur=0,
        ssl_flip=0,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    raw = raw_batch(some_images(), num_views=1)
    batch = DeviceAugment(config)(raw, device=CPU, generator=torch.Generator())
    torch.testing.assert_close(batch.ssl_views[0], batch.images, atol=1e-7, rtol=0)


@pytest.mark.gpu
def test_gpu__equals_cpu() -> None:
    raw = raw_batch(some_images())
    call = DeviceAugment(CONFIG)
    here = call(raw, device=CPU, generator=torch.Generator().manual_seed(3))
    there = call(raw, device=torch.device("cuda"), generator=torch.Generator().manual_seed(3))
    for ours, theirs in zip(here.ssl_views, there.ssl_views, strict=True):
        torch.testing.assert_close(ours, theirs.cpu(), atol=1e-4, rtol=0)
