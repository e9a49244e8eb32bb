from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import open_clip
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from maskclip_bench.config import merge, validate
from maskclip_bench.data.tokenizer import load_tokenizer
from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.pretrain.export import (
    export_checkpoint,
    finished_fingerprint,
    model_card,
    model_of,
)
from maskclip_bench.pretrain.recipe import MethodSection, Recipe
from maskclip_bench.pretrain.trainer import train
from maskclip_bench.training.checkpoint import CheckpointStore

CAPTIONS = ["a red circle", "two blue squares and a green triangle on sand"]


@pytest.fixture(scope="module")
def run(tiny: ModuleType, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of MaskCLIP."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny.tiny_recipe("maskclip", num_pairs=48), output=folder, data_root=data_root)
    return folder


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(run: Path, tiny: ModuleType, weights: str = "student") -> open_clip.CustomTextCLIP:
    """What the checkpoint holds, without the export."""
    checkpoint = CheckpointStore(run / "checkpoints", keep=2).latest()
    assert checkpoint is not None
    recipe = tiny.tiny_recipe("maskclip", num_pairs=48)
    return model_of(checkpoint.method, recipe, weights=weights, where="checkpoint")  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["student", "teacher"])
@pytest.mark.parametrize("target", ["open_clip", "hf"])
def test_export__open_clip_loads_it(
    run: Path, tiny: ModuleType, tmp_path: Path, images: torch.Tensor, target: str, weights: str
) -> None:
    folder = export_checkpoint(run, tmp_path / "out", target=target, weights=weights)  # type: ignore[arg-type]
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    merges = {"bpe_path": str(folder / "demo_merges.txt.gz")} if target == "hf" else {}
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}", **merges)(CAPTIONS)
    assert torch.equal(tokens, load_tokenizer(tiny.tiny_recipe().tokenizer)(CAPTIONS))
    expected = trained(run, tiny, weights)
    with torch.no_grad():
        for name, value in (("encode_image", images), ("encode_text", tokens)):
            torch.testing.assert_close(
                getattr(model, name)(value), getattr(expected, name)(value), atol=1e-5, rtol=0
            )
    size = preprocess.transforms[0].size
    assert (size if isinstance(size, int) else size[0]) == 32
    assert tuple(preprocess.transforms[-1].mean) == tiny.tiny_recipe().data.augment.mean


def test_run__model_and_teacher_are_such_folders(
    run: Path, tiny: ModuleType, images: torch.Tensor
) -> None:
    for folder, weights in (("model", "student"), ("teacher", "teacher")):
        model = open_clip.create_model(f"local-dir:{run / folder}").eval()
        with torch.no_grad():
            torch.testing.assert_close(
                model.encode_image(images),
                trained(run, tiny, weights).encode_image(images),
                atol=1e-5,
                rtol=0,
            )
        origin = json.loads((run / folder / "provenance.json").read_text())
        assert (origin["weights"], origin["step"], origin["recipe"]) == (
            weights,
            3,
            "tiny_maskclip",
        )
        assert yaml.safe_load((run / folder / "recipe.yaml").read_text())["seed"] == 0
    assert finished_fingerprint(run) is None


def test_export__teacher_of_a_full_ema(tiny: ModuleType, data_root: Path, tmp_path: Path) -> None:
    """The run's teacher/ is the checkpoint's; its text is not the student's."""
    values = merge(tiny.tiny_values("maskclip", num_pairs=48), {"method": {"full_ema": True}})
    recipe = validate(values, Recipe, where="test")
    train(recipe, output=tmp_path / "run", data_root=data_root)
    checkpoint = CheckpointStore(tmp_path / "run" / "checkpoints", keep=2).latest()
    assert checkpoint is not None
    expected = model_of(checkpoint.method, recipe, weights="teacher", where="checkpoint")
    found = load_file(tmp_path / "run" / "teacher" / "open_clip_model.safetensors")
    student = load_file(tmp_path / "run" / "model" / "open_clip_model.safetensors")
    for name, value in expected.state_dict().items():
        assert torch.equal(found[name], value), name
    for name in ("text.text_projection", "visual.head.proj.weight", "logit_scale"):
        assert not torch.equal(found[name], student[name]), name


@pytest.mark.parametrize("target", ["timm", "hf"])
def test_export__timm_loads_the_trunk(
    run: Path, tiny: ModuleType, tmp_path: Path, images: torch.Tensor, target: str
) -> None:
    folder = export_checkpoint(run, tmp_path / "out", target=target)  # type: ignore[arg-type]
    whole = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    by_file = timm.create_model(
        tiny.TINY_VIT, num_classes=0, checkpoint_path=str(folder / "model.safetensors")
    ).eval()
    trunk = trained(run, tiny).visual.trunk
    config = timm.data.resolve_model_data_config(whole)
    assert tuple(config["input_size"]) == (3, 32, 32)
    assert tuple(config["mean"]) == tiny.tiny_recipe().data.augment.mean
    with torch.no_grad():
        expected = trunk(images)
        for model in (whole, by_file):
            torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)


