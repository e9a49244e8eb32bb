"""The Python door: what a user types, on small images, without files of the catalogue."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import maskclip_bench as mb
from maskclip_bench.api_results import Results
from maskclip_bench.errors import ConfigError, DataError, UnknownNameError
from maskclip_bench.runtime import Workspace

COLOURS = {"robin": (200, 40, 30), "wren": (90, 80, 60)}
HOSTILE = "<script>x[/bold]"


def mean_colour(images: Tensor) -> Tensor:
    return images.mean(dim=(2, 3))


def one_vector(images: Tensor) -> Tensor:
    return torch.ones(len(images), 3)


def row(encode: Any = mean_colour, name: str = "mean", **options: Any) -> Any:
    half = (0.5, 0.5, 0.5)
    return mb.as_backbone(encode, image_size=16, mean=half, std=half, name=name, **options)


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`{train,test}/{robin,wren}/*.png`, 6 and 4 images a class."""
    root = tmp_path_factory.mktemp("data") / "birds"
    for split, count in (("train", 6), ("test", 4)):
        for label, colour in COLOURS.items():
            for index in range(count):
                path = root / split / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30), tuple(c + index for c in colour)).save(path)
    return root


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "workspace"


@pytest.fixture
def results(birds: Path, workspace: Path) -> Results:
    tasks = ["knn/birds", "linear_probe/birds"]
    return mb.evaluate(row(), tasks, data={"birds": birds}, progress=False)


def test_evaluate__values_outcomes_and_table(results: Results) -> None:
    assert list(results) == ["knn/birds", "linear_probe/birds"]
    assert len(results) == 2
    assert results.value("knn/birds") == 1.0
    assert results.value("linear_probe/birds", "mean_per_class_accuracy") == 1.0
    outcomes = results.outcomes("knn/birds")
    assert sorted(outcomes["sample_id"])[:2] == ["robin/0.png", "robin/1.png"]
    assert outcomes["top1_accuracy"].tolist() == [1.0] * 8
    text = repr(results)
    assert "knn/birds" in text
    assert "100.0" in text
    frame = results.to_pandas()
    primary = frame[frame["is_primary"]].set_index("task")
    assert primary.loc["knn/birds", "value"] == 1.0
    assert 0 < primary.loc["knn/birds", "low"] < 1.0  # eight images cannot show certainty
    assert primary.loc["knn/birds", "chance_level"] == 0.5


def test_evaluate__nothing_is_written(results: Results, workspace: Path) -> None:
    assert not (workspace / "records").exists()


def test_evaluate__twice_gives_the_same(results: Results, birds: Path) -> None:
    again = mb.evaluate(row(), "knn/birds", data={"birds": birds}, progress=False)
    assert again.outcomes("knn/birds").equals(results.outcomes("knn/birds"))


def test_evaluate__star_leaves_out_and_a_name_does_not(
    birds: Path, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"birds": birds}
    found = mb.evaluate(row(), "*/birds", data=data, progress=False)
    assert set(found) == {"knn/birds", "linear_probe/birds", "few_shot/birds"}
    assert "no text tower" in found.left_out["zero_shot_classification/birds"]
    assert "1 tasks were left out" in caplog.text
    with pytest.raises(DataError, match=r"was left out: .*no text tower"):
        found["zero_shot_classification/birds"]
    named = ["knn/birds", "zero_shot_classification/birds"]
    found = mb.evaluate(row(), named, data=data, progress=False)
    assert set(found.failures) == {"zero_shot_classification/birds"}
    assert "not measured" in repr(found)
    with pytest.raises(DataError, match="no text tower"):
        found["zero_shot_classification/birds"]


def test_evaluate__when_nothing_can_be_measured(birds: Path, workspace: Path) -> None:
    with pytest.raises(DataError, match="no text tower"):
        mb.evaluate(row(), "zero_shot_classification/birds", data={"birds": birds}, progress=False)
    with pytest.raises(DataError, match=r"None of the \d+ tasks can be measured here"):
        mb.evaluate(row(), "retrieval/*", progress=False)
    with pytest.raises(DataError, match="no folder"):
        mb.evaluate(row(), "knn/cifar10", progress=False)


def test_evaluate__a_module_is_no_backbone_yet(birds: Path, workspace: Path) -> None:
    with pytest.raises(ConfigError, match=r"A Linear is no Backbone\. Make one of it"):
        mb.evaluate(torch.nn.Linear(3, 3), "knn/birds", data={"birds": birds})  # type: ignore[arg-type]


