"""Code-execution attempts through every loading path of mmengine: the code is never run."""

from __future__ import annotations

import functools
import http.server
import io
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.infer import BaseInferencer
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel, BaseModule
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

from maskclip_bench.backbones.openmmlab import safe_loading
from maskclip_bench.errors import CheckpointError, DataError, MaskCLIPBenchError

REFUSED = r"evil\.pth holds more than tensors and numbers .*--allow-pickle .*evil\.pth"


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The folder that an attack makes; it must not be there afterwards."""
    folder = tmp_path / "code-was-run"
    yield folder
    assert not folder.exists()


@pytest.fixture
def evil(tmp_path: Path, mark: Path) -> Path:
    file = tmp_path / "evil.pth"
    torch.save({"state_dict": {"weight": torch.ones(1)}, "meta": Evil(mark)}, file)
    return file


class Pretrained(BaseModule):
    def __init__(self, checkpoint: str, **more: str) -> None:
        super().__init__(init_cfg={"type": "Pretrained", "checkpoint": checkpoint, **more})
        self.layer = nn.Linear(1, 1)


@pytest.mark.parametrize(
    "load",
    [
        lambda file: load_checkpoint(nn.Linear(1, 1), str(file)),
        lambda file: mmengine.runner.checkpoint._load_checkpoint(str(file)),
        lambda file: CheckpointLoader.load_checkpoint(str(file)),
        lambda file: mmengine.runner.checkpoint._safe_torch_load(str(file)),
        lambda file: Pretrained(str(file)).init_weights(),
        lambda file: Pretrained(str(file), prefix="backbone.").init_weights(),
        lambda file: BaseInferencer._init_model(None, {}, str(file)),
    ],
)
def test_load__local(load: Callable[[Path], Any], evil: Path) -> None:
    with pytest.raises(CheckpointError, match=REFUSED):
        load(evil)


def test_load__file_before_torch_1_6(tmp_path: Path, mark: Path) -> None:
    file = tmp_path / "evil.pth"
    torch.save({"meta": Evil(mark)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=REFUSED):
        load_checkpoint(nn.Linear(1, 1), str(file))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        file.write_bytes(pickle.dumps(Evil(mark), protocol))
        with pytest.raises(CheckpointError, match=r"evil\.pth (holds more|is damaged)"):
            load_checkpoint(nn.Linear(1, 1), str(file))
        with pytest.raises(CheckpointError, match=r"An open file (holds more|is damaged)"):
            safe_loading.load_file(io.BytesIO(file.read_bytes()))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves `tmp_path`; torch's cache is below it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *given: Any) -> None:
            """Quiet."""

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_load__schemes(evil: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # downloaded, and from the cache
        with pytest.raises(CheckpointError, match=REFUSED):
            load_checkpoint(nn.Linear(1, 1), f"{server}/evil.pth")
    checkpoint = mmengine.runner.checkpoint
    urls = {"net": f"{server}/evil.pth"}
    for name in ("get_torchvision_models", "get_external_models", "get_mmcls_models"):
        monkeypatch.setattr(checkpoint, name, lambda: urls)
    monkeypatch.setattr(checkpoint, "get_deprecated_model_names", dict)
    for scheme in ("torchvision", "open-mmlab", "openmmlab", "mmcls"):
        with pytest.raises(CheckpointError, match=REFUSED):
            load_checkpoint(nn.Linear(1, 1), f"{scheme}://net")
    monkeypatch.setattr(checkpoint, "get_external_models", lambda: {"net": str(evil)})
    with pytest.raises(CheckpointError, match=REFUSED):
        load_checkpoint(nn.Linear(1, 1), "open-mmlab://net")
    with pytest.raises(CheckpointError, match=r"No checkpoint file:///.*evil\.pth"):
        load_checkpoint(nn.Linear(1, 1), f"file://{evil}")


def test_load__good_file_from_http(tmp_path: Path, server: str) -> None:
    torch.save({"weight": torch.full((1, 1), 3.0), "bias": torch.zeros(1)}, tmp_path / "good.pth")
    model = nn.Linear(1, 1)
    load_checkpoint(model, f"{server}/good.pth")
    assert model.weight.item() == 3.0


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pickle"])
def test_load__pickled_annotations(tmp_path: Path, mark: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"metainfo": {}, "data_list": Evil(mark)}))
    with pytest.raises(DataError, match=r"A \.pkl file would run code .* Convert it to \.json"):
        mmengine.load(str(tmp_path / name))
    with pytest.raises(DataError, match=r"A \.pkl file would run code"):
        BaseDataset(ann_file=str(tmp_path / name))


def test_load__yaml_of_any_object(tmp_path: Path, mark: Path) -> None:
    text = f"a: !!python/object/apply:os.mkdir ['{mark}']\n"
    (tmp_path / "evil.yaml").write_text(text)
    with pytest.raises(
        DataError, match=r"YAML file cannot be read, with plain types only: .*mkdir"
    ):
        mmengine.load(str(tmp_path / "evil.yaml"))
    with pytest.raises(DataError, match="with plain types only"):
        Config.fromfile(str(tmp_path / "evil.yaml"))
    (tmp_path / "good.yaml").write_text("a: [1, {b: 2}]\n")
    assert mmengine.load(str(tmp_path / "good.yaml")) == {"a": [1, {"b": 2}]}


def test_guard__other_code_that_unpickles(
    tmp_path: Path, mark: Path, evil: Path, server: str
) -> None:
    array = np.array([Evil(mark)], dtype=object)
    np.save(tmp_path / "evil.npy", array, allow_pickle=True)
    before = torch.load, np.load
    with safe_loading.guard():
        with pytest.raises(CheckpointError, match=REFUSED):
            torch.load(evil, weights_only=False)
        with pytest.raises(CheckpointError, match=REFUSED):
            torch.load(evil, "cpu", pickle)
        with pytest.raises(CheckpointError, match=REFUSED):
            torch.hub.load_state_dict_from_url(f"{server}/evil.pth", weights_only=False)
        with pytest.raises(ValueError, match="allow_pickle=False"):
            np.load(tmp_path / "evil.npy", allow_pickle=True)
    assert (torch.load, np.load) == before


def test_guard__mmsegs_volumes(mark: Path) -> None:
    reader = pytest.importorskip("mmseg.utils.io")
    with safe_loading.guard("mmseg"), pytest.raises(DataError, match=r"A \.pkl file would run"):
        reader.datafrombytes(pickle.dumps(Evil(mark)), backend="pickle")


class Toy(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs: list[torch.Tensor], **more: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(torch.stack(inputs)).sum()}


class Ones(torch.utils.data.Dataset):
    def __init__(self) -> None:
        scale = np.float64(0.5)
        self.metainfo = {"classes": ("a", "b"), "palette": [[1, 2, 3]], "scale": scale}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"inputs": torch.ones(1)}


def runner(folder: Path, *, iterations: int, **more: Any) -> Runner:
    torch.manual_seed(0)
    return Runner(
        model=Toy(),
        work_dir=str(folder),
        train_dataloader={
            "dataset": Ones(),
            "batch_size": 2,
            "sampler": {"type": "InfiniteSampler"},
            "num_workers": 0,
        },
        train_cfg={"by_epoch": False, "max_iters": iterations},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.1}},
        param_scheduler={"type": "LinearLR", "end": 9, "by_epoch": False},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 2, "by_epoch": False}},
        default_scope="mmengine",
        experiment_name=f"{folder.name}-{iterations}-{len(more)}",
        randomness={"seed": 0},
        log_level="ERROR",
        **more,
    )


@pytest.mark.filterwarnings("ignore")
def test_resume__what_mmengine_itself_saves(tmp_path: Path) -> None:
    """Its log buffers, scalars of NumPy, optimizer and schedulers come back; nothing is run."""
    straight = runner(tmp_path / "straight", iterations=4)
    straight.train()
    runner(tmp_path / "stopped", iterations=2).train()
    goes_on = runner(
        tmp_path / "goes-on",
        iterations=4,
        load_from=str(tmp_path / "stopped" / "iter_2.pth"),
        resume=True,
    )
    goes_on.train()
    assert goes_on.iter == 4
    for one, other in zip(
        straight.model.state_dict().values(), goes_on.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    first, second = (run.message_hub.log_scalars["train/lr"].data[0] for run in (straight, goes_on))
    assert np.array_equal(first, second) and len(first) == 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["object", "config text", "statistics"])
def test_resume__attacks(tmp_path: Path, mark: Path, part: str) -> None:
    runner(tmp_path / "run", iterations=2).train()
    file = tmp_path / "run" / "iter_2.pth"
    content = safe_loading.load_file(file)
    if part == "object":
        content["meta"]["epoch"] = Evil(mark)
    elif part == "config text":  # `Runner.resume` runs it
        content["meta"]["config"] = f"import os\nos.mkdir({str(mark)!r})\n"
    else:
        buffer = content["message_hub"]["log_scalars"]["train/lr"]
        buffer.__dict__["statistics_methods"] = {"mean": os.mkdir}
        buffer.__dict__["_statistics_methods"] = {"mean": os.mkdir}
    content["meta"]["cfg"] = str(content["meta"]["cfg"])
    torch.save(content, file)
    again = runner(tmp_path / "run", iterations=4, load_from=str(file), resume=True)
    if part == "config text":
        again.train()
        assert again.iter == 4
    else:
        with pytest.raises(CheckpointError, match=r"iter_2\.pth holds more than tensors"):
            again.train()


def test_history__functions_of_the_file_are_dropped(tmp_path: Path) -> None:
    hub = MessageHub.get_instance("history")
    hub.update_scalar("train/loss", 0.5)
    hub.update_scalar("train/loss", np.float64(1.5))
    file = tmp_path / "log.pth"
    torch.save({"message_hub": hub.state_dict()}, file)
    buffer = safe_loading.load_file(file)["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(buffer, HistoryBuffer) and buffer.mean() == 1.0
    assert buffer.statistics("max") == 1.5


def test_config__inside_a_checkpoint_is_not_run(tmp_path: Path, mark: Path) -> None:
    """mmengine's inferencers take the config from the checkpoint where they are given none."""
    code = f"import os\nos.mkdir({str(mark)!r})\nmodel = dict(type='os.getcwd')\n"
    file = tmp_path / "trained.pth"
    for content in (
        {"meta": {"cfg": code}},
        {"meta": {"cfg": code}, "message_hub": {"runtime_info": {"cfg": code}}},
    ):
        torch.save({**content, "state_dict": {}}, file)
        with pytest.raises(
            CheckpointError, match=r"config inside a checkpoint is code.*CONFIG\.py"
        ):
            BaseInferencer._init_model(None, Config()._cfg_dict, str(file))
    assert Config.fromstring("a = 1\n", ".py").a == 1


