from __future__ import annotations

from typing import Any

import pytest

from maskclip_bench.data.pairs.pair_sources import BadSampleError, BadSamples, as_captions, shown


def test_bad_samples__counts_and_first_names() -> None:
    bad = BadSamples()
    for number in range(5):
        bad.add("a.tar", "no image", example=f"key\n{number}")
    bad.add("a.tar", "broken row", 2)
    bad.add("b.tar", "no caption", 9)
    assert bad.total() == 16
    assert bad.as_dict() == {"a.tar": {"no image": 5, "broken row": 2}, "b.tar": {"no caption": 9}}
    assert bad.reasons("a.tar") == r"5 no image (key\n0, key\n1, key\n2), 2 broken row"
    assert bad.describe(num_shards=1) == "b.tar: 9 no caption; and 1 more"


def test_bad_samples__added_together() -> None:
    one, two = BadSamples(), BadSamples()
    one.add("a", "x", 2, example="1")
    two.add("a", "x", 3, example="2")
    one.add_all(two)
    assert one.as_dict() == {"a": {"x": 5}} and one.reasons("a") == "5 x (1, 2)"
    assert two.as_dict() == {"a": {"x": 3}}


def test_as_captions() -> None:
    assert as_captions(None) == [""]
    assert as_captions("a") == ["a"]
    assert as_captions(["a", None, "é"]) == ["a", "", "é"]
    values: tuple[Any, ...] = (3, ["a", 3], {"a": 1}, [["a"]])
    for value in values:
        with pytest.raises(BadSampleError, match="not a text"):
            as_captions(value)
    for value in ("\ud800", ["a", "\udfff"]):
        with pytest.raises(BadSampleError, match="half a character"):
            as_captions(value)


def test_shown__escapes_and_shortens() -> None:
    assert shown("a\x1b[31mé\n") == r"a\x1b[31mé\n"
    assert shown("x" * 500) == "x" * 117 + "..."
