from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from maskclip_bench.config import validate
from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.pretrain.recipe import load_recipe
from maskclip_bench.results.tables import load_table
from maskclip_bench.study.declaration import StudyDeclaration, load_study, study_names
from maskclip_bench.tasks import load_task
from maskclip_bench.tasks.suite import load_suite
from tests.study.conftest import STUDY


def changed(change: Callable[[dict[str, Any]], object]) -> StudyDeclaration:
    values = copy.deepcopy(STUDY)
    change(values)
    return validate(values, StudyDeclaration, where="study.yaml")


@pytest.mark.parametrize("name", study_names())
def test_shipped__all_that_a_study_names_exists(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    for row in study.rows:
        assert load_recipe(study.recipe_of(row)).world == "demo"
        assert study.backbone_of(row) in load_suite(study.suite).backbones
    for stage in study.stages:
        suite = load_suite(stage.suite or study.suite)
        assert {study.backbone_of(row) for row in stage.rows} <= {*suite.backbones}
    parts = [*study.tuning.score] if study.tuning else []
    parts += [*study.curve.show, *study.curve.choose_on] if study.curve else []
    for part in parts:
        load_task(part.task)
    for table in (name for suite in study.suites for name in load_suite(suite).tables):
        assert load_table(table).data_by_seed
    for row, tries in study.tuning.tries.items() if study.tuning else ():
        for settings in tries:
            overrides = [f"{key}={value}" for key, value in settings.items()]
            load_recipe(study.recipe_of(row), overrides)


def test_shipped__nothing_is_chosen_on_what_is_reported() -> None:
    study = load_study("demo_long")
    assert study.curve is not None and study.tuning is not None
    shown = {column.task for name in load_suite(study.suite).tables
             for column in load_table(name).columns}  # fmt: skip
    assert not {part.task for part in study.curve.choose_on} & shown
    assert study.tuning.seed not in study.seeds
    # The artist held out for the tries is in no test of the study.
    assert not set(study.tuning.held_out) & {v for names in study.seeds.values() for v in names}


def test_shipped__each_seed_holds_out_another_artist_and_a_design_as_a_whole() -> None:
    held_out = [set(names) for names in load_study("demo_long").seeds.values()]
    assert sum(map(len, held_out)) == len(set.union(*held_out))
    for names in held_out:
        assert ("fluent" in names) == ("fluent-flat" in names)


def test_rows__each_once_in_the_order_of_the_stages(study: StudyDeclaration) -> None:
    assert study.rows == ["clip", "maskclip"]
    assert study.held_out(1) == ["fluent", "fluent-flat"]
    assert study.held_out(9) == ["fxemoji"]
    assert study.world.demo_sizes.pretrain == 96


def test_load__unknown_name() -> None:
    with pytest.raises(UnknownNameError, match=r"demo_lang.*Did you mean 'demo_long'"):
        load_study("demo_lang")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v["world"]["sizes"].update(pretran=3),
            r"sizes names \['pretran'\]; choose from",
        ),
        (
            lambda v: v["world"].update(pairs_of_pass=97),
            "pairs_of_pass is 97, and the world has 96",
        ),
        (lambda v: v.update(recipes="tiny"), r'recipes has no "\{row\}"'),
        (lambda v: v["stages"][0].update(seeds=[0, 7]), r"seeds \[7\], which are not among"),
        (lambda v: v["stages"][1].update(name="main"), "stages have the same name"),
        (lambda v: v["tuning"].update(seed=1), "which is one of the study's seeds"),
        (lambda v: v.update(baseline="slip"), "the baseline 'slip' is no row"),
        (lambda v: v["tuning"].update(first="slip"), "first is 'slip', which has no tries"),
        (
            lambda v: v["tuning"]["tries"]["clip"].pop(),
            r"same number of tries \(clip 1, maskclip 2\)",
        ),
        (
            lambda v: v["tuning"]["tries"]["clip"][1].update({"optimizer.eps": 1.0}),
            "tries of clip set different keys",
        ),
        (lambda v: v.update(stage=[]), "unknown key 'stage'"),
    ],
)
def test_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(change)
