from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench import data_files
from maskclip_bench.data_files import (
    CATALOGUE_VARIABLE,
    catalogue_roots,
    config_file,
    declarations,
    find_declaration,
    shipped_root,
)
from maskclip_bench.errors import ConfigError, UnknownNameError


def find(name: str) -> Path:
    return find_declaration("configs/tables", name, singular="table", listing="list tables")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tables = tmp_path / "configs" / "tables"
    (tables / "group").mkdir(parents=True)
    (tables / "imagenet.yaml").touch()
    (tables / "group" / "mine.yaml").touch()
    (tables / "_base.yaml").touch()
    (tables / ".hidden.yaml").touch()
    monkeypatch.setenv(CATALOGUE_VARIABLE, str(tmp_path))
    return tables


def test_shipped_root__holds_the_declarations() -> None:
    for folder in ("backbones", "tasks", "configs/tables", "results/reference"):
        assert (shipped_root() / folder).is_dir()


def test_shipped_root__inside_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_data").mkdir()
    monkeypatch.setattr(data_files, "_PACKAGE", tmp_path)
    assert shipped_root() == tmp_path / "_data"


def test_declarations__sorted_names(own: Path) -> None:
    found = declarations("configs/tables")
    assert list(found) == sorted(found)
    assert found["group/mine"] == own / "group" / "mine.yaml"
    assert "demo" in found
    assert not any("_base" in name or "hidden" in name for name in found)


def test_declarations__the_users_own_win(own: Path) -> None:
    assert declarations("configs/tables")["imagenet"] == own / "imagenet.yaml"


def test_declarations__unknown_kind_is_empty() -> None:
    assert declarations("no/such/folder") == {}


def test_catalogue__folder_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CATALOGUE_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"MASKCLIP_BENCH_CATALOGUE names .*nothing, which is"):
        catalogue_roots()


def test_find__by_name_by_path_and_by_shipped_path(tmp_path: Path) -> None:
    shipped = shipped_root() / "configs" / "tables" / "demo.yaml"
    assert find("demo") == shipped
    assert find("configs/tables/demo.yaml").samefile(shipped)
    mine = tmp_path / "mine.yaml"
    mine.touch()
    assert find(str(mine)) == mine


def test_find__shipped_path_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("configs/tables/demo.yaml").samefile(shipped_root() / "configs/tables/demo.yaml")


@pytest.mark.parametrize("name", ["demmo", "configs/tables/demmo.yaml"])
def test_find__unknown(name: str) -> None:
    expected = r"No table 'demmo'. Did you mean 'demo'\? Known: .* List them with: list tables"
    with pytest.raises(UnknownNameError, match=expected):
        find(name)


def test_config_file__with_and_without_the_folder() -> None:
    expected = shipped_root() / "configs" / "tables" / "demo.yaml"
    assert config_file("configs/tables/demo.yaml") == expected
    assert config_file("tables/demo.yaml") == expected


def test_config_file__unknown() -> None:
    expected = r"No shipped file 'tables/dem.yaml'. Did you mean 'configs/tables/demo.yaml'"
    with pytest.raises(UnknownNameError, match=expected):
        config_file("tables/dem.yaml")
