from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from maskclip_bench import content_hash
from maskclip_bench.errors import UnknownNameError
from maskclip_bench.pretrain import same_recipe
from maskclip_bench.pretrain.recipe import load_recipe
from maskclip_bench.pretrain.same_recipe import made_by_recipe_of_today

NAME = "demo/clip"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(content_hash.CACHE_VARIABLE, str(tmp_path / "cache"))


def model_folder(folder: Path, *overrides: str) -> Path:
    """What tells of a finished run which recipe made it."""
    folder.mkdir()
    recipe = load_recipe(NAME, overrides)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    origin = {"recipe_fingerprint": recipe.computation_fingerprint()}
    (folder / "provenance.json").write_text(json.dumps(origin))
    return folder


def test_same__answered_once_then_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "model", "seed=3")
    assert made_by_recipe_of_today(folder, NAME, 3) is True
    (kept,) = (tmp_path / "cache/recipes").iterdir()
    assert kept.read_text() == "same\n"
    with monkeypatch.context() as patch:
        patch.setattr("maskclip_bench.pretrain.recipe.load_recipe", None)  # not asked again
        assert made_by_recipe_of_today(folder, NAME, 3) is True
    kept.write_text("damaged")
    assert made_by_recipe_of_today(folder, NAME, 3) is True
    assert kept.read_text() == "same\n"


def test_other__recipe_seed_or_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "model", "optimizer.lr=0.5")
    assert made_by_recipe_of_today(folder, NAME, 0) is False
    assert made_by_recipe_of_today(folder, NAME, 1) is False
    assert made_by_recipe_of_today(model_folder(tmp_path / "mine"), NAME, 0) is True
    number = len(list((tmp_path / "cache/recipes").iterdir()))
    monkeypatch.setattr(same_recipe, "_code", lambda: "another version")
    assert made_by_recipe_of_today(folder, NAME, 0) is False
    assert len(list((tmp_path / "cache/recipes").iterdir())) == number + 1


def test_unknown__a_folder_that_does_not_say(tmp_path: Path) -> None:
    assert made_by_recipe_of_today(tmp_path, NAME, 0) is None
    with pytest.raises(UnknownNameError, match="recipe"):
        made_by_recipe_of_today(tmp_path, "demo/nothing", 0)


def test_cache__that_cannot_be_written_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(content_hash.CACHE_VARIABLE, str(tmp_path / "file"))
    folder = model_folder(tmp_path / "model")
    assert made_by_recipe_of_today(folder, NAME, 0) is True


def test_another_package__is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_recipe, "_is_of_another_package", lambda recipe: True)
    assert made_by_recipe_of_today(model_folder(tmp_path / "model"), NAME, 0) is True
    assert not (tmp_path / "cache/recipes").exists()
