from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from maskclip_bench.backbones import load_backbone, weights_folder, weights_identity
from maskclip_bench.backbones.families import recipe as recipes
from maskclip_bench.runtime import Workspace

from .conftest import declare

DRAWN = {"recipe": "demo/clip", "random_init": True}


def test_drawn_weights__are_the_same_beside_other_constructions(workspace: Workspace) -> None:
    """torch has one global generator; two rows are built side by side by `run -j 2`."""
    alone = load_backbone(declare(source=DRAWN), workspace=workspace).weights_fingerprint
    stop = threading.Event()

    def others() -> None:
        while not stop.is_set():
            load_backbone(
                declare(source={"timm": "test_vit.r160_in1k", "random_init": True}),
                workspace=workspace,
            )

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(others)
        found = {
            load_backbone(declare(source=DRAWN), workspace=workspace).weights_fingerprint
            for _ in range(3)
        }
        stop.set()
        beside.result()
    assert found == {alone}


def test_drawn_weights__two_at_once(workspace: Workspace) -> None:
    row = declare(source=DRAWN)

    def fingerprint(seed: int) -> str:
        return load_backbone(row, workspace=workspace, seed=seed).weights_fingerprint

    expected = [fingerprint(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fingerprint, (0, 1))) == expected


def test_drawn_weights__follow_the_recipe(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = declare(source=DRAWN)
    before = weights_identity(row, workspace)
    original = recipes._read_recipe

    def changed(name: str) -> object:
        model, tokenizer, augment = original(name)
        return model.model_copy(update={"proj_dim": 7}), tokenizer, augment

    monkeypatch.setattr(recipes, "_read_recipe", changed)
    assert weights_identity(row, workspace) != before


def test_weights_folder(workspace: Workspace) -> None:
    row = declare(source={"recipe": "demo/clip", "weights": "teacher"})
    assert weights_folder(row, workspace, 2) == workspace.pretraining("demo/clip", 2) / "teacher"
    assert weights_folder(declare(source=DRAWN), workspace) is None


def test_global_generator__is_left_as_it_was(workspace: Workspace) -> None:
    state = torch.random.get_rng_state()
    load_backbone(declare(source=DRAWN), workspace=workspace)
    assert torch.equal(state, torch.random.get_rng_state())
