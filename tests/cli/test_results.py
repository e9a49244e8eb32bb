"""`results ...` and `compare`, on committed records; and all of it on a machine without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maskclip_bench.results.records import RecordStore

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "results/records"
ROWS = ("clip_vit-demo_demo", "slip_vit-demo_demo")
CELL = f"{ROWS[0]}/knn/demo_objects"


def copy_records(workspace: Path, *rows: str) -> None:
    for row in rows:
        shutil.copytree(RECORDS / row, workspace / "records" / row)


@pytest.fixture
def command(in_process: Any, tmp_path: Path) -> Any:
    copy_records(tmp_path / "workspace", *ROWS)
    return in_process


def test_ls__lines_and_json(command: Any) -> None:
    result = command("results", "ls", "-t", "knn/*")
    assert result.code == 0
    assert "4 records" in result.output
    lines = json.loads(command("results", "ls", "-t", "knn/*", "--json").output)
    assert {line["backbone"] for line in lines} == set(ROWS)
    assert all(0 <= line["low"] <= line["value"] <= line["high"] <= 1 for line in lines)
    assert "No recorded row" in command("results", "ls", "-b", "nothing").errors


def test_show__one_record(command: Any) -> None:
    result = command("results", "show", CELL)
    assert result.code == 0
    for word in ("top1_accuracy (primary)", "fingerprints", "git_commit"):
        assert word in result.output
    values = json.loads(command("results", "show", CELL, "--json").output)
    assert values["cell"]["dataset"] == "demo_objects"
    for cell in ("nothing", f"{ROWS[0]}/knn/nothing"):
        wrong = command("results", "show", cell)
        assert wrong.code == 2
        assert "No record" in wrong.errors


def test_diff_and_merge__two_workspaces(command: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "workspace", tmp_path / "second"
    copy_records(second, ROWS[0])
    result = command("results", "diff", str(first), str(second))
    assert result.code == 1
    assert "only first" in result.output
    items = json.loads(command("results", "diff", str(first), str(second), "--json").output)
    assert {item["change"] for item in items} == {"only first"}
    merged = command("results", "merge", str(first), "--workspace", str(second))
    assert merged.code == 0
    assert "copied" in merged.output
    same = command("results", "diff", str(first), str(second / "records"))
    assert same.code == 0
    assert "0 differ" in same.output
    (tmp_path / "empty").mkdir()
    empty = command("results", "diff", str(first), str(tmp_path / "empty"))
    assert empty.code == 2
    assert "holds no record" in empty.errors


def test_diff__within_points_and_only_what_both_have(command: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "workspace", tmp_path / "second"
    copy_records(second, ROWS[0])
    both = command("results", "diff", str(first), str(second), "--both")
    assert both.code == 0
    assert "only first" not in both.output
    store = RecordStore(second / "records")
    record = store.load(ROWS[0], "knn", "demo_objects")
    assert record is not None
    metric = record.primary
    moved = {name: getattr(metric, name) + 0.02 for name in ("value", "low", "high")}
    metrics = {**record.metrics, record.primary_metric: metric.model_copy(update=moved)}
    store.save(record.model_copy(update={"metrics": metrics}), store.outcomes(record))
    options = ["results", "diff", str(first), str(second), "--both"]
    plain = command(*options)
    assert plain.code == 1
    assert "2.00 points" in plain.output
    assert command(*options, "--within", "1").code == 1
    agreed = command(*options, "--within", "2.5")
    assert agreed.code == 0
    assert "1 agree within 2.5 points, 0 differ" in agreed.output
    assert command(*options, "--within", "-1").code == 2


def test_merge__what_was_not_taken_is_named(command: Any, tmp_path: Path) -> None:
    copy_records(tmp_path / "second", ROWS[0])
    path = tmp_path / "second/records" / ROWS[0] / "knn__demo_objects.json"
    values = json.loads(path.read_text())
    values.pop("seal", None)
    path.write_text(json.dumps({**values, "seconds": 99.0}))
    arguments = ("results", "merge", str(tmp_path / "second"))
    result = command(*arguments)
    assert result.code == 1
    assert f"not taken, another record stands here: {CELL}" in result.output
    assert command(*arguments, "--replace").code == 0


def test_export__a_file(command: Any, tmp_path: Path) -> None:
    result = command("results", "export", "-o", str(tmp_path / "a.csv"), "-t", "knn/*")
    assert result.code == 0
    assert "4 records in" in result.output
    assert (tmp_path / "a.csv").read_text().count("\n") > 4
    assert command("results", "export", "-o", str(tmp_path / "a.doc")).code == 2


def test_compare__sentence_table_and_samples(command: Any) -> None:
    result = command("compare", *ROWS, "-t", "*/demo_objects", "--samples", "2")
    assert result.code == 0, result.errors
    assert "no clear difference" in result.output or "better than" in result.output
    assert "samples favour CLIP" in result.output
    values = json.loads(command("compare", *ROWS, "-t", "knn/*", "--json").output)
    assert [task["task"] for task in values["tasks"]] == [
        "knn/demo_objects",
        "knn/demo_objects_ood",
    ]
    samples = values["tasks"][0]["samples"]["better"]
    assert samples["number"] >= len(samples["ids"]) == 3
    assert "No recorded row" in command("compare", ROWS[0], "nothing").errors
    none = command("compare", *ROWS, "-t", "nothing/*")
    assert none.code == 3
    assert "share no task" in none.errors


def test_list_and_plan__json(command: Any) -> None:
    for kind in ("backbones", "tasks", "suites", "recipes", "tables"):
        lines = json.loads(command("list", kind, "--json").output)
        assert len(lines) > 1
        assert all(isinstance(line, dict) for line in lines)
    plan = json.loads(
        command("plan", "-b", "tiny_untrained", "-t", "*/tiny_objects", "--json").output
    )
    assert {cell["state"] for cell in plan["cells"]} <= {"to measure", "recorded", "not possible"}
    assert {cell["task"] for cell in plan["cells"]} == {
        "knn/tiny_objects",
        "zero_shot_classification/tiny_objects",
    }


def test_stats__of_two_rows(command: Any, tmp_path: Path) -> None:
    figure = tmp_path / "ranks.svg"
    result = command("results", "stats", "-t", "knn/*", "--figure", str(figure))
    assert result.code == 0, result.errors
    for said in ("mean rank", "Over 2 tasks", "critical difference", "knn/demo_objects_ood"):
        assert said in result.output
    assert figure.is_file()
    values = json.loads(command("results", "stats", "-t", "knn/*", "--json").output)
    assert [row["name"] for row in values["rows"]] == ["CLIP", "SLIP"]
    costs = tmp_path / "costs.csv"
    costs.write_text(f"backbone,images_seen\n{ROWS[0]},10\n{ROWS[1]},20\n")
    both = ("--cost-figure", str(tmp_path / "cost.png"), "--costs", str(costs))
    assert command("results", "stats", "-t", "knn/*", *both).code == 0
    assert (tmp_path / "cost.png").is_file()
    nothing = command("results", "stats", "-t", "knn/*", *both[:2])
    assert nothing.code == 3
    assert "does not know gpu_hours of clip_vit-demo_demo" in nothing.errors
    wrong = command("results", "stats", "-t", "knn/*", *both[:2], "--cost", "price")
    assert "--cost 'price' is not known" in wrong.errors
    assert "two rows" in command("results", "stats", "-b", ROWS[0]).errors


def test_stats__cost_of_the_runs_here(command: Any, tmp_path: Path) -> None:
    for recipe, steps in (("clip", 5), ("slip", 8)):
        run = tmp_path / f"workspace/pretrain/demo/{recipe}/seed0"
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text("global_batch_size: 10\n")
        (run / "log.jsonl").write_text(json.dumps({"step": steps, "loss": 1.0}) + "\n")
    path = tmp_path / "cost.svg"
    result = command("results", "stats", "-t", "knn/*", "--cost-figure", str(path))
    assert result.code == 0, result.errors
    assert "score against images seen in pretraining" in result.errors
    assert "images seen in pretraining" in path.read_text()


def test_compare__a_forest_plot(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "differences.svg"
    result = command("compare", *ROWS, "-t", "knn/*", "--figure", str(path))
    assert result.code == 0, result.errors
    text = path.read_text()
    for said in ("CLIP minus SLIP", "knn/demo_objects_ood", "95 % intervals"):
        assert said in text
    assert "neither .svg nor .png" in command("compare", *ROWS, "--figure", "a.gif").errors


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "open_clip"):
            raise ModuleNotFoundError(f"{name} is not on this machine", name=name)

sys.meta_path.insert(0, Refuse())
from maskclip_bench import cli
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("table", "demo", "--chance", "--output", "table.svg"),
        ("table", "imagenet", "--reference", "paper", "--format", "latex"),
        ("table", "-b", ROWS[0], "-b", ROWS[1], "-t", "*/demo_objects", "--json"),
        ("compare", *ROWS, "-t", "knn/*", "--figure", "differences.svg", "--json"),
        ("results", "ls", "--json"),
        ("results", "show", CELL),
        ("results", "export", "-o", "numbers.parquet"),
        ("results", "stats", "-t", "knn/*", "--json"),
    ],
    ids=" ".join,
)
def test_without_torch__from_records_alone(arguments: tuple[str, ...], tmp_path: Path) -> None:
    copy_records(tmp_path / "workspace", *ROWS)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    if "--json" in arguments:
        assert json.loads(result.stdout)