def test_export__timm_pools_as_the_model_does(
    tiny: ModuleType, data_root: Path, tmp_path: Path, images: torch.Tensor
) -> None:
    values = tiny.tiny_recipe("clip", num_pairs=16).model_dump(mode="json")
    recipe = validate(merge(values, {"model": {"vision": {"pool": "avg"}}}), Recipe, where="test")
    train(recipe, output=tmp_path / "run", data_root=data_root)
    folder = export_checkpoint(tmp_path / "run", tmp_path / "out", target="timm")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    trunk = open_clip.create_model(f"local-dir:{tmp_path / 'run' / 'model'}").eval().visual.trunk
    assert trunk.global_pool == "avg"
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), trunk(images), atol=1e-5, rtol=0)


def test_export__hf_folder_is_whole(run: Path, tmp_path: Path) -> None:
    folder = export_checkpoint(run, tmp_path / "out", target="hf")
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "SHA256SUMS",
        "config.json",
        "demo_merges.txt.gz",
        "model.safetensors",
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "provenance.json",
        "recipe.yaml",
    }
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "open_clip"
    assert "| method | MaskCLIP |" in card
    assert 'bpe_path="FOLDER/demo_merges.txt.gz"' in card
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] == {"bpe_path": "demo_merges.txt.gz"}


def test_export__a_file(run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints" / "step_00000002.pt"
    folder = export_checkpoint(path, tmp_path / "out")
    assert json.loads((folder / "provenance.json").read_text())["step"] == 2


def test_export__replaces_a_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    assert not (export_checkpoint(run, tmp_path / "out") / "old").exists()


def test_export__no_teacher(tiny: ModuleType, tmp_path: Path, data_root: Path) -> None:
    train(tiny.tiny_recipe("clip", num_pairs=16), output=tmp_path / "run", data_root=data_root)
    with pytest.raises(CheckpointError, match="has no teacher: method 'clip' has none"):
        export_checkpoint(tmp_path / "run", tmp_path / "out", weights="teacher")


@pytest.mark.parametrize("start", ["two_stage", "frozen_teacher"])
def test_export__what_the_run_started_from_is_gone(
    run: Path, tiny: ModuleType, tmp_path: Path, data_root: Path, start: str
) -> None:
    folder = shutil.copytree(run / "model", tmp_path / "start")
    fields = {
        "two_stage": {"stages": "two_stage", "start_from": str(folder)},
        "frozen_teacher": {"teacher": "open_clip", "teacher_model": f"local-dir:{folder}"},
    }
    values = merge(tiny.tiny_values("maskclip", num_pairs=16), {"method": fields[start]})
    recipe = validate(values, Recipe, where="recipe")
    train(recipe, output=tmp_path / "run", data_root=data_root)
    shutil.rmtree(folder)
    for weights in ("student", "teacher") if start == "two_stage" else ("student",):
        out = export_checkpoint(tmp_path / "run", tmp_path / weights, weights=weights)  # type: ignore[arg-type]
        written = tmp_path / "run" / ("model" if weights == "student" else "teacher")
        expected = load_file(written / "open_clip_model.safetensors")
        found = load_file(out / "open_clip_model.safetensors")
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_export__nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No checkpoint in .*Give a file checkpoints/step_"):
        export_checkpoint(tmp_path, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"No checkpoint .*absent.pt"):
        export_checkpoint(tmp_path / "absent.pt", tmp_path / "out")


def test_export__unknown_target_and_weights(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"Cannot export to 'onnx'. Choose one of: open_clip, timm"
    ):
        export_checkpoint(run, tmp_path / "out", target="onnx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"No weights 'ema'. Choose one of: student, teacher"):
        export_checkpoint(run, tmp_path / "out", weights="ema")  # type: ignore[arg-type]


def test_export__broken_checkpoint(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="None of the checkpoints"):
        export_checkpoint(tmp_path, tmp_path / "out")


def test_model_card__reads_as_sentences_and_tells_image_only_methods_apart(
    tiny: ModuleType,
) -> None:
    recipe = tiny.tiny_recipe("clip").model_copy(
        update={"name": "mine", "description": "CLIP on\n  birds."}
    )
    card = model_card(recipe, "student", {"step": 3})
    assert "Its recipe says: CLIP on birds.\n" in card
    assert ".." not in card.replace("...", "")
    assert "pipeline_tag: zero-shot-image-classification" in card
    assert "image tower alone" not in card
    image_only = recipe.model_copy(
        update={"description": "", "method": MethodSection.model_validate({"name": "mae"})}
    )
    card = model_card(image_only, "student", {})
    assert "pipeline_tag: image-feature-extraction" in card
    assert "use the trunk" in card
    assert "Its recipe says" not in card