@pytest.mark.parametrize("length", [0, 10, 500, 900])
def test_load__damaged(tmp_path: Path, length: int) -> None:
    file = tmp_path / "cut.pth"
    torch.save({"weight": torch.ones(8)}, file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(
        CheckpointError, match=r"cut\.pth (is damaged, or no file of torch\.save|hol)"
    ):
        load_checkpoint(nn.Linear(1, 1), str(file))


def test_load__absent(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No checkpoint .*absent\.pth\. Check the path"):
        load_checkpoint(nn.Linear(1, 1), str(tmp_path / "absent.pth"))
    with pytest.raises(CheckpointError, match=r"--allow-pickle .*absent\.pth: there is no such"):
        safe_loading.allow(tmp_path / "absent.pth")


@pytest.fixture
def nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_loading, "_allowed", {})
    monkeypatch.setattr(safe_loading, "_unpickled", {})


@pytest.mark.usefixtures("nothing_allowed")
def test_allow__one_file_by_its_content(tmp_path: Path) -> None:
    ran = tmp_path / "allowed-code-was-run"
    file, other = tmp_path / "own.pth", tmp_path / "evil.pth"
    torch.save({"meta": Evil(ran)}, file)
    torch.save({"meta": Evil(tmp_path / "not-allowed")}, other)
    safe_loading.allow(file)
    assert safe_loading.unpickled_files() == []
    with pytest.raises(CheckpointError, match=REFUSED):
        safe_loading.load_file(other)
    safe_loading.load_file(file)
    assert ran.is_dir() and not (tmp_path / "not-allowed").exists()
    (entry,) = safe_loading.unpickled_files()
    assert entry["file"] == str(file) and len(entry["sha256"]) == 64
    torch.save({"meta": Evil(tmp_path / "not-allowed")}, file)  # another content, the same name
    with pytest.raises(MaskCLIPBenchError, match="holds more than tensors"):
        safe_loading.load_file(file)


@pytest.mark.usefixtures("nothing_allowed")
def test_allow__annotations(tmp_path: Path) -> None:
    file = tmp_path / "own.pkl"
    file.write_bytes(pickle.dumps({"a": 1}))
    safe_loading.allow(file)
    assert mmengine.load(str(file)) == {"a": 1}
