from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskclip_bench.data.pair_config import DataConfig
from maskclip_bench.data.pairs.loader import PairLoader
from maskclip_bench.data.shapes import write_shape_shards
from maskclip_bench.data.tokenizer import CaptionTokenizer, TokenizerConfig, load_tokenizer

NUM_SAMPLES = 48

MakeLoader = Callable[..., PairLoader]


@pytest.fixture(scope="session")
def tokenizer() -> CaptionTokenizer:
    return load_tokenizer(TokenizerConfig(kind="demo", context_length=24))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A data root with 48 samples in 4 shards of 12, `shapes/shapes-{000000..000003}.tar`."""
    write_shape_shards(tmp_path / "shapes", num_samples=NUM_SAMPLES, num_shards=4, size=24)
    return tmp_path


@pytest.fixture
def make_loader(tokenizer: CaptionTokenizer) -> MakeLoader:
    def make(
        data_root: Path,
        path: str = "shapes/shapes-{000000..000003}.tar",
        *,
        batch: int = 4,
        views: int = 0,
        size: int = 16,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        held: str = "none",
        augment: dict[str, Any] | None = None,
        **source: Any,
    ) -> PairLoader:
        config = DataConfig.model_validate(
            {
                "source": {"path": path, **source},
                "augment": augment or {},
                "num_workers": num_workers,
                "held": held,
            }
        )
        return PairLoader(
            config,
            data_root=data_root,
            tokenizer=tokenizer,
            image_size=size,
            num_ssl_views=views,
            batch_size_per_gpu=batch,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

    return make
