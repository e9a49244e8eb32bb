"""The part of a recipe that listings read is what the whole recipe says."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.pretrain.recipe import load_recipe
from maskclip_bench.pretrain.recipe_summary import recipe_names, recipe_summary


@pytest.mark.parametrize("name", recipe_names())
def test_summary__says_what_the_recipe_says(name: str) -> None:
    summary, recipe = recipe_summary(name), load_recipe(name)
    assert summary.name == recipe.name == name
    assert summary.description == recipe.description
    assert summary.world == recipe.world
    assert summary.method.name == recipe.method.name
    assert summary.model.vision.timm_model == recipe.model.vision.timm_model
    assert summary.length == recipe.length


def test_summary__unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'demo/clip'"):
        recipe_summary("demo/clipp")


def test_summary__what_it_reads_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs" / "pretrain").mkdir(parents=True)
    (tmp_path / "configs" / "pretrain" / "bad.yaml").write_text("world: moon\nunknown: 1\n")
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"(?s)'world': .*'method' is missing"):
        recipe_summary("bad")
