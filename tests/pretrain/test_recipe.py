from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from maskclip_bench.config import merge, validate
from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.recipe import Recipe, load_recipe, recipe_names, recorded_recipe


@pytest.fixture
def check(tiny: ModuleType) -> Callable[..., Recipe]:
    """Validate the tiny recipe with changes."""

    def validated(**changes: Any) -> Recipe:
        return validate(merge(tiny.tiny_values(), changes), Recipe, where="r.yaml")

    return validated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeed": 1}, r"unknown key 'seeed'. Did you mean 'seed'\?"),
        ({"optimizer": {"lrr": 1}}, r"unknown key 'optimizer.lrr'. Did you mean 'lr'\?"),
        ({"method": {"name": "clipp"}}, r"No method 'clipp'. Did you mean 'clip'\?"),
        ({"method": {"name": "clip", "mask_ratio": 0.5}}, "unknown key 'mask_ratio'"),
        ({"epochs": 2.0}, "give one of epochs and num_pairs"),
        ({"num_pairs": None}, "give one of epochs and num_pairs"),
        ({"accumulation_steps": 3}, "16 is not a multiple of accumulation_steps 3"),
        ({"num_pairs": 8}, "num_pairs 8 is less than one batch of 16"),
        ({"tokenizer": {"context_length": 77}}, "tokenizer.context_length 77 differs"),
        ({"optimizer": {"warmup_epochs": 1}}, "warmup_steps and warmup_epochs are both given"),
        ({"optimizer": {"min_lr": 1.0}}, "min_lr 1.0 is larger than lr 0.001"),
        ({"evaluation": {"tasks": ["knn/x"]}}, "tasks are given without every_epochs"),
        (
            {"method": {"name": "maskclip", "image_mean": [0.5, 0.5, 0.5]}},
            r"method.image_mean \[0.5, 0.5, 0.5\] differs from data.augment.mean \[0.485",
        ),
        (
            {"method": {"name": "maskclip", "pairs_per_step": 7}},
            "method.pairs_per_step 7 differs from global_batch_size 16; leave it out",
        ),
        ({"precision": "fp16"}, "'precision': Input should be 'fp32' or 'bf16'"),
        ({"global_batch_size": 0}, "greater than 0"),
        ({"optimizer": {"betas": [0.9, 1.5]}}, r"'optimizer.betas.1': Input should be less than 1"),
    ],
)
def test_recipe__refused(check: Callable[..., Recipe], changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(**changes)


def numeric_fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """(dotted key, a value with `NUMBER` where a number goes) of every field with a float."""
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            for key, value in numeric_fields(inner):
                yield f"{name}.{key}", value
        if value := _with_number(field.annotation):
            yield name, value


NUMBER = "NUMBER"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _with_number(annotation: Any) -> Any:
    """A value of a type with its first float replaced; None if the type has no float."""
    if annotation is float:
        return NUMBER
    parts = [_with_number(part) for part in get_args(annotation)]
    if get_origin(annotation) is tuple and any(parts):
        number = next(part for part in parts if part)
        return [number] * sum(part is not Ellipsis for part in get_args(annotation))
    return next((part for part in parts if part), None)


def _filled(value: Any, number: float) -> Any:
    return [_filled(item, number) for item in value] if isinstance(value, list) else number


def every_numeric_field() -> list[tuple[str, str, Any]]:
    """(method, key, value) of the recipe and of every method's Config."""
    fields = [("clip", key, value) for key, value in numeric_fields(Recipe)]
    for name in METHODS:
        config = METHODS[name].Config
        fields += [(name, f"method.{key}", value) for key, value in numeric_fields(config)]
    return fields


def test_recipe__every_number_must_be_finite(tiny: ModuleType) -> None:
    """One place refuses them all; a field of another kind of number would show here."""
    found = every_numeric_field()
    keys = {key for _, key, _ in found}
    assert {"optimizer.lr", "optimizer.betas", "data.augment.mean", "method.mask_ratio"} <= keys
    assert {"data.source.weights", "epochs", "evaluation.every_epochs"} <= keys
    for method, key, value in found:
        for number in (math.inf, -math.inf, math.nan):
            *parents, last = key.split(".")
            changes: dict[str, Any] = {last: _filled(value, number)}
            for parent in reversed(parents):
                changes = {parent: changes}
            values = merge(tiny.tiny_values(), {"method": {"name": method}})
            with pytest.raises(ConfigError, match=last):
                validate(merge(values, changes), Recipe, where="r.yaml")


@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan", "1e999", "inf", "nan"])
def test_load_recipe__an_override_that_is_not_finite(text: str) -> None:
    with pytest.raises(ConfigError, match=r"finite|valid number|lr"):
        load_recipe("demo/clip", [f"optimizer.lr={text}"])


def test_recipe__length(check: Callable[..., Recipe]) -> None:
    assert check(num_pairs=64000).length == "64,000"
    assert check(num_pairs=None, epochs=25).length == "25 epochs"


def test_recipe__method_fields(tiny: ModuleType) -> None:
    recipe = tiny.tiny_recipe("maskclip")
    assert recipe.method.name == "maskclip"
    assert recipe.method.fields == tiny.METHOD_FIELDS["maskclip"]
    assert recipe.model_dump(mode="json")["method"]["num_codewords"] == 16


def test_recipe__normalization_of_frozen_teachers_is_that_of_the_data(tiny: ModuleType) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    augment = {"mean": list(mean), "std": list(std)}
    recipe = tiny.tiny_recipe("maskclip", data={"augment": augment})
    assert recipe.method_fields()["image_mean"] == mean
    assert recipe.method_fields()["image_std"] == std
    assert "image_mean" not in tiny.tiny_recipe("clip").method_fields()
    assert "image_mean" not in recipe.method.fields


def test_recipe__start_is_below_the_workspace(tiny: ModuleType) -> None:
    values = tiny.tiny_values("maskclip")
    values["method"] |= {"stages": "two_stage", "start_from": "pretrain/clip/seed0/model"}
    recipe = validate(values, Recipe, where="r.yaml")
    found = recipe.method_fields(workspace=Path("/w"))["start_from"]
    assert found == Path("/w/pretrain/clip/seed0/model")
    assert recipe.method_fields()["start_from"] == "pretrain/clip/seed0/model"
    values["method"]["start_from"] = "/elsewhere"
    recipe = validate(values, Recipe, where="r.yaml")
    assert recipe.method_fields(workspace=Path("/w"))["start_from"] == Path("/elsewhere")


def test_fingerprint__only_what_decides_the_numbers(check: Callable[..., Recipe]) -> None:
    same = check().computation_fingerprint()
    for changes in (
        {"log": {"every_steps": 7}},
        {"checkpoint": {"keep": 9}},
        {"data": {"num_workers": 2}},
        {"name": "other"},
        {"parallel": "fsdp"},
        {"grad_checkpointing": True},
        {"memory": "auto"},
    ):
        assert check(**changes).computation_fingerprint() == same
    low = check(precision="bf16").computation_fingerprint()
    assert check(precision="bf16", parallel="fsdp").computation_fingerprint() != low
    for changes in ({"seed": 1}, {"optimizer": {"lr": 2e-3}}, {"data": {"augment": {"flip": 0.5}}}):
        assert check(**changes).computation_fingerprint() != same


def test_load_recipe__name_and_overrides() -> None:
    recipe = load_recipe("demo/clip", ["seed=3", "optimizer.lr=2e-3"])
    assert (recipe.name, recipe.seed, recipe.optimizer.lr) == ("demo/clip", 3, 2e-3)
    assert load_recipe("configs/pretrain/demo/clip.yaml").name == "demo/clip"
    assert "demo/maskclip" in recipe_names()
    assert "demo/_base" not in recipe_names()


def test_load_recipe__a_file_elsewhere(tiny: ModuleType, tmp_path: Path) -> None:
    values = tiny.tiny_values()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    assert load_recipe(str(tmp_path / "mine.yaml")).name == "tiny_clip"
    del values["name"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    assert load_recipe(str(tmp_path / "mine.yaml")).name == "mine"


def test_load_recipe__unknown() -> None:
    with pytest.raises(UnknownNameError, match=r"No recipe 'demo/clp'. Did you mean 'demo/clip'"):
        load_recipe("demo/clp")


def test_recorded_recipe__is_what_was_computed() -> None:
    """A recipe recorded before defaults changed is the one that now states the values of then."""
    old_fields = ("codeword_init=normal", "teacher_temp=0.04", "teacher_temp_warmup=0")
    old_teacher = ("ema_momentum=0.99", "ema_momentum_end=1.0", "mlm_average=captions")
    old = [f"method.{field}" for field in (*old_fields, *old_teacher)]
    for name, overrides in (("demo/clip", []), ("demo/clip_mae", []), ("demo/maskclip", old)):
        now = load_recipe(name, overrides)
        recorded = now.model_dump(mode="json")
        del recorded["model"]["vision"]["projection_init"]
        for field in ("codeword_init", "teacher_temp", "teacher_temp_warmup", "mlm_average"):
            recorded["method"].pop(field, None)
        recorded["method"].pop("contrastive_weight", None)
        then = recorded_recipe(recorded, where="recipe.yaml")
        assert then.computation_fingerprint() == now.computation_fingerprint()
        assert recorded_recipe(now.model_dump(mode="json"), where="recipe.yaml") == now
    other = load_recipe("maskclip_vit-b-16_yfcc15m")
    recorded = other.model_dump(mode="json")
    del recorded["model"]["vision"]["projection_init"]
    then = recorded_recipe(recorded, where="recipe.yaml")
    assert then.computation_fingerprint() != other.computation_fingerprint()


@pytest.mark.parametrize(
    ("parallel", "sharded", "expected"),
    [("ddp", None, False), ("fsdp", None, True), ("ddp", True, True), ("fsdp", False, False)],
)
def test_checkpoints_in_shards(
    tiny: ModuleType, parallel: str, sharded: bool | None, expected: bool
) -> None:
    recipe = tiny.tiny_recipe(parallel=parallel, checkpoint={"sharded": sharded})
    assert recipe.checkpoints_in_shards == expected
    assert recipe.computation_fingerprint() == tiny.tiny_recipe().computation_fingerprint()
