from __future__ import annotations

import numpy as np
import pytest

from maskclip_bench.data.demo.scenes import STUFF
from maskclip_bench.data.demo.textures import NUM_VARIANTS, TEXTURE_SIZE, soft_disc, texture


@pytest.mark.parametrize("stuff", STUFF)
def test_texture__of_every_stuff(stuff: str) -> None:
    image = texture(0, "train", stuff, 0)
    assert (image.mode, image.size) == ("RGB", (TEXTURE_SIZE, TEXTURE_SIZE))
    assert np.asarray(image).std() > 1  # no plain colour


def test_texture__own_of_each_seed_split_and_variant() -> None:
    def pixels(seed: int = 0, split: str = "train", variant: int = 0) -> bytes:
        texture.cache_clear()
        return texture(seed, split, "grass", variant).tobytes()

    assert pixels() == pixels()
    different = {pixels(), pixels(seed=1), pixels(split="val")}
    different |= {pixels(variant=number) for number in range(1, NUM_VARIANTS)}
    assert len(different) == 2 + NUM_VARIANTS


def test_soft_disc__full_in_the_middle_and_empty_at_the_corners() -> None:
    disc = np.asarray(soft_disc(0.5, 90))
    assert disc.shape == (64, 64) and disc[32, 32] == disc.max() == 90
    assert disc[0, 0] == 0 < disc[32, 20] < 90
