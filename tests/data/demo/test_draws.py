from __future__ import annotations

from collections import Counter

from maskclip_bench.data.demo.draws import Draws


def test_draws__follow_from_seed_and_purpose() -> None:
    def some(draws: Draws) -> list[float]:
        return [draws.uniform() for _ in range(3)]

    assert some(Draws(0, "scene", 1)) == some(Draws(0, "scene", 1))
    others = [some(Draws(1, "scene", 1)), some(Draws(0, "scene", 2)), some(Draws(0, "text", 1))]
    assert some(Draws(0, "scene", 1)) not in others


def test_draws__are_the_same_for_ever() -> None:
    """The committed demo records depend on these numbers."""
    draws = Draws(0, "test")
    assert [draws.integer(1000) for _ in range(5)] == [76, 440, 154, 741, 538]


def test_ranges() -> None:
    draws = Draws(0, "ranges")
    for _ in range(200):
        assert 2.0 <= draws.uniform(2.0, 3.0) < 3.0
        assert 0.1 <= draws.log_uniform(0.1, 10.0) <= 10.0
        assert draws.integer(4) in range(4)
        assert draws.choice("abc") in "abc"
    assert not any(draws.chance(0.0) for _ in range(50))
    assert all(draws.chance(1.0) for _ in range(50))


def test_weighted__in_proportion_and_never_at_zero() -> None:
    draws = Draws(0, "weighted")
    counts = Counter(draws.weighted((1.0, 0.0, 3.0)) for _ in range(2000))
    assert set(counts) == {0, 2} and 2.4 < counts[2] / counts[0] < 3.7
    assert draws.weighted((0.0, 0.0)) == 1  # rounding may leave nothing: the last


def test_sample__without_repeats() -> None:
    draws = Draws(0, "sample")
    values = ["a", "b", "c", "d"]
    drawn = [tuple(draws.sample(values, 3)) for _ in range(50)]
    assert all(len(set(one)) == 3 for one in drawn) and len(set(drawn)) > 10
    assert values == ["a", "b", "c", "d"]
