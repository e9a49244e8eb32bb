"""Prompt sets, class names, and the zero-shot classifier by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip import zero_shot_metadata
from torch import Tensor

from maskclip_bench.data.readers import open_dataset
from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.tasks.declaration import PromptSet
from maskclip_bench.tasks.protocols.prompts import (
    build_zero_shot_classifier,
    class_names_content,
    class_names_of,
    prompt_set,
    prompts_content,
    templates_of,
)
from tests.tasks.conftest import COLOURS, squares_task


def test_prompt_set__of_the_data_set_before_a_shared_one() -> None:
    task = squares_task(prompt_sets={"class_name_only": {"templates": ["the {}"]}})
    assert prompt_set(task, "class_name_only").templates == ["the {}"]
    assert templates_of(prompt_set(squares_task(), "class_name_only")) == ["{}"]
    with pytest.raises(UnknownNameError, match=r"(?s)'tow'.*'two'.*tasks/squares\.yaml"):
        prompt_set(squares_task(), "tow")


def test_templates_of__lists_of_open_clip() -> None:
    task = squares_task()
    assert len(templates_of(prompt_set(task, "slip_7_prompts"))) == 7
    templates = templates_of(prompt_set(task, "clip_80_prompts"))
    assert len(templates) == 80
    assert all(template.count("{}") == 1 for template in templates)
    for wrong in ("open_clip:NO_SUCH_LIST", "OPENAI_IMAGENET_TEMPLATES"):
        with pytest.raises(ConfigError, match=f"'{wrong}' is no list of prompts or class names"):
            templates_of(PromptSet(templates=wrong))


def test_class_names_of__replaced_lowered_and_aliases(data_root: Path) -> None:
    dataset = open_dataset(squares_task().reader, "val", data_root)
    task = squares_task(class_names={"replace": {"red": "Dark_Red"}, "lower": True})
    assert class_names_of(task, dataset)[:2] == [["dark_red"], ["green"]]
    names = [["red", "crimson"], *list(COLOURS)[1:]]
    assert class_names_of(squares_task(class_names={"names": names}), dataset)[0] == names[0]


def test_class_names_of__too_few_or_equal(data_root: Path) -> None:
    dataset = open_dataset(squares_task().reader, "val", data_root)
    task = squares_task(class_names={"names": ["red", "green"]})
    with pytest.raises(ConfigError, match="declares 2 class names, and its data has 6 classes"):
        class_names_of(task, dataset)
    task = squares_task(class_names={"names": ["red", "red", *list(COLOURS)[2:]]})
    with pytest.raises(ConfigError, match="the classes 0 and 1 are both called 'red'"):
        class_names_of(task, dataset)


def test_build_zero_shot_classifier__mean_of_templates_and_aliases_normalized() -> None:
    vectors = {"a x": [3.0, 4.0], "b x": [0.0, 1.0], "a y": [1.0, 0.0], "b y": [1.0, 0.0]}
    vectors |= {"a z": [0.0, -1.0], "b z": [0.0, -1.0]}

    def encode(texts: Sequence[str]) -> Tensor:
        return F.normalize(torch.tensor([vectors[text] for text in texts]), dim=-1)

    found = build_zero_shot_classifier([["x", "y"], ["z"]], ["a {}", "b {}"], encode)
    mean = torch.tensor([0.6 + 0 + 1 + 1, 0.8 + 1 + 0 + 0]) / 4
    assert torch.allclose(found[0], F.normalize(mean, dim=0))
    assert found[1].tolist() == [0.0, -1.0]


def test_content__words_of_a_shipped_list_not_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of open_clip with other words under the same name is another identity."""
    task = squares_task(
        prompt_sets={"own": {"templates": "open_clip:SIMPLE_IMAGENET_TEMPLATES"}},
        class_names={"names": "open_clip:IMAGENET_CLASSNAMES"},
    )
    before = prompts_content(task, "slip_7_prompts"), class_names_content(task)
    assert set(before[0]) == {"own", "slip_7_prompts"}
    assert set(prompts_content(task)) == {"own"}
    assert len(before[0]["own"]["templates"]) == 7
    assert len(before[1]["names"]) == 1000
    shorter = list(zero_shot_metadata.SIMPLE_IMAGENET_TEMPLATES)[:6]
    monkeypatch.setattr(zero_shot_metadata, "SIMPLE_IMAGENET_TEMPLATES", shorter)
    monkeypatch.setattr(zero_shot_metadata, "IMAGENET_CLASSNAMES", ["tench"])
    after = prompts_content(task, "slip_7_prompts"), class_names_content(task)
    assert after[0] != before[0]
    assert after[1] != before[1]
    assert class_names_content(squares_task())["names"] == "reader"
