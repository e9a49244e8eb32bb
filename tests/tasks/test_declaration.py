from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from maskclip_bench.config import validate
from maskclip_bench.data.readers import open_dataset
from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import (
    PROTOCOLS,
    TaskDeclaration,
    data_available,
    dataset_names,
    load_task,
    load_task_declaration,
    missing_data,
    task_names,
)
from maskclip_bench.tasks.protocols.prompts import (
    SHARED_PROMPT_SETS,
    build_zero_shot_classifier,
    class_names_of,
    prompt_set,
    templates_of,
)

from .conftest import squares_task


def test_load_task__protocol_and_data_set() -> None:
    protocol, task = load_task("knn/demo_objects")
    assert (protocol, task.name, task.world) == ("knn", "demo_objects", "demo")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("knn/demo_object", "No data set 'demo_object'. Did you mean 'demo_objects"),
        ("kn/demo_objects", "No task 'kn/demo_objects'. Did you mean 'knn/demo_objects'"),
        ("demo_objects", "No task 'demo_objects'"),
        ("retrieval/demo_objects", "No task 'retrieval/demo_objects'"),
    ],
)
def test_load_task__unknown(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        load_task(name)


@pytest.mark.parametrize("name", task_names())
def test_catalogue__settings_and_prompts_fit(name: str) -> None:
    protocol, task = load_task(name)
    settings = PROTOCOLS[protocol].settings_of(task)
    assert PROTOCOLS[protocol].preset_version(task) >= 1
    assert task.obtain
    if protocol == "zero_shot_classification":
        assert all(
            "{}" in template for template in templates_of(prompt_set(task, settings.prompts))
        )


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("food101", 1), ("cifar10", 18), ("cifar100", 18), ("sun397", 2), ("stanford_cars", 8),
        ("fgvc_aircraft", 2), ("dtd", 8), ("oxford_pets", 1), ("caltech101", 34),
        ("oxford_flowers", 1), ("mnist", 1), ("stl10", 2), ("eurosat", 3), ("patch_camelyon", 1),
        ("rendered_sst2", 1), ("imagenet", 7), ("imagenet_80_prompts", 80),
    ],
)  # fmt: skip
def test_catalogue__as_many_templates_as_slip_has(name: str, number: int) -> None:
    task = load_task_declaration(name)
    settings = PROTOCOLS["zero_shot_classification"].settings_of(task)
    templates = templates_of(prompt_set(task, settings.prompts))
    assert len(templates) == len(set(templates)) == number


PUBLISHED_METRICS = {
    **dict.fromkeys(
        ("fgvc_aircraft", "oxford_pets", "caltech101", "oxford_flowers"), "mean_per_class_accuracy"
    ),
    "kinetics700": "mean_of_top1_and_top5",
    "hateful_memes": "roc_auc",
    "voc2007": "mean_average_precision_11_point",  # of ELEVATER: SLIP has no VOC
}


def test_catalogue__published_metrics() -> None:
    for name in dataset_names():
        task = load_task_declaration(name)
        if "zero_shot_classification" in task.protocols and task.world == "real":
            settings = PROTOCOLS["zero_shot_classification"].settings_of(task)
            assert settings.metric == PUBLISHED_METRICS.get(name, "top1_accuracy"), name


def test_slips_templates__are_the_seven_that_its_repository_lists() -> None:
    assert templates_of(SHARED_PROMPT_SETS["slip_7_prompts"]) == [
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ]


def test_prompt_set__unknown() -> None:
    with pytest.raises(UnknownNameError, match=r"No prompt set 'clip_8_prompts'. Did you mean"):
        prompt_set(squares_task(), "clip_8_prompts")


@pytest.mark.parametrize(
    ("templates", "message"),
    [([], "at least one template"), (["a photo"], r"'a photo' needs \{\} once")],
)
def test_prompt_set__needs_a_place_for_the_name(templates: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        squares_task(prompt_sets={"mine": {"templates": templates}})


def test_open_clip_list__unknown() -> None:
    task = squares_task(prompt_sets={"mine": {"templates": "open_clip:OPENAI_IMAGENET_TEMPLATE"}})
    with pytest.raises(ConfigError, match="Did you mean 'OPENAI_IMAGENET_TEMPLATES'"):
        templates_of(prompt_set(task, "mine"))


def test_classifier__averages_aliases_and_templates() -> None:
    table = {
        "red": [1.0, 0.0],
        "a red": [0.6, 0.8],
        "crimson": [0.0, 1.0],
        "a crimson": [0.8, 0.6],
        "blue": [-1.0, 0.0],
        "a blue": [-1.0, 0.0],
    }
    found = build_zero_shot_classifier(
        [["red", "crimson"], ["blue"]],
        ["{}", "a {}"],
        lambda texts: torch.tensor([table[text] for text in texts]),
    )
    expected = torch.tensor([[2.4, 2.4], [-2.0, 0.0]])
    torch.testing.assert_close(found, F.normalize(expected, dim=-1))


def test_class_names__from_the_reader_tidied(data_root: Path) -> None:
    task = squares_task(class_names={"replace": {"e": "_"}, "lower": True})
    dataset = open_dataset(task.reader, "val", data_root)
    assert class_names_of(task, dataset)[:2] == [["r_d"], ["gr__n"]]


def test_class_names__too_few(data_root: Path) -> None:
    task = squares_task(class_names={"names": ["red", ["green", "lime"]]})
    dataset = open_dataset(task.reader, "val", data_root)
    with pytest.raises(ConfigError, match="declares 2 class names, and its data has 6"):
        class_names_of(task, dataset)


def test_missing_data__says_what_and_how_to_get_it(workspace: Workspace, tmp_path: Path) -> None:
    assert data_available(squares_task(), workspace)
    elsewhere = Workspace(root=tmp_path, data=tmp_path / "nothing")
    missing = missing_data(squares_task(), elsewhere)
    assert missing is not None
    assert missing.startswith("no folder ")
    assert missing.endswith("squares. draw it")
    assert not data_available(squares_task(), elsewhere)


def test_no_protocol() -> None:
    with pytest.raises(ConfigError, match="'protocols' is empty"):
        squares_task(protocols={})


def test_data_sets_of_the_hub() -> None:
    task = load_task_declaration("hf:some/birds?label=kind&image=photo&test=validation")
    assert task.name == "hf-some--birds-label-kind-image-photo-test-validation"
    assert (task.reader.root, task.hub) == ("hf/some--birds", "some/birds")
    assert task.splits == {"test": "validation"}
    assert task.reader.label == "kind"  # type: ignore[attr-defined]
    captions = load_task_declaration("hf:some/birds?captions=text")
    assert list(captions.protocols) == ["retrieval"]
    assert load_task("knn/hf:some/birds")[1].splits == {"train": "train", "test": "test"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:birds", "names no data set of the hub. Write hf:ORG/NAME"),
        ("hf:a/b?colour=red", "has no option 'colour'. Write hf:ORG/NAME"),
        ("hf:a/../b", "names no data set of the hub"),
        ("hf:a/b?train=train", "names no data set of the hub"),
    ],
)
def test_data_sets_of_the_hub__wrong(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_task_declaration(name)


def test_counts_are_of_declared_splits() -> None:
    with pytest.raises(ConfigError, match="'counts' has train, which 'splits' does not have"):
        validate(
            {
                "display_name": "x", "world": "real", "splits": {"test": "test"},
                "reader": {"kind": "image_folder", "root": "x"}, "protocols": {"knn": {}},
                "counts": {"train": 3}, "obtain": "x",
            },
            TaskDeclaration,
            where="x",
        )  # fmt: skip
