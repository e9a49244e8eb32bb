from __future__ import annotations

import pytest

from maskclip_bench.config import validate
from maskclip_bench.data.pair_config import AugmentConfig, DataConfig, SourceConfig
from maskclip_bench.errors import ConfigError


def test_defaults__are_slips() -> None:
    config = validate({"source": {"path": "a.tar"}}, DataConfig, where="test")
    assert config.augment.crop_scale == (0.5, 1.0) and config.augment.ssl_crop_scale == (0.08, 1.0)
    assert config.augment.flip == 0.0
    assert config.source.max_bad_fraction == 0.01
    assert config.num_workers == 0


def test_weights__from_text() -> None:
    config = SourceConfig.model_validate(
        {"path": "a::b", "sampling": "resampled", "weights": "1::2.5"}
    )
    assert config.weights == (1.0, 2.5)
    assert SourceConfig.model_validate({"path": "a", "caption_fields": "txt"}).caption_fields == (
        "txt",
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "a::b", "weights": [1, 2]}, "need `sampling: resampled`"),
        ({"path": "a", "epoch_samples": 3}, "need `sampling: resampled`"),
        ({"path": "a::b", "weights": "1", "sampling": "resampled"}, "1 entries.*2 parts"),
        ({"path": "a", "caption_fields": []}, "caption_fields is empty"),
        ({"path": "a", "max_bad_fraction": 2}, "less than or equal to 1"),
        ({"path": "a", "shufle_window": 2}, "Did you mean 'shuffle_window'"),
        ({"path": ""}, "path, between `::`: an empty name"),
        ({"path": "a.tar::"}, "path, between `::`: an empty name"),
        ({"path": "a", "caption_fields": ["txt", " "]}, "caption_fields: an empty name"),
        ({"path": "a", "image_field": ""}, "image_field: an empty name"),
        ({"path": "a", "archive_field": ""}, "archive_field: an empty name"),
        ({"path": "a\0b"}, "NUL character"),
        ({"path": "a", "images_root": "\0"}, "NUL character"),
        ({"path": "a", "max_bad_fraction": float("nan")}, "finite number"),
        ({"path": "a", "sampling": "resampled", "weights": "nan"}, "finite number"),
        ({"path": "a", "sampling": "resampled", "weights": [float("inf")]}, "finite number"),
        ({"path": "a::b", "sampling": "resampled", "weights": "1e308::1"}, "or equal to 1000000"),
        (
            {"path": "a", "sampling": "resampled", "epoch_samples": 10**12},
            "or equal to 10000000000",
        ),
    ],
)
def test_wrong_sources__say_what(source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(source, SourceConfig, where="test")


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"crop_scale": [1.0, 0.5]}, r"crop_scale should be \(low, high\)"),
        ({"ssl_jitter": [0.4, 0.4, 0.4, 0.6]}, r"hue\) in 0..0.5"),
        ({"ssl_blur_sigma": [0.0, 1.0]}, "0 < low <= high"),
        ({"crop_scale": [float("nan"), 1.0]}, "finite number"),
        ({"crop_ratio": [1.0, float("inf")]}, "finite number"),
        ({"crop_ratio": [1e-300, 1.0]}, "crop_ratio is 1e-300 to 1, .* within 0.001 to 1000"),
        ({"crop_ratio": [1.0, 1e300]}, "within 0.001 to 1000"),
        ({"ssl_blur_sigma": [0.1, float("nan")]}, "finite number"),
        ({"std": [0.5, 0.0, 0.5]}, "std has a value that is not positive"),
        ({"mean": [0.5, float("inf"), 0.5]}, "finite number"),
    ],
)
def test_wrong_augmentation__says_what(augment: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(augment, AugmentConfig, where="test")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"held": "gpu"}, "'none' or 'device'"),
        ({"num_workers": 10**6}, "less than or equal to 1024"),
        ({"prefetch_batches": 10**9}, "less than or equal to 1024"),
    ],
)
def test_wrong_loading__says_what(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate({"source": {"path": "a.tar"}, **data}, DataConfig, where="test")
