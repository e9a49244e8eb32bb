from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.data.demo import contact_sheet, sheet
from maskclip_bench.errors import DataError, StorageError


def test_contact_sheet__is_a_picture_of_all_splits(world: Path, tmp_path: Path) -> None:
    output = tmp_path / "sheets" / "demo.png"
    contact_sheet(world, output)
    with Image.open(output) as image:
        assert image.width > 1500 and image.height > 4000
        pixels = np.asarray(image)
    # Not mostly white, and something in every part.
    assert (pixels.min(axis=2) < 250).mean() > 0.3
    for part in np.array_split(pixels, 12):
        assert part.std() > 20


@pytest.mark.parametrize("missing", ["objects/val.json", "pretrain/shards", "captions"])
def test_contact_sheet__missing_file_is_named(world: Path, tmp_path: Path, missing: str) -> None:
    target = tmp_path / "demo"
    shutil.copytree(world, target)
    if (target / missing).is_dir():
        shutil.rmtree(target / missing)
    else:
        (target / missing).unlink()
    with pytest.raises(DataError, match=rf"{missing}.* is missing.*data prepare demo"):
        contact_sheet(target, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_contact_sheet__full_disk(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sheet, "_lay_out", lambda rows: Image.new("RGB", (8, 8)))
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match="No space left on the device"):
        contact_sheet(world, tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []
