"""Two processes (gloo) through the whole trainer, against one process on the joined batch."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskclip_bench import distributed
from maskclip_bench.data.batch import Batch
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.trainer import train
from maskclip_bench.training import nonfinite
from maskclip_bench.training.checkpoint import CheckpointStore
from maskclip_bench.training.logs import read_log
from maskclip_bench.training.parallel import FSDPStrategy

EVERYTHING: dict[str, Any] = {
    "method": "maskclip",
    "precision": "bf16",
    "grad_checkpointing": True,
    "accumulation_steps": 2,
    "optimizer": {"clip_grad_norm": 1.0},
    "num_pairs": 32,
}
CASES: dict[str, dict[str, Any]] = {
    "clip": {"method": "clip"},
    "slip": {"method": "slip"},
    "maskclip": {"method": "maskclip"},
    "maskclip_resumed": {"method": "maskclip", "stop_after": 4},
    "accumulation": {"method": "clip", "accumulation_steps": 2},
    "fsdp": {"method": "clip", "parallel": "fsdp"},
    "fsdp_maskclip": {"method": "maskclip", "parallel": "fsdp", "num_pairs": 32},
    "fsdp_resumed": {"method": "clip", "parallel": "fsdp", "stop_after": 4},
    "fsdp_one_file": {"method": "maskclip", "parallel": "fsdp", "checkpoint": {"sharded": False}},
    "ddp_in_shards": {"method": "maskclip", "checkpoint": {"sharded": True}, "stop_after": 4},
    "maskclip_bf16": EVERYTHING,
    "fsdp_maskclip_bf16": {**EVERYTHING, "parallel": "fsdp"},
    "fsdp_compiled": {"method": "maskclip", "parallel": "fsdp", "compile": True, "num_pairs": 48},
    "ddp_compiled": {"method": "maskclip", "compile": True, "num_pairs": 48},
}


SLOW_REPLICAS = ["maskclip_bf16", "ddp_in_shards", "ddp_compiled"]
SHARDS = [name for name in CASES if name.startswith("fsdp")] + SLOW_REPLICAS
REPLICAS = [name for name in CASES if name not in SHARDS]


def cases(*names: str) -> list[Any]:
    """Cases as parameters; those in shards are for `make test-all`."""
    return [pytest.param(name, marks=pytest.mark.slow if name in SHARDS else ()) for name in names]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


class TwoProcesses:
    """The runs of all cases of a kind, trained by two processes when one is first asked for."""

    def __init__(self, script: str, data_root: Path, folder: Path) -> None:
        self._script, self._data_root, self._folder = script, data_root, folder
        self._done: list[str] = []

    def __call__(self, case: str) -> Path:
        """The folder of one run."""
        if case not in self._done:
            names = SHARDS if case in SHARDS else REPLICAS
            train_in_two(self._script, self._data_root, self._folder, names)
            self._done += names
        return self._folder / case


@pytest.fixture(scope="module")
def run_of(
    tiny: ModuleType, data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> TwoProcesses:
    return TwoProcesses(tiny.__file__, data_root, tmp_path_factory.mktemp("two"))


def train_in_two(script: str, data_root: Path, folder: Path, names: list[str]) -> None:
    jobs = json.dumps([{"output": str(folder / name), **CASES[name]} for name in names])
    run_ranks([script, str(data_root), jobs], world_size=2)


def run_ranks(arguments: list[str], *, world_size: int) -> None:
    """Run a script in several processes, which form a group."""
    processes = start_ranks(arguments, world_size=world_size)
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world_size


def start_ranks(arguments: list[str], *, world_size: int) -> list[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world_size),
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("case", cases("clip", "slip", "accumulation", "fsdp"))
def test_two_processes__equal_one(
    tiny: ModuleType, tmp_path: Path, data_root: Path, run_of: TwoProcesses, case: str
) -> None:
    """CLIP draws nothing; SLIP's views are coloured per rank, so only its first loss is compared.

    The order of the data does not depend on the number of processes, so the batches are the same.
    """
    settings = {key: value for key, value in CASES[case].items() if key == "method"}
    train(tiny.tiny_recipe(**settings), output=tmp_path, data_root=data_root)
    one = [line["contrastive_loss"] for line in read_log(tmp_path)]
    two = [line["contrastive_loss"] for line in read_log(run_of(case))]
    if case == "slip":  # colour is drawn per rank, so later steps differ
        one, two = one[:1], two[:1]
    assert two == pytest.approx(one, abs=1e-5 if case != "slip" else 1e-4)
    if case != "slip":
        expected = load_file(tmp_path / "model" / "open_clip_model.safetensors")
        found = load_file(run_of(case) / "model" / "open_clip_model.safetensors")
        for name, tensor in expected.items():
            if name.endswith(("qkv.bias", "in_proj_bias")):
                continue  # the keys' biases have no gradient but rounding, which AdamW blows up
            torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=0, msg=name)


@pytest.mark.parametrize("case", cases(*CASES))
def test_two_processes__folder_is_whole(run_of: TwoProcesses, case: str) -> None:
    checkpoint = CheckpointStore(run_of(case) / "checkpoints", keep=2).latest()
    assert checkpoint is not None
    assert checkpoint.world_size == 2
    in_shards = case == "ddp_in_shards" or (case.startswith("fsdp") and case != "fsdp_one_file")
    names = {path.suffix for path in (run_of(case) / "checkpoints").iterdir()}
    assert names == {".dcp" if in_shards else ".pt"}
    exported = load_file(run_of(case) / "model" / "open_clip_model.safetensors")
    for name, tensor in exported.items():
        assert tensor.isfinite().all(), name
        torch.testing.assert_close(checkpoint.method[f"model.{name}"], tensor, msg=name)
    assert (run_of(case) / "teacher").is_dir() == (CASES[case]["method"] == "maskclip")


@pytest.mark.parametrize("case", cases(*CASES))
def test_two_processes__ranks_end_with_the_same_weights(run_of: TwoProcesses, case: str) -> None:
    sums = [json.loads((run_of(case) / f"weights_{rank}.json").read_text()) for rank in (0, 1)]
    assert sums[0] == sums[1]


@pytest.mark.slow
def test_one_process_goes_on_with_the_run_of_two(
    tiny: ModuleType,
    tmp_path: Path,
    data_root: Path,
    run_of: TwoProcesses,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A checkpoint does not depend on how many processes wrote it, nor on sharding."""
    folder = tmp_path / "run"
    shutil.copytree(run_of("fsdp"), folder)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "step_00000006.dcp")
    train(tiny.tiny_recipe("clip"), output=folder, data_root=data_root)
    assert "This run was on 2 processes and goes on on 1" in caplog.text
    one, two = ([line["loss"] for line in read_log(run)] for run in (folder, run_of("fsdp")))
    assert one == pytest.approx(two, abs=1e-5)


