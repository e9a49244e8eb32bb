"""Groups from sidecar files and patterns."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from maskclip_bench.data import groups
from maskclip_bench.data.groups import Groups, find_groups
from maskclip_bench.errors import ConfigError, DataError

NAMES = [f"n0{c}/{i}.png" for c in (1, 2, 3) for i in (0, 1)]
TABLE = {name: f"drawing-{name[2]}" for name in NAMES}


def find(root: Path, **rule: str | None) -> list[str]:
    return find_groups(Groups(**rule), NAMES, root, "val", "Birds")


def test_no_rule__each_is_its_own_group(tmp_path: Path) -> None:
    assert find(tmp_path) == NAMES


@pytest.mark.parametrize("kind", ["dict", "objects", "list", "csv", "parquet"])
def test_sidecar(kind: str, tmp_path: Path) -> None:
    path, field = tmp_path / "val.json", None
    if kind == "dict":
        path.write_text(json.dumps(TABLE))
    elif kind == "objects":
        path.write_text(json.dumps({name: {"drawing": group} for name, group in TABLE.items()}))
        field = "drawing"
    elif kind == "list":
        path.write_text(json.dumps([{"path": n, "group": g} for n, g in TABLE.items()]))
    else:
        frame = pd.DataFrame({"path": list(TABLE), "group": list(TABLE.values())})
        path = path.with_suffix(f".{kind}")
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    found = find(tmp_path, file=f"{{split}}{path.suffix}", field=field)
    assert found == ["drawing-1"] * 2 + ["drawing-2"] * 2 + ["drawing-3"] * 2


def test_sidecar__split_is_the_only_word_replaced(tmp_path: Path) -> None:
    (tmp_path / "{x}val.json").write_text(json.dumps(TABLE))
    assert find(tmp_path, file="{x}{split}.json")[0] == "drawing-1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "names no group for 6 of 6 images, e.g. n01/0.png"),
        ("3", "is no list of groups"),
        ("[" * 100_000, "is no list of groups"),
        (None, "No file of groups"),
        (json.dumps([{"path": "a", "group": g} for g in "xy"]), "gives a two groups. Keep one"),
        (json.dumps(TABLE | {NAMES[1]: None}), r"gives 1 of 6 images an empty group, e\.g\. n01/1"),
        (json.dumps(TABLE | {NAMES[1]: ["a"]}), r"\['a'\] is no text and no whole number"),
        ('{"a": "x", "a": "y"}', "the key 'a' is given twice"),
    ],
)
def test_sidecar__with_problems(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "val.json").write_text(content)
    with pytest.raises(DataError, match=message):
        find(tmp_path, file="{split}.json")


def test_pattern(tmp_path: Path) -> None:
    assert find(tmp_path, pattern="n0(?P<group>.)")[::2] == ["1", "2", "3"]
    assert find(tmp_path, pattern="n0.")[::2] == ["n01", "n02", "n03"]
    with pytest.raises(DataError, match=r"'x\(\.\)' is not found in 'n01/0.png'"):
        find(tmp_path, pattern="x(.)")
    with pytest.raises(DataError, match="gives 6 of 6 images an empty group"):
        find(tmp_path, pattern="(?P<group>x*)")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "a*a*a*a*a*a*a*a*$"])
def test_pattern__that_would_search_for_years(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "PATTERN_SECONDS", 0.5)
    with pytest.raises(ConfigError, match=r"takes more than 0\.5 s for 1 names"):
        find_groups(Groups(pattern=pattern), ["a" * 200 + "!"], tmp_path, "val", "Birds")
