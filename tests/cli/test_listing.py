"""Listings answer without torch, and one broken file does not hide the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maskclip_bench.cli.app import run
from maskclip_bench.cli.listing import Listing

HEAVY = ("torch", "torchvision", "open_clip", "timm", "pandas", "scipy", "sklearn", "matplotlib")

BLOCKED = f"""
import sys

sys.modules.update(dict.fromkeys({HEAVY!r}))  # None: importing one fails
from maskclip_bench.cli import main
for words in sys.argv[1:]:
    try:
        main(words.split())
    except SystemExit as error:
        assert not error.code, (words, error.code)
import maskclip_bench
print(len(maskclip_bench.list_tasks()), maskclip_bench.list_recipes())
"""

READS_ONLY_YAML = [
    "--help", "--version", "list backbones", "list recipes", "list suites", "list tables",
    "list tasks", "data list", "path configs/pretrain/demo/clip.yaml", "run --help",
    "plan --help", "pretrain --help", "table --help",
]  # fmt: skip


def test_listings__import_nothing_heavy(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED, *READS_ONLY_YAML],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    for shown in ("openai_vit-b-16", "demo/maskclip", "demo_objects", "imagenet", "Usage:"):
        assert shown in result.stdout, shown
    assert list(tmp_path.iterdir()) == []


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        run(["list", *words])
    return int(exit_.value.code or 0), capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "folder", "whole"),
    [
        ("backbones", "backbones", "openai_vit-b-16"),
        ("tasks", "tasks", "demo_objects"),
        ("suites", "configs/suites", "demo"),
        ("recipes", "configs/pretrain", "demo/clip"),
        ("tables", "configs/tables", "imagenet"),
    ],
)
def test_listing__a_broken_file_is_shown_with_its_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    folder: str,
    whole: str,
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "my_broken.yaml").write_text("world: real\nepochs: many\nrows: 1\n")
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    code, out = listed(capsys, kind)
    assert code == 0
    assert whole in out
    assert "my_broken" in out
    assert "broken, see below" in out
    after = out.split("broken:", 1)[1]
    assert str(tmp_path / folder / "my_broken.yaml") in after
    assert "\n  - " in after


def test_backbones__zoo_rows_are_looked_up_only_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MASKCLIP_BENCH_WORKSPACE", str(tmp_path))
    _, quick = listed(capsys, "backbones")
    (line,) = [each for each in quick.splitlines() if each.startswith("openai_vit-b-16 ")]
    assert line.rstrip().endswith("download")
    (line,) = [each for each in quick.splitlines() if each.startswith("random_init_vit-demo")]
    assert line.rstrip().endswith("yes")
    monkeypatch.setattr("maskclip_bench.backbones.weights_available", lambda *_: False)
    _, checked = listed(capsys, "backbones", "--check")
    (line,) = [each for each in checked.splitlines() if each.startswith("openai_vit-b-16 ")]
    assert line.rstrip().endswith("no")


def test_put_first__the_others_keep_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    listing = Listing(("name", "here"))
    listing.fill("abcd", str, lambda name: ("yes" if name in "bd" else "no",))
    listing.put_first(1, "yes")
    listing.show()
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["b", "d", "a", "c"]
