"""Protocols by name, splits, and what a number's fingerprint covers."""

from __future__ import annotations

import pytest

from maskclip_bench.errors import ConfigError, DataError, UnknownNameError
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.protocols.base import cell_fingerprint
from tests.tasks.conftest import (
    ColourEncoder,
    MakeContext,
    run,
    squares_task,
)


@pytest.mark.parametrize("protocol", ["linear_probe", "knn"])
def test_missing_split_is_named(protocol: str, make_context: MakeContext) -> None:
    context = make_context(protocol, squares_task(splits={"test": "val"}), ColourEncoder())
    with pytest.raises(ConfigError, match="squares has no split 'train'; it declares test"):
        run(context, protocol)


def test_test_split__that_is_the_training_split(
    make_context: MakeContext, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": "train", "test": "again"}  # a link
    context = make_context("knn", squares_task(splits=splits), ColourEncoder())
    with pytest.raises(DataError, match="all images of 'again' are images of 'train'"):
        run(context, "knn")
    splits["test"] = "train"
    run(make_context("knn", squares_task(splits=splits), ColourEncoder()), "knn")
    assert "48 of 48 images of train are images of train, too" in caplog.text


def test_fingerprints__change_with_what_matters(workspace: Workspace) -> None:
    protocol = PROTOCOLS["zero_shot_classification"]
    base = protocol.task_fingerprints(squares_task(), workspace)
    assert base == protocol.task_fingerprints(squares_task(display_name="Other"), workspace)
    for change in (
        {"task_version": 2},
        {"prompt_sets": {"two": {"templates": ["a {}"]}}},
        {"prompt_sets": {"two": {"templates": ["a {} square", "{}"], "version": 2}}},
        {"class_names": {"names": ["a", "b", "c", "d", "e", "f"]}},
        {"splits": {"test": "train"}},
    ):
        changed = protocol.task_fingerprints(squares_task(**change), workspace)
        assert cell_fingerprint(changed) != cell_fingerprint(base), change
    train_only = squares_task(splits={"train": "val", "test": "val"})
    assert protocol.task_fingerprints(train_only, workspace) == base


def test_protocols__unknown_name() -> None:
    assert PROTOCOLS.get_known("knn").name == "knn"
    with pytest.raises(UnknownNameError, match=r"No protocol 'kn'. Did you mean 'knn'"):
        PROTOCOLS.get_known("kn")
