"""The message of a dense job: written, read back, refused; and the names in its folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from maskclip_bench.backbones.dense_job import DenseFolder, DenseJob, DenseSplit, read_job
from maskclip_bench.errors import DataError

SPLIT = DenseSplit(name="val", images="images/val", samples=[("a.jpg", "a.png")])


def job(folder: Path) -> DenseJob:
    return DenseJob(
        toolbox="mmseg",
        config="config.py",
        work_dir=str(folder),
        backbone={"timm": "vit"},
        train=SPLIT,
        tests=[SPLIT],
        options={"a.b": 1},
    )


def test_message__comes_back_as_it_was(tmp_path: Path) -> None:
    written = job(tmp_path)
    assert read_job(written.write()) == written


@pytest.mark.parametrize("text", ["{", "{}", '{"toolbox": "mmpose"}'])
def test_message__broken(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"(?s)job\.json is no job file: .* Run the suite again"):
        read_job(file)
    with pytest.raises(DataError, match="is no job file"):
        read_job(tmp_path / "absent.json")


def test_split__has_masks_or_annotations() -> None:
    with pytest.raises(ValidationError, match="'val' has either samples or annotations"):
        DenseSplit(name="val", images="val")
    with pytest.raises(ValidationError, match="'val' has either samples or annotations"):
        DenseSplit(name="val", images="val", samples=[], annotations="a.json")


def test_folder__names_of_splits_stay_inside(tmp_path: Path) -> None:
    folder = DenseFolder(tmp_path)
    assert folder.scores("validation_ood").name == "scores_validation_ood.json"
    for split in ("../../etc", "a/b", "..", "a\nb", "%2F"):
        for file in (folder.scores(split), folder.outcomes(split), folder.test_config(split)):
            assert file.parent == tmp_path and "\n" not in file.name
    assert folder.scores("a/b") != folder.scores("a%2Fb")


def test_import__is_light() -> None:
    code = (
        "import sys, maskclip_bench.backbones.dense_job; "
        "print([m for m in ('torch', 'mmengine', 'numpy', 'pandas') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.strip() == b"[]"
