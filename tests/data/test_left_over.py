"""Counting what is not measured, and names that can be shown."""

from __future__ import annotations

from maskclip_bench.data.left_over import HIDDEN, LeftOver, examples, readable, shown


def test_left_over__counts_and_keeps_the_first_names() -> None:
    left = LeftOver()
    assert not left and left.sentence() == "" and left.to_json() == {}
    left.add_all("spare images", [f"{i}.png" for i in range(5)])
    left.add(HIDDEN, ".x")
    assert left.sentence() == "5 spare images (0.png, 1.png, 2.png, ...)"
    assert left.to_json()[HIDDEN] == {"count": 1, "first": [".x"]}


def test_merge__adds_counts() -> None:
    one, other = LeftOver(), LeftOver()
    one.add("r", "a")
    other.add_all("r", ["b", "c", "d"])
    other.add("s", "e")
    one.merge(other)
    assert one.to_json() == {
        "r": {"count": 4, "first": ["a", "b", "c"]},
        "s": {"count": 1, "first": ["e"]},
    }


def test_names__for_people() -> None:
    assert shown("a\x1b[31m\nb\u202e é") == "a\\x1b[31m\\nb\\u202e é"
    assert readable("caf\udce9") == "caf\\xe9"
    assert examples(["a", "b", "c", "d"]) == "a, b, c, ..."
