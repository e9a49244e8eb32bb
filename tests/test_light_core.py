"""Evaluation and tables need none of the extras: run with all of them refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

EXTRAS = (
    "matplotlib", "tensorboard", "pycocotools", "webdataset", "mmengine", "mmcv", "mmseg", "mmdet",
    "submitit", "transformers", "wandb",
)  # fmt: skip

EVALUATE = f"""
import sys

sys.modules.update(dict.fromkeys({EXTRAS!r}))  # None: importing one fails
import logging
logging.basicConfig(level="INFO")
import maskclip_bench as mb
from maskclip_bench.results.table_files import write_table

def colours(images):  # [B, 3, S, S] -> [B, 3]
    return images.mean((2, 3))

encoder = mb.as_backbone(colours, image_size=16, mean=(0,) * 3, std=(1,) * 3, name="mine")
results = mb.evaluate(encoder, ["knn/squares"], data={{"squares": "squares"}})
results.save("workspace")
print(results)
from maskclip_bench.cli import main
try:
    main(["table", "imagenet", "--reference", "paper", "--output", "tables"])
except SystemExit as error:
    assert not error.code
"""


def test_evaluation_and_tables__without_any_extra(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
            folder = tmp_path / "squares" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (20 + number, 20), colour).save(folder / f"{number}.png")
    result = subprocess.run(
        [sys.executable, "-c", EVALUATE], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "100.0" in result.stdout
    assert "MaskCLIP (its paper)" in result.stdout
    assert "maskclip-bench[pictures]" in result.stderr
    written = {path.name for path in (tmp_path / "tables").iterdir()}
    assert written == {"imagenet.md", "imagenet.csv"}


PLAN = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        heavy = ("torchvision", "timm", "open_clip", "sklearn", "transformers", "matplotlib")
        if name.split(".")[0] in heavy:
            raise AssertionError(f"a plan imports {name}")

sys.meta_path.insert(0, Refuse())
from maskclip_bench.cli import main
main(["plan", "--suite", "all"])
"""


def test_plan__without_the_libraries_of_models(tmp_path: Path) -> None:
    """They take seconds; a plan needs none of them as long as nothing is recorded."""
    result = subprocess.run(
        [sys.executable, "-c", PLAN], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "to measure" in result.stdout