def test_two_processes__go_on(run_of: TwoProcesses) -> None:
    """One rank was asked to stop after four steps; both did, and the run ends as `maskclip`."""
    resumed, whole = run_of("maskclip_resumed"), run_of("maskclip")
    losses, expected = ([line["loss"] for line in read_log(run)] for run in (resumed, whole))
    assert len(losses) == 6
    assert losses == pytest.approx(expected, abs=1e-6)
    for part in ("model", "teacher"):
        found, weights = (
            load_file(run / part / "open_clip_model.safetensors") for run in (resumed, whole)
        )
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_two_processes__shards_in_bf16_with_all_options(run_of: TwoProcesses) -> None:
    """bf16, accumulation, clipping and recomputed activations: as in replicas, but for rounding."""
    shards, replicas = read_log(run_of("fsdp_maskclip_bf16")), read_log(run_of("maskclip_bf16"))
    assert len(shards) == len(replicas) == 2
    for line, expected in zip(shards, replicas, strict=True):
        for key in ("loss", "contrastive_loss", "distillation_loss", "mlm_loss"):
            assert line[key] == pytest.approx(expected[key], rel=0.02), key


@pytest.mark.slow
@pytest.mark.parametrize("case", ["fsdp_compiled", "ddp_compiled"])
def test_two_processes__compiled_computes_the_same(
    tiny: ModuleType, tmp_path: Path, data_root: Path, run_of: TwoProcesses, case: str
) -> None:
    """All losses of three steps, so gradients too; nothing is compiled after the first step."""
    name = case.replace("compiled", "plain")
    settings = {key: value for key, value in CASES[case].items() if key != "compile"}
    jobs = json.dumps([{"output": str(tmp_path / name), **settings}])
    run_ranks([tiny.__file__, str(data_root), jobs], world_size=2)
    compiled, plain = read_log(run_of(case)), read_log(tmp_path / name)
    assert len(compiled) == len(plain) == 3
    for line, expected in zip(compiled, plain, strict=True):
        for key in ("loss", "contrastive_loss", "distillation_loss", "mlm_loss"):
            assert line[key] == pytest.approx(expected[key], abs=2e-5), key
    for rank in (0, 1):
        counts = json.loads((run_of(case) / f"graphs_{rank}.json").read_text())
        assert counts[0] > 0
        assert counts == [counts[0]] * 3


@pytest.mark.slow
def test_two_processes__go_on_in_shards(run_of: TwoProcesses) -> None:
    """The case `fsdp_resumed` was stopped after four steps, and ends as `fsdp` does."""
    resumed, whole = (
        [line["loss"] for line in read_log(run_of(name))] for name in ("fsdp_resumed", "fsdp")
    )
    assert resumed == pytest.approx(whole, abs=1e-6)


