"""How much of a core's decoding speed the pretraining loader keeps.

    python benchmarks/loader.py [--samples 512] [--width 500 --height 375] [--size 224] [--rounds 5]

Draws JPEGs of a photograph's weight, writes them as webdataset shards, and compares, alternating
in one process on one thread:

* **bare**: decode, random crop, resize to uint8, of JPEGs already in memory; nothing else;
* **loader**: `PairLoader` on the shards: reading, captions, tokens, the same crops, batches;
* **held**: the same with the images held in memory (`data.held: device`), here that of the CPU,
  and the part of it that is left to the host where a GPU makes the crops: what is drawn.

All are given in samples per second of CPU time on one core; the best round of each counts.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskclip_bench.data.demo.formats import tar_bytes
from maskclip_bench.data.images import random_crop
from maskclip_bench.data.pair_config import DataConfig
from maskclip_bench.data.pairs.loader import PairLoader
from maskclip_bench.data.shapes import draw_photo, draw_shapes, jpeg_bytes
from maskclip_bench.data.tokenizer import TokenizerConfig, load_tokenizer

SCALE = (0.5, 1.0)
RATIO = (3 / 4, 4 / 3)
CAPTION = "a photo number {} of a quiet harbour with boats, taken on a Sunday morning in {}"


def draw_jpegs(num: int, *, width: int, height: int) -> list[bytes]:
    """JPEGs to decode: drawn photographs, or shapes when they are as small as the demo's."""
    if max(width, height) < 128:
        return [jpeg_bytes(draw_shapes(index, size=width)[0]) for index in range(num)]
    distinct = [draw_photo(index, width=width, height=height) for index in range(min(num, 64))]
    return [jpeg_bytes(distinct[index % len(distinct)]) for index in range(num)]


def write_shards(folder: Path, jpegs: Sequence[bytes], *, num_shards: int = 4) -> None:
    """The JPEGs with a caption each, in `num_shards` webdataset shards."""
    for shard in range(num_shards):
        members: list[tuple[str, bytes]] = []
        for index in range(shard, len(jpegs), num_shards):
            about = {"captions": [CAPTION.format(index, 1990 + index % 30)]}
            members.append((f"{index:06d}.jpg", jpegs[index]))
            members.append((f"{index:06d}.json", json.dumps(about).encode()))
        (folder / f"photos-{shard:06d}.tar").write_bytes(tar_bytes(members))


def decode_bare(jpegs: Sequence[bytes], *, size: int) -> int:
    """Decode, crop and resize every JPEG; returns how many."""
    rng = random.Random(0)
    for data in jpegs:
        image = Image.open(io.BytesIO(data))
        crop = random_crop(*image.size, scale=SCALE, ratio=RATIO, rng=rng)
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box))
    return len(jpegs)


def make_loader(folder: Path, held: str, options: argparse.Namespace) -> PairLoader:
    """A loader of the shards, with or without held images."""
    return PairLoader(
        DataConfig.model_validate({"source": {"path": "photos-*.tar"}, "held": held}),
        data_root=folder,
        tokenizer=load_tokenizer(TokenizerConfig(kind="clip")),
        image_size=options.size,
        num_ssl_views=0,
        batch_size_per_gpu=options.batch,
        seed=0,
    )


def draw_epoch(loader: PairLoader, epoch: int) -> int:
    """Draw the captions and crops of an epoch; returns of how many samples."""
    assert loader._held is not None
    parts = [part for step in range(loader.steps_per_epoch) for part in loader._parts(epoch, step)]
    return sum(len(loader._held.draws[part].batch.indices) for part in parts)


def read_epoch(loader: PairLoader, epoch: int) -> int:
    """Read an epoch; returns how many samples."""
    return sum(len(batch.keys) for batch in loader.epoch(epoch))


def rate(run: Callable[[], int]) -> float:
    """Samples per second of CPU time."""
    begin = time.process_time()
    num = run()
    return num / (time.process_time() - begin)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    jpegs = draw_jpegs(options.samples, width=options.width, height=options.height)
    print(
        f"{len(jpegs)} JPEGs of {options.width} x {options.height}, on average "
        f"{np.mean([len(data) for data in jpegs]) / 1000:.1f} kB, to {options.size} pixels"
    )
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), jpegs)
        loader, held = (make_loader(Path(name), kind, options) for kind in ("none", "device"))
        read_epoch(loader, 0)
        read_epoch(held, 0)
        bare, loaded, kept, drawn = 0.0, 0.0, 0.0, 0.0
        for number in range(1, options.rounds + 1):
            bare = max(bare, rate(lambda: decode_bare(jpegs, size=options.size)))
            loaded = max(loaded, rate(lambda epoch=number: read_epoch(loader, epoch)))
            kept = max(kept, rate(lambda epoch=number: read_epoch(held, epoch)))
            drawn = max(drawn, rate(lambda epoch=number: draw_epoch(held, epoch)))
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print(f"bare decode and crop  {bare:8.0f} samples/s/core")
    print(f"loader                {loaded:8.0f} samples/s/core, {loaded / bare:.1%} of bare")
    print(f"held, on this CPU     {kept:8.0f} samples/s/core, {kept / loaded:.2f} x loader")
    print(f"held, drawing alone   {drawn:8.0f} samples/s/core, {1e6 / drawn:.1f} us a sample")


if __name__ == "__main__":
    main()
