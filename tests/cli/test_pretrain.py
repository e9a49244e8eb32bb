from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from maskclip_bench.cli import pretrain as cli
from maskclip_bench.cli.app import run
from maskclip_bench.data.shapes import draw_shapes, write_shape_shards
from maskclip_bench.progress import Snapshot
from maskclip_bench.training.logs import read_log


@pytest.fixture
def command(
    tiny: ModuleType, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Run the command line in this process -> its exit code."""
    monkeypatch.setenv("MASKCLIP_BENCH_DATA", str(data_root))
    monkeypatch.setattr(cli, "_prepare_demo", lambda place, quiet: None)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny.tiny_values("maskclip")))
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> int:
        with pytest.raises(SystemExit) as exit_:
            run([str(argument) for argument in arguments])
        signal.signal(signal.SIGTERM, before)
        return int(exit_.value.code or 0)

    return call


def test_pretrain_then_export(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--device", "cpu", "--workspace", tmp_path / "w")
    assert command("pretrain", tmp_path / "tiny.yaml", "num_pairs=32", "seed=4", *options) == 0
    folder = tmp_path / "w" / "pretrain" / "tiny_maskclip" / "seed4"
    captured = capsys.readouterr()
    assert f"The model is in {folder / 'model'}" in captured.out.replace("\n", "")
    assert "step 2/2" in captured.err
    assert (
        command("export", folder, "-o", tmp_path / "out", "--to", "hf", "--weights", "teacher") == 0
    )
    assert (tmp_path / "out" / "README.md").is_file()


def test_pretrain__starts_from_a_run_of_the_workspace(command: Any, tmp_path: Path) -> None:
    options = ("num_pairs=16", "--device", "cpu", "--workspace", tmp_path / "w")
    assert command("pretrain", tmp_path / "tiny.yaml", *options) == 0
    start = ("method.stages=two_stage", "method.start_from=pretrain/tiny_maskclip/seed0/model")
    assert command("pretrain", tmp_path / "tiny.yaml", "seed=1", *start, *options) == 0
    assert (tmp_path / "w" / "pretrain" / "tiny_maskclip" / "seed1" / "model").is_dir()


def test_pretrain__quiet_says_nothing_on_the_way(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    length = ("num_pairs=16", "optimizer.warmup_steps=0")
    arguments = (*length, "--output", tmp_path / "run", "--device", "cpu", "--quiet")
    assert command("pretrain", tmp_path / "tiny.yaml", *arguments) == 0
    assert "step" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("pretrain", "demo/clp"), 2, "No recipe 'demo/clp'. Did you mean 'demo/clip'?"),
        (("pretrain", "demo/clip", "sed=1"), 2, "unknown key 'sed'. Did you mean 'seed'?"),
        (("pretrain", "demo/clip", "--launcher", "k8s"), 2, "Choose one of: here, slurm"),
        (("pretrain", "demo/clip", "--slurm", "nodes=2"), 2, "goes with --launcher slurm"),
        (("export", "nowhere.pt", "-o", "x"), 3, "No checkpoint nowhere.pt"),
        (("pretrain", "demo/clip", "--device", "abacus"), 2, "'abacus' is not a device"),
    ],
)
def test_bad_command__one_message(
    command: Any,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert command(*arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_pretrain__interrupted(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from maskclip_bench.pretrain import trainer

    told = trainer.Report.__call__

    def interrupt(report: Any, state: Snapshot, *, force: bool) -> None:
        told(report, state, force=force)
        if state.step == 1:
            signal.raise_signal(signal.SIGINT)

    arguments = (
        "pretrain",
        tmp_path / "tiny.yaml",
        "--output",
        tmp_path / "run",
        "--device",
        "cpu",
    )
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Report, "__call__", interrupt)
        assert command(*arguments) == 130
    assert "The same command goes on" in capsys.readouterr().err
    assert command(*arguments) == 0


CAPTIONS_TASK = {
    "display_name": "Shapes",
    "world": "demo",
    "reader": {"kind": "karpathy", "root": "captions", "file": "dataset.json"},
    "splits": {"test": "test"},
    "protocols": {"retrieval": {}},
    "obtain": "draw it",
}


def test_pretrain__evaluates_on_tasks(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    evaluation = "evaluation={every_epochs: 0.5, tasks: [retrieval/tiny_shapes]}"
    arguments = ("pretrain", tmp_path / "tiny.yaml", "num_pairs=48", evaluation)
    options = ("--output", tmp_path / "run", "--device", "cpu", "--quiet")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_shapes.yaml").write_text(yaml.safe_dump(CAPTIONS_TASK))
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", str(tmp_path))
    monkeypatch.setenv("MASKCLIP_BENCH_DATA", str(tmp_path / "data"))
    assert command(*arguments, *options) == 3
    assert "retrieval/tiny_shapes cannot run here" in capsys.readouterr().err

    images = tmp_path / "data" / "captions" / "images"
    images.mkdir(parents=True)
    entries = []
    for index in range(4):
        image, captions = draw_shapes(index, size=40)
        image.save(images / f"{index}.png")
        sentences = [{"raw": f"{caption} {index}"} for caption in captions]
        entries.append({"filename": f"{index}.png", "split": "test", "sentences": sentences})
    (images.parent / "dataset.json").write_text(json.dumps({"images": entries}))
    write_shape_shards(tmp_path / "data" / "shapes", num_samples=72, num_shards=2, size=36)
    assert command(*arguments, *options) == 0
    key = "retrieval/tiny_shapes/image_to_text_recall@1"
    found = {line["step"]: line[key] for line in read_log(tmp_path / "run") if key in line}
    assert found.keys() == {2, 3}  # an epoch has four steps
    assert all(0 <= value <= 1 for value in found.values())


def test_describe() -> None:
    state = Snapshot(
        step=3,
        total_steps=10,
        images_per_second=1234.4,
        eta_seconds=3725,
        data_wait_fraction=0.123,
        memory_bytes=3 * 2**30,
        terms={"loss": 2.5, "mlm_loss": 0.25},
        values={"lr": 1e-3, "logit_scale": 14.3, "ema_momentum": 0.996},
        num_nonfinite_steps=1,
    )
    assert cli.describe(state) == (
        "1:02:05 left  1,234 images/s  data wait 12 %  loss 2.500  mlm 0.250  "
        "scale 14.3  ema 0.9960  3.0 GiB  1 steps skipped"
    )


def test_describe__quantizer_and_held_out_pairs() -> None:
    values = {
        "teacher_age_steps": 6.2,
        "codeword_perplexity": 100.4,
        "codeword_row_perplexity": 12.0,
        "codeword_turn_degrees": 0.456,
        "held_out_contrastive_loss": 2.3456,
    }
    assert (
        "teacher age 6  codewords used 100  a patch 12  turn 0.46 deg  held-out 2.346"
        in cli.describe(Snapshot(step=3, total_steps=10, values=values))
    )


def test_pretrain__slurm_without_submitit_is_said_before_anything_is_drawn(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[Any] = []
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setattr(cli, "_prepare_demo", lambda place, quiet: drawn.append(place))
    assert command("pretrain", "demo/clip", "--launcher", "slurm") == 5
    assert "--launcher slurm needs submitit" in capsys.readouterr().err
    assert not drawn
