"""Every declaration of the repository loads; a misspelt key is refused with a suggestion."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from maskclip_bench import data_files
from maskclip_bench.backbones import (
    BackboneDeclaration,
    backbone_names,
    load_backbone_declaration,
)
from maskclip_bench.config import load_declaration
from maskclip_bench.errors import ConfigError
from maskclip_bench.pretrain.recipe import Recipe, load_recipe
from maskclip_bench.results.tables import TableDeclaration, load_table, table_names
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.declaration import TaskDeclaration, load_task_declaration, task_names
from maskclip_bench.tasks.suite import SuiteDeclaration, load_suite

KINDS: dict[str, tuple[type[BaseModel], Callable[[str], BaseModel]]] = {
    "backbones": (BackboneDeclaration, load_backbone_declaration),
    "tasks": (TaskDeclaration, load_task_declaration),
    "configs/pretrain": (Recipe, load_recipe),
    "configs/suites": (SuiteDeclaration, load_suite),
    "configs/tables": (TableDeclaration, load_table),
}

FILES = [(kind, name) for kind in KINDS for name in data_files.declarations(kind)]

DEMO_ROWS = [f"{method}_vit-demo_demo" for method in ("clip", "slip", "clip_mae", "maskclip")] + [
    "clip_equal_cost_vit-demo_demo"
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_declarations(kind: str) -> None:
    assert data_files.declarations(kind)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_loads(kind: str, name: str) -> None:
    model, load = KINDS[kind]
    assert isinstance(load(name), model)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_name_is_plain(kind: str, name: str) -> None:
    assert re.fullmatch(r"[a-z0-9_+./-]+", name), f"{kind}/{name}"


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_unknown_key_is_refused_with_a_suggestion(kind: str, name: str, tmp_path: Path) -> None:
    model, _ = KINDS[kind]
    source = data_files.declarations(kind)[name]
    key = min(yaml.safe_load(source.read_text(encoding="utf-8")).keys() - {"_base_"})
    path = tmp_path / "mine.yaml"
    path.write_text(f"_base_: {source}\n{key}s_: 1\n")
    expected = rf"unknown key '{key}s_'\. Did you mean '{key}"
    with pytest.raises(ConfigError, match=expected):
        load_declaration(path, model)


def test_demo_rows_are_declared() -> None:
    assert set(DEMO_ROWS) <= set(backbone_names())
    for name in DEMO_ROWS:
        assert load_backbone_declaration(name).world == "demo"


@pytest.mark.parametrize("name", table_names())
def test_tables_name_what_exists(name: str) -> None:
    """A column is a declared task, or leaves a place for a data set or protocol to come."""
    table = load_table(name)
    tasks, datasets = set(task_names()), set(data_files.declarations("tasks"))
    for column in table.columns:
        if column.task is None:
            continue
        protocol, dataset = column.task.split("/")
        if protocol in PROTOCOLS and dataset in datasets:
            assert column.task in tasks
            assert load_task_declaration(dataset).world == table.world
    known = set(backbone_names())
    for row in table.rows:
        if row.backbone in known:
            assert load_backbone_declaration(row.backbone).world == table.world
    if table.world == "demo":
        assert {row.backbone for row in table.rows} <= known


@pytest.mark.parametrize("name", table_names())
def test_dense_columns_show_the_preset_that_their_task_records(name: str) -> None:
    for column in load_table(name).columns:
        protocol, _, dataset = (column.task or "").partition("/")
        if protocol in ("segmentation", "detection"):
            settings = load_task_declaration(dataset).protocols[protocol]
            assert column.preset in (None, settings["preset"])


@pytest.mark.parametrize("protocol", ["segmentation", "detection"])
def test_presets_of_dense_tasks_are_told_apart(protocol: str) -> None:
    """A preset is one recipe: two tasks that share its name share its configs."""
    recipes: dict[str, object] = {}
    for task in task_names():
        if task.startswith(f"{protocol}/"):
            settings = load_task_declaration(task.split("/")[1]).protocols[protocol]
            recipe = {key: settings.get(key) for key in ("configs", "options")}
            assert recipes.setdefault(settings["preset"], recipe) == recipe
            for config in settings["configs"].values():
                assert data_files.config_file(config).is_file()


@pytest.mark.parametrize("name", data_files.declarations("configs/suites"))
def test_suites_name_what_exists(name: str) -> None:
    suite = load_suite(name)
    if suite.backbones != "*":
        assert set(suite.backbones) <= set(backbone_names())
    assert set(suite.tables) <= set(table_names())
    for task in suite.tasks if suite.tasks != "*" else []:
        protocol, dataset = task.split("/")
        assert dataset == "*" or dataset in data_files.declarations("tasks")
        assert protocol == "*" or protocol in PROTOCOLS


@pytest.mark.parametrize("name", task_names())
def test_protocols_of_tasks_are_registered(name: str) -> None:
    assert name.split("/")[0] in PROTOCOLS


@pytest.mark.parametrize("name", backbone_names())
def test_backbones_name_a_recipe_that_exists(name: str) -> None:
    recipe = load_backbone_declaration(name).recipe
    assert recipe is None or recipe in data_files.declarations("configs/pretrain")


def test_users_declarations_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backbones").mkdir()
    shipped = data_files.declarations("backbones")[DEMO_ROWS[0]]
    (tmp_path / "backbones" / "mine.yaml").write_text(
        f"_base_: {shipped}\ndisplay_name: My model\n"
    )
    monkeypatch.setenv(data_files.CATALOGUE_VARIABLE, str(tmp_path))
    assert "mine" in backbone_names()
    assert load_backbone_declaration("mine").display_name == "My model"
