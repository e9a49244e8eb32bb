from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from maskclip_bench.data.pairs.pair_files import count_files, expected_counts, list_files
from maskclip_bench.errors import ConfigError, DataError


def names(path: str, root: Path) -> list[tuple[str, int]]:
    return [(file.name, file.part) for file in list_files(path, data_root=root)]


def test_list_files__braces_parts_and_absolute_paths(tmp_path: Path) -> None:
    assert names("a-{08..10}.tar::{b,c}.tar", tmp_path) == [
        ("a-08.tar", 0),
        ("a-09.tar", 0),
        ("a-10.tar", 0),
        ("b.tar", 1),
        ("c.tar", 1),
    ]
    (file,) = list_files("/elsewhere/a.tar", data_root=tmp_path)
    assert file.path == Path("/elsewhere/a.tar")


def test_list_files__globs(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.txt", "odd[1].tar"):
        (tmp_path / name).touch()
    assert names("?.tar", tmp_path) == [("a.tar", 0), ("b.tar", 0)]
    assert names(f"{tmp_path}/?.tar", tmp_path) == [("a.tar", 0), ("b.tar", 0)]
    assert names("odd[1].tar", tmp_path) == [("odd[1].tar", 0)]
    with pytest.raises(DataError, match="No file matches"):
        names("*.zip", tmp_path)


def test_list_files__malformed_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:  # as Python up to 3.12 does for "**.tar"
        raise ValueError("Invalid pattern: '**' can only be an entire path component")

    monkeypatch.setattr(Path, "glob", refuse)
    with pytest.raises(ConfigError, match=r"no valid pattern '\*\*\.tar': Invalid pattern"):
        names("**.tar", tmp_path)


@pytest.mark.parametrize(
    "path", ["{0..99999999999}", "{1..9}{0..9999999999999999999999}", "{0..999999}{0..99}"]
)
def test_list_files__absurd_ranges_end_at_once(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="names more than 1,000,000 files"):
        names(path, tmp_path)


def test_list_files__unbalanced_braces(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="braces that do not match"):
        names("a-{0..3.tar", tmp_path)


def test_expected_counts__both_files_and_nonsense(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = list_files("s/{a,b,c}.tar", data_root=tmp_path)
    (tmp_path / "s").mkdir()
    assert count_files(files) == [tmp_path / "s/sizes.json", tmp_path / "s/shards.json"]
    assert expected_counts(files) == {}
    (tmp_path / "s/sizes.json").write_text(json.dumps({"a.tar": 3, "b.tar": -1, "c.tar": True}))
    assert expected_counts(files) == {tmp_path / "s/a.tar": 3}
    for content in ("[1]", '{"shards": [1]}', '{"shards": {"a.tar": "x"}}'):
        (tmp_path / "s/shards.json").write_text(content)
        assert expected_counts(files) == {tmp_path / "s/a.tar": 3}
    (tmp_path / "s/shards.json").write_text("{broken")
    with caplog.at_level(logging.WARNING):
        expected_counts(files)
    assert "are not used" in caplog.text and "is no JSON" in caplog.text
