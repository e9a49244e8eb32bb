"""The package that docs/extending.md builds is written, installed, checked and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from maskclip_bench.data.shapes import write_shape_shards

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "extending.md"
FILE = re.compile(r"^#### `([^`]+)`\n+```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

BASE_RECIPE = """
world: real
method: {name: clip}
model:
  proj_dim: 16
  image_size: 48
  vision: {timm_model: vit_demo_patch8_48}
  text: {context_length: 24, vocab_size: 1504, width: 32, num_heads: 2, depth: 2}
tokenizer: {kind: demo, context_length: 24}
data: {source: {path: "shapes/shapes-*.tar"}, num_workers: 0}
optimizer: {lr: 1e-3, warmup_steps: 1}
global_batch_size: 8
num_pairs: 16
precision: fp32
log: {every_steps: 1, tensorboard: false}
"""

RUN = """
import json, sys
from pathlib import Path
import maskclip_bench as mb
from maskclip_bench.backbones.families import FAMILIES
from maskclip_bench.data.readers import READERS
from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.tasks.protocols import PROTOCOLS

assert METHODS.names()[-1] == "clip_koleo"
assert PROTOCOLS.names()[-1] == "nearest_mean"
assert FAMILIES.names()[-1] == "torchvision"
assert READERS.names()[-1] == "label_file"
results = mb.evaluate(
    "resnet18_untrained", ["nearest_mean/birds", "knn/birds"], data=sys.argv[1], progress=False
)
print(json.dumps({task: results.value(task) for task in results}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package, its sources and its catalogue."""
    root = tmp_path_factory.mktemp("bird_bench")
    source = root / "source"
    files = FILE.findall(PAGE.read_text(encoding="utf-8"))
    assert len(files) == 10
    for name, text in files:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(root / "site"), str(source)]
    subprocess.run(command, check=True, cwd=root)
    return root


@pytest.fixture(scope="module")
def birds(installed: Path) -> Path:
    """`birds/{train,test}.csv` and their pictures: robins are red, wrens are brown."""
    from PIL import Image

    root = installed / "data" / "birds"
    for split, count in (("train", 6), ("test", 4)):
        rows = ["path,label"]
        for index in range(count):
            for label, colour in (
                ("robin", (200, 40 + index, 30)),
                ("wren", (110, 80, 50 + index)),
            ):
                name = f"{split}/{label}{index}.png"
                (root / split).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30), colour).save(root / name)
                rows.append(f"{name},{label}")
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    return root


def run(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed / "site"), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "MASKCLIP_BENCH_CATALOGUE": str(installed / "source" / "catalogue"),
        "MASKCLIP_BENCH_WORKSPACE": str(installed / "workspace"),
        "MASKCLIP_BENCH_DATA": str(installed / "data"),
    }
    result = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=installed
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_its_own_conformance_tests_pass(installed: Path, birds: Path) -> None:
    conftest = f"""
        from pathlib import Path
        import pytest

        @pytest.fixture
        def birds():
            return Path({str(birds)!r})
        """
    (installed / "source/tests/conftest.py").write_text(textwrap.dedent(conftest))
    run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "source/tests")


def test_it_is_found_by_name_and_measured(installed: Path, birds: Path) -> None:
    result = run(installed, "-c", RUN, str(birds.parent))
    assert result.stdout.splitlines()[-1] == '{"nearest_mean/birds": 1.0, "knn/birds": 1.0}'


def test_its_recipe_trains(installed: Path) -> None:
    write_shape_shards(installed / "data/shapes", num_samples=16, num_shards=2, size=36)
    (installed / "source/catalogue/configs/pretrain/clip_base.yaml").write_text(BASE_RECIPE)
    command = ["-m", "maskclip_bench", "pretrain", "clip_koleo", "--output", "run", "--quiet"]
    run(installed, *command)
    assert "koleo_loss" in (installed / "run/log.jsonl").read_text()