def test_evaluate__wrong_names(birds: Path, workspace: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'knn'"):
        mb.evaluate(row(), "kn/birds", data={"birds": birds}, progress=False)
    with pytest.raises(UnknownNameError, match="brids"):
        mb.evaluate(row(), "knn/brids", data={"birds": birds}, progress=False)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'birds'.*either part may be"):
        mb.evaluate(row(), "bird", data={"birds": birds}, progress=False)
    with pytest.raises(ConfigError, match="No task was given"):
        mb.evaluate(row(), [], progress=False)


@pytest.mark.parametrize("tasks", [5, None, [3], ["knn/birds", None]])
def test_evaluate__tasks_that_are_no_names(tasks: Any, birds: Path, workspace: Path) -> None:
    with pytest.raises(ConfigError, match="names no task"):
        mb.evaluate(row(), tasks, data={"birds": birds}, progress=False)


@pytest.mark.parametrize("data", [{"birds": None}, {3: "birds"}, {"birds": ["a", "b"]}, 5, ["a"]])
def test_evaluate__data_that_is_no_folder(data: Any, workspace: Path) -> None:
    with pytest.raises(ConfigError, match=r"with its folder|the folder of all data sets"):
        mb.evaluate(row(), "knn/birds", data=data, progress=False)


def test_evaluate__with_text(birds: Path, workspace: Path) -> None:
    def read(texts: Any) -> Tensor:
        colours = [next((c for n, c in COLOURS.items() if n in t), (128,) * 3) for t in texts]
        return torch.tensor(colours, dtype=torch.float32) / 127.5 - 1

    found = mb.evaluate(
        row(encode_text=read),
        "zero_shot_classification/birds",
        data={"birds": mb.image_folder(birds, templates=["a {} in a tree."])},
        progress=False,
    )
    assert found.value("zero_shot_classification/birds") == 1.0


def test_evaluate__limit_is_recorded(birds: Path, workspace: Path) -> None:
    found = mb.evaluate(row(), "knn/birds", data={"birds": birds}, limit=4, progress=False)
    assert len(found.outcomes("knn/birds")) == 4
    assert found["knn/birds"].budget == {"limit": 4}
    assert "(limited)" in repr(found)


def test_evaluate__a_model_that_tells_nothing_apart_is_at_chance(
    birds: Path, workspace: Path
) -> None:
    data = {"birds": birds}
    found = mb.evaluate(row(one_vector, "const"), "knn/birds", data=data, progress=False)
    assert found.value("knn/birds") == pytest.approx(0.5)


def test_compare__by_sample_with_a_sentence(results: Results, birds: Path) -> None:
    other = mb.evaluate(row(one_vector, "const"), "*/birds", data={"birds": birds}, progress=False)
    compared = mb.compare(results, other, "knn/*")
    assert compared.frame["task"].tolist() == ["knn/birds"]
    assert compared.frame["difference"].tolist() == [pytest.approx(0.5)]
    assert "mean is better than const on knn/birds" in compared.sentence
    assert "another seed is not in it" in repr(compared)
    same = mb.compare(results, results)
    assert same.sentence.startswith("2 of 2 tasks show no clear difference")


def test_compare__what_cannot_be(results: Results, birds: Path, tmp_path: Path) -> None:
    limited = mb.evaluate(row(), "knn/birds", data={"birds": birds}, limit=4, progress=False)
    with pytest.raises(ConfigError, match="different limits"):
        mb.compare(results, limited)
    with pytest.raises(DataError, match="share no task that matches few_shot"):
        mb.compare(results, results, "few_shot/*")
    with pytest.raises(UnknownNameError, match="No recorded row 'nothing'"):
        mb.compare(results, "nothing")


def test_save__and_read_back(results: Results, workspace: Path) -> None:
    folder = results.save()
    assert folder == workspace / "records"
    stored = Results.of_row("mean", Workspace.open())
    assert stored.value("knn/birds") == 1.0
    assert mb.compare("mean", results).frame["difference"].tolist() == [0.0, 0.0]


def test_html__names_are_text(birds: Path, workspace: Path) -> None:
    data = mb.image_folder(birds, name="birds").model_copy(update={"name": HOSTILE})
    found = mb.evaluate(row(), f"knn/{HOSTILE}", data={HOSTILE: data}, progress=False)
    assert "<script>" not in found._repr_html_()
    assert HOSTILE in repr(found)


def test_text__names_never_act_on_the_terminal(birds: Path, workspace: Path) -> None:
    name = "red\x1b[31m"
    data = mb.image_folder(birds, name="birds").model_copy(update={"name": name})
    found = mb.evaluate(row(), f"knn/{name}", data={name: data}, progress=False)
    assert "\x1b" not in repr(found)
    assert "\x1b" not in found._repr_html_()


def test_image_folder__splits_and_classes(birds: Path, tmp_path: Path) -> None:
    task = mb.image_folder(birds, classes=["red robin", "wren"])
    assert task.splits == {"train": "train", "test": "test"}
    assert task.class_names.names == ["red robin", "wren"]
    (tmp_path / "set/val/a").mkdir(parents=True)
    only = mb.image_folder(tmp_path / "set")
    assert only.splits == {"test": "val"}
    assert list(only.protocols) == ["zero_shot_classification"]
    with pytest.raises(DataError, match="has no folder test/"):
        mb.image_folder(tmp_path)
    with pytest.raises(ConfigError, match="once, where the class name goes"):
        mb.image_folder(birds, templates=["a bird"])


def test_table__shows_itself(workspace: Path) -> None:
    view = mb.table("imagenet", reference=True)
    assert "CLIP" in repr(view)
    assert "CLIP" in view.to_markdown()
    assert "<table>" in view._repr_html_()
    assert "published" in view.to_csv()


def test_lists__are_names() -> None:
    assert "knn/demo_objects" in mb.list_tasks()
    assert "clip_vit-demo_demo" in mb.list_backbones()
    assert "demo/maskclip" in mb.list_recipes()
    assert "all" in mb.list_suites()
    assert "demo" in mb.list_tables()


def test_package__names_and_nothing_else() -> None:
    assert set(mb.__all__) <= set(dir(mb))
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        mb.evalute  # type: ignore[attr-defined]  # noqa: B018


def test_lists__need_no_torch() -> None:
    code = (
        "import sys, maskclip_bench as mb; mb.list_tasks(); mb.list_backbones(); mb.list_suites(); "
        "mb.list_recipes(); print([m for m in ('torch', 'open_clip', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_table__of_recorded_rows(results: Results, birds: Path, workspace: Path) -> None:
    results.save()
    mb.evaluate(row(one_vector, "const"), "*/birds", data={"birds": birds}, progress=False).save()
    view = mb.table(backbones=["mean", "const"], tasks="*/birds")
    assert [each.backbone for each in view.table.rows] == [None, "mean", "const"]
    assert view.table.baseline == "mean"
    assert mb.table(tasks="knn/*", baseline="const").table.baseline == "const"
    for kind, start in (("tex", "%"), ("html", "<!doctype"), ("json", "{"), ("csv", "row,")):
        path = view.save(workspace / f"birds.{kind}")
        assert path.read_text().startswith(start)
    assert view.to_latex() == (workspace / "birds.tex").read_text()
    assert view.to_html() == (workspace / "birds.html").read_text()
    assert view.to_json() == (workspace / "birds.json").read_text()
    with pytest.raises(ConfigError, match=r"'birds' has no suffix that names a format"):
        view.save(workspace / "birds")
    with pytest.raises(ConfigError, match="its own rows and columns"):
        mb.table("demo", tasks="knn/*")
    with pytest.raises(UnknownNameError, match="No recorded row 'nothing'"):
        mb.table(backbones="nothing")


def test_evaluate__texts_of_all_tasks_are_encoded_once(birds: Path, workspace: Path) -> None:
    calls: list[list[str]] = []

    def encode_text(texts: list[str]) -> Tensor:
        calls.append(list(texts))
        return torch.tensor([[len(text) / 9, text.count("e") + 0.1, 0.3] for text in texts])

    other = mb.image_folder(birds, name="other", templates=["one {}", "a photo of a {}."])
    tasks = ["zero_shot_classification/birds", "knn/birds", "zero_shot_classification/other"]
    encoder = row(encode_text=encode_text)
    calls.clear()  # those of the gate
    found = mb.evaluate(encoder, tasks, data={"birds": birds, "other": other}, progress=False)
    assert set(found) == set(tasks)
    seen = [text for call in calls for text in call]
    assert sorted(seen) == sorted(set(seen))
    assert [len(text) for text in seen] == sorted(len(text) for text in seen)
    assert len(calls) == 1
    for task in (tasks[0], tasks[2]):
        alone = mb.evaluate(
            encoder, task, data={"birds": birds, "other": other},
            progress=False,
        )  # fmt: skip
        assert alone.outcomes(task).equals(found.outcomes(task))


def test_evaluate__a_task_with_wrong_texts_spoils_no_other(birds: Path, workspace: Path) -> None:
    wrong = mb.image_folder(birds, name="wrong", classes=["one"])
    data = {"birds": birds, "wrong": wrong}
    tasks = ["zero_shot_classification/birds", "zero_shot_classification/wrong"]
    encode_text = lambda texts: torch.ones(len(texts), 3)  # noqa: E731
    found = mb.evaluate(row(encode_text=encode_text), tasks, data=data, progress=False)
    assert set(found) == {tasks[0]}
    assert "declares 1 class names" in str(found.failures[tasks[1]])