@pytest.mark.slow
def test_two_processes__replicas_go_on_from_shards(run_of: TwoProcesses) -> None:
    """The case `ddp_in_shards` was stopped after four steps, and ends as `maskclip` does."""
    losses, expected = (
        [line["loss"] for line in read_log(run_of(name))] for name in ("ddp_in_shards", "maskclip")
    )
    assert losses == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_shards__read_by_any_number_of_processes(tmp_path: Path) -> None:
    """Two wrote them; weights, teacher, quantizer, moments and steps are equal bit for bit."""
    script = str(Path(__file__).with_name("shards_of_ranks.py"))
    run_ranks([script, str(tmp_path), "write", "fsdp"], world_size=2)
    written = torch.load(tmp_path / "written.pt", weights_only=True)
    assert {"0.step", "0.exp_avg", "0.exp_avg_sq"} <= written["moments"].keys()
    assert any(name.startswith("teacher_trunk.") for name in written["method"])

    def equal(found: dict[str, Any]) -> None:
        for part in ("method", "moments"):
            assert found[part].keys() == written[part].keys()
            for name, value in written[part].items():
                assert torch.equal(found[part][name], value), name
        assert found["groups"] == written["groups"]

    whole = CheckpointStore(tmp_path, keep=2).latest()
    assert whole is not None
    moments = {
        f"{number}.{key}": value
        for number, values in whole.optimizer["state"].items()
        for key, value in values.items()
    }
    equal({"method": whole.method, "moments": moments, "groups": whole.optimizer["param_groups"]})
    for parallel, world_size in (("fsdp", 3), ("ddp", 2), ("ddp", 1)):
        run_ranks([script, str(tmp_path), "read", parallel], world_size=world_size)
        name = f"read_{parallel}_{world_size}.pt"
        equal(torch.load(tmp_path / name, weights_only=True))


@pytest.mark.slow
def test_shards__processes_killed_at_any_time(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    """While a checkpoint is written or not: the run goes on from one that is whole."""
    settings = {
        "method": "maskclip",
        "parallel": "fsdp",
        "num_pairs": 16 * 14,
        "checkpoint": {"every_steps": 1},
    }

    def jobs(name: str) -> list[str]:
        job = json.dumps([{"output": str(tmp_path / name), **settings}])
        return [tiny.__file__, str(data_root), job]

    run_ranks(jobs("whole"), world_size=2)
    expected = [line["loss"] for line in read_log(tmp_path / "whole")]
    kill_at = random.Random().randint(2, 9)
    processes = start_ranks(jobs("killed"), world_size=2)
    try:
        while len(read_log(tmp_path / "killed")) < kill_at and processes[0].poll() is None:
            time.sleep(0.005)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
    assert not (tmp_path / "killed" / "model").exists(), "the processes were too quick"
    run_ranks(jobs("killed"), world_size=2)
    losses = [line["loss"] for line in read_log(tmp_path / "killed")]
    assert losses == pytest.approx(expected, abs=1e-6), f"killed at step {kill_at}"
    assert list(tmp_path.rglob(".*.tmp")) == []


@pytest.fixture
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process, which passes for several."""
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def maskclip_and_batch(tiny: ModuleType) -> tuple[Any, Batch]:
    recipe = tiny.tiny_recipe("maskclip")
    method = build_method("maskclip", recipe.method.fields, recipe.model)
    tokens = torch.tensor([[1, 5, 7, recipe.model.text.vocab_size - 1]] * 2)
    images = torch.randn(2, 3, 32, 32)
    return method, Batch(images, tokens, (), torch.Generator().manual_seed(0))


def bf16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_shards__inputs_keep_their_type(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, group_of_one: None
) -> None:
    """Weights in bf16; images, which are also targets, and embeddings as they come."""
    method, batch = maskclip_and_batch(tiny)
    seen: dict[str, torch.dtype] = {}
    encode, contrast = method.encode, method.contrast

    def spy_encode(batch: Batch) -> Any:
        seen["images"] = batch.images.dtype
        seen["weights"] = method.model.visual.head.proj.weight.dtype
        embeddings, terms = encode(batch)
        return {name: value.float() for name, value in embeddings.items()}, terms

    def spy_contrast(embeddings: dict[str, torch.Tensor]) -> Any:
        seen["embeddings"] = embeddings["image_features"].dtype
        return contrast(embeddings)

    monkeypatch.setattr(method, "encode", spy_encode)
    monkeypatch.setattr(method, "contrast", spy_contrast)
    shards = FSDPStrategy(method, device=torch.device("cpu"), bf16=True)
    with bf16():
        loss = shards.forward(batch)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert seen == {
        "images": torch.float32,
        "weights": torch.bfloat16,
        "embeddings": torch.float32,
    }


def test_shards__what_is_told_when_losses_stop_being_finite(
    tiny: ModuleType, group_of_one: None
) -> None:
    method, batch = maskclip_and_batch(tiny)
    with torch.no_grad():
        method.vision_decoder.norm.weight[3] = float("nan")
    FSDPStrategy(method, device=torch.device("cpu"), bf16=True, methods=("encode",))
    text = nonfinite.describe(
        method, [batch], encode=lambda batch: method.encode(batch)[0], autocast=bf16
    )
    assert "image_features -" in text
    assert "Weights not finite: vision_decoder.norm.weight." in text
    assert text.endswith("The first output that is not finite is that of vision_decoder.norm.")
