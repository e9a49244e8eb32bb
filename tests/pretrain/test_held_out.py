from __future__ import annotations

import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskclip_bench.config import validate
from maskclip_bench.data.pair_config import AugmentConfig
from maskclip_bench.data.shapes import write_shape_shards
from maskclip_bench.data.tokenizer import load_tokenizer
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.pretrain.held_out import ACCURACY, LOSS, HeldOutPairs, check_held_out
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.recipe import HeldOutSection, Recipe
from maskclip_bench.pretrain.trainer import train
from maskclip_bench.training.logs import read_log

SHARDS = {"source": {"path": "held/shapes-*.tar", "captions": "first"}}


@pytest.fixture
def root(tmp_path: Path, data_root: Path) -> Path:
    """A data root with training pairs and 24 held-out ones, as shards and in Karpathy's layout."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "shapes").symlink_to(data_root / "shapes")
    write_shape_shards(root / "held", num_samples=24, num_shards=2, size=36, seed=1)
    images = root / "captions" / "images"
    images.mkdir(parents=True)
    entries = []
    for number in range(5):
        Image.new("RGB", (40, 30), (50 * number, 80, 20)).save(images / f"{number}.png")
        entries.append(
            {
                "filename": f"{number}.png",
                "split": "val",
                "sentences": [{"raw": f"a cat {number}"}, {"raw": "another"}],
            }
        )
    (root / "captions" / "file.json").write_text(json.dumps({"images": entries}))
    return root


KARPATHY = {
    "reader": {"kind": "karpathy", "root": "captions", "file": "file.json"},
    "split": "val",
}


def pairs(recipe: Recipe, root: Path, **section: Any) -> HeldOutPairs:
    return HeldOutPairs(
        validate(section, HeldOutSection, where="section"),
        augment=AugmentConfig(),
        tokenizer=load_tokenizer(recipe.tokenizer),
        image_size=32,
        global_batch_size=recipe.global_batch_size,
        data_root=root,
        device=torch.device("cpu"),
        bf16=False,
    )


def student(recipe: Recipe) -> Any:
    torch.manual_seed(0)
    tokenizer = load_tokenizer(recipe.tokenizer)
    return build_method("clip", {}, recipe.model, tokenizer).model.eval()


def test_held_out__equals_the_plain_loss(tiny: ModuleType, root: Path) -> None:
    recipe = tiny.tiny_recipe()
    held, model = pairs(recipe, root, **SHARDS, batch_size=10), student(recipe)
    assert (held.num_pairs, held.batch_size) == (20, 10)
    expected, hits = [], []
    for images, tokens in zip(held._images, held._tokens, strict=True):
        pixels = (images.float() / 255 - held._mean) / held._std
        image = F.normalize(model.encode_image(pixels), dim=-1).detach()
        text = F.normalize(model.encode_text(F.pad(tokens, (0, 24 - tokens.shape[1]))), dim=-1)
        logits = model.logit_scale.detach().exp() * image @ text.detach().T
        targets = torch.arange(10)
        for rows in (logits, logits.T):
            expected.append(F.cross_entropy(rows, targets))
            hits.append((rows.argmax(1) == targets).float().mean())
    found = held(model, 0)
    assert found[LOSS] == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)
    assert found[ACCURACY] == pytest.approx(float(torch.stack(hits).mean()))
    assert pairs(recipe, root, **SHARDS, batch_size=10)(model, 7) == found


def test_held_out__group_is_the_global_batch_or_all_pairs(tiny: ModuleType, root: Path) -> None:
    recipe = tiny.tiny_recipe()
    assert pairs(recipe, root, **SHARDS).batch_size == recipe.global_batch_size == 16
    assert pairs(recipe, root, **SHARDS, num_pairs=7).batch_size == 7
    assert pairs(recipe, root, **KARPATHY).batch_size == 5


def test_held_out__a_data_set_with_captions(tiny: ModuleType, root: Path) -> None:
    """The first caption of each image; the largest central square of its 40 x 30 pixels."""
    recipe = tiny.tiny_recipe()
    held = pairs(recipe, root, **KARPATHY)
    tokenizer = load_tokenizer(recipe.tokenizer)
    rows = {tuple(row[: int(row.argmax()) + 1].tolist()) for row in held._tokens[0]}
    assert rows == {tuple(tokenizer.encode_caption(f"a cat {number}")) for number in range(5)}
    assert held._images[0].shape == (5, 3, 32, 32)


def test_held_out__broken_pairs_are_counted(
    tiny: ModuleType, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "bad").mkdir()
    table = ["image\tcaptions", "bad/0.png\tbroken"]
    (root / "bad" / "0.png").write_bytes(b"no image")
    table += [f"captions/images/{number}.png\ttext {number}" for number in range(3)]
    (root / "pairs.tsv").write_text("\n".join(table) + "\n")
    source = {"kind": "csv", "path": "pairs.tsv", "max_bad_fraction": 1}
    with caplog.at_level(logging.WARNING):
        held = pairs(tiny.tiny_recipe(), root, source=source)
    assert held.num_pairs == 3
    assert "evaluation.held_out: 1 pairs cannot be used and are left out" in caplog.text


def test_held_out__too_few_pairs(tiny: ModuleType, root: Path) -> None:
    (root / "one.tsv").write_text("image\tcaptions\ncaptions/images/0.png\ta text\n")
    with pytest.raises(DataError, match="has 1 usable pairs, and a contrastive loss needs two"):
        pairs(tiny.tiny_recipe(), root, source={"kind": "csv", "path": "one.tsv"})


def test_held_out__reader_without_captions(tiny: ModuleType, root: Path) -> None:
    (root / "folder" / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "folder" / "val" / "cat" / "0.png")
    reader = {"kind": "image_folder", "root": "folder"}
    with pytest.raises(ConfigError, match="kind image_folder gives no captions"):
        pairs(tiny.tiny_recipe(), root, reader=reader, split="val")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "give one of source and reader"),
        ({**SHARDS, **KARPATHY}, "give one of source and reader"),
        ({**SHARDS, "split": "val"}, "reader and split need each other"),
        ({"reader": KARPATHY["reader"]}, "reader and split need each other"),
        ({**SHARDS, "num_pairs": 4, "batch_size": 8}, "batch_size 8 is larger than num_pairs"),
    ],
)
def test_held_out_section__refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(section, HeldOutSection, where="section")


def test_check_held_out__pairs_that_are_trained_on(tiny: ModuleType, root: Path) -> None:
    shared = {"source": {"path": "shapes/shapes-*1.tar"}}
    recipe = tiny.tiny_recipe(evaluation={"held_out": shared})
    method = build_method("clip", {}, recipe.model, load_tokenizer(recipe.tokenizer))
    with pytest.raises(ConfigError, match=r"share 1 files, e\.g\. shapes/shapes-"):
        check_held_out(recipe, method, data_root=root)


def test_check_held_out__method_without_pairs(tiny: ModuleType, root: Path) -> None:
    recipe = tiny.tiny_recipe(evaluation={"held_out": SHARDS})
    tokenizer = load_tokenizer(recipe.tokenizer)
    filip = build_method("filip", {"global_weight": 0}, recipe.model, tokenizer)
    for method in (build_method("mae", {}, recipe.model, tokenizer), filip):
        with pytest.raises(ConfigError, match="trains none as this recipe sets it"):
            check_held_out(recipe, method, data_root=root)


@pytest.mark.parametrize("method", ["clip", "maskclip"])
def test_train__logs_held_out_pairs_and_trains_the_same(
    tiny: ModuleType, tmp_path: Path, root: Path, method: str
) -> None:
    """Every two steps and at the end; losses and the recipe's fingerprint are those without it."""
    held_out = {**SHARDS, "every_steps": 2, "batch_size": 8}
    recipe = tiny.tiny_recipe(method, num_pairs=80, evaluation={"held_out": held_out})
    plain = tiny.tiny_recipe(method, num_pairs=80)
    assert recipe.computation_fingerprint() == plain.computation_fingerprint()
    train(recipe, output=tmp_path / "with", data_root=root)
    train(plain, output=tmp_path / "without", data_root=root)
    log = read_log(tmp_path / "with")
    measured = [line for line in log if LOSS in line]
    assert [line["step"] for line in measured] == [2, 4, 5]
    assert all(0 < line[LOSS] < 10 and 0 <= line[ACCURACY] <= 1 for line in measured)
    steps = [line["loss"] for line in log if "loss" in line]
    assert steps == [line["loss"] for line in read_log(tmp_path / "without")]
    assert recipe == Recipe.model_validate(recipe.model_dump(mode="json"))
