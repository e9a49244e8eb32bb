"""The number of images a forward pass takes: as many as the device's memory holds, while it helps.

Sizes are doubled until memory refuses, or until the last doubling brought less than a twentieth:
beyond that a larger batch only takes memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from maskclip_bench.errors import ConfigError

if TYPE_CHECKING:
    from maskclip_bench.backbones import Backbone

logger = logging.getLogger(__name__)

SMALLEST = 16
LARGEST = 4096
GAIN = 1.05
"""Images a second of a size over those of half of it, from which it counts as faster."""


NO_MEMORY = "can't allocate memory"
"""In the error of torch's allocator for the CPU."""


def largest_batch(
    encode: Callable[[int], None],
    *,
    smallest: int = SMALLEST,
    largest: int = LARGEST,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Double the batch until memory refuses or nothing is gained -> the size to use.

    Args:
        encode: Runs one forward pass of that many images, and waits for it.
        smallest: Where to begin.
        largest: Where to end.
        clock: Seconds.

    Raises:
        ConfigError: Not even `smallest` fits.
    """
    best, best_rate = 0, 0.0
    size = smallest
    while size <= largest:
        try:
            encode(size)  # allocates, and chooses kernels
            began = clock()
            encode(size)
            rate = size / max(clock() - began, 1e-9)
        except (torch.OutOfMemoryError, MemoryError):
            break
        except RuntimeError as error:  # of the CPU's allocator, which has no type of its own
            if NO_MEMORY not in str(error):
                raise
            break
        if rate < GAIN * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    if best == 0:
        raise ConfigError(
            f"Not even {smallest} images fit into the memory of this device. Give a smaller "
            "--batch-size, or another --device."
        )
    return best


def batch_size_of(backbone: Backbone) -> int:
    """What `--batch-size auto` comes to for a row on its device."""
    side = backbone.image_size

    def encode(size: int) -> None:
        backbone.image_outputs(torch.zeros(size, 3, side, side, dtype=torch.uint8))
        if backbone.device.type == "cuda":
            torch.cuda.synchronize(backbone.device)

    found = largest_batch(encode)
    if backbone.device.type == "cuda":
        torch.cuda.empty_cache()
    logger.info("%s: %d images a forward pass", backbone.row_id, found)
    return found
