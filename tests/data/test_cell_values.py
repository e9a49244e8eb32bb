"""Values of lists as keys and captions: read as what they mean, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskclip_bench.data.cell_values import captions_of, key_of


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("owl ", "owl "),
        (7, "7"),
        (7.0, "7"),
        (np.float32(10), "10"),
        (True, "True"),
        (b"owl", "owl"),
        (None, ""),
        (float("nan"), ""),
    ],
)
def test_key_of(value: Any, key: str) -> None:
    assert key_of(value) == key


@pytest.mark.parametrize("value", [0.5, [1], {"a": 1}, (), b"\xff"])
def test_key_of__nothing_that_names_a_class(value: Any) -> None:
    with pytest.raises(ValueError, match=r"is no text and no whole number|can't decode"):
        key_of(value)


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ("a  dog\n", ["a dog"]),
        (["a", None, " "], ["a"]),
        (np.array(["a", "b"], dtype=object), ["a", "b"]),
        (b"a", ["a"]),
        (None, []),
        (float("nan"), []),
    ],
)
def test_captions_of(value: Any, captions: list[str]) -> None:
    assert captions_of(value) == captions


@pytest.mark.parametrize("value", [3, 1.5, True, {"raw": "a"}, [["a"]]])
def test_captions_of__no_text(value: Any) -> None:
    with pytest.raises(ValueError, match="is no caption: a caption is a text"):
        captions_of(value)
