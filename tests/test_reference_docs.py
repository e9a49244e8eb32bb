"""docs/reference is what the declarations say today."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from maskclip_bench.config import Declaration
from tests.files import module_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return module_of("scripts/build_reference.py")


@pytest.fixture(scope="module")
def pages(script: ModuleType) -> dict[str, str]:
    found: dict[str, str] = script.build()
    return found


def test_the_pages_are_up_to_date(
    script: ModuleType, pages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "build", lambda: pages)
    assert script.differing(script.FOLDER) == [], "run: make reference"


def test_check__names_what_differs(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "FOLDER", tmp_path / "reference")
    monkeypatch.setattr(script, "build", lambda: {"a.md": "a", "b.md": "b"})
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    (tmp_path / "reference" / "a.md").write_text("other")
    (tmp_path / "reference" / "gone.md").write_text("old")
    capsys.readouterr()
    assert script.main(["--check"]) == 1
    assert "out of date (a.md, gone.md): make reference" in capsys.readouterr().out
    assert script.main([]) == 0
    assert sorted(path.name for path in (tmp_path / "reference").iterdir()) == ["a.md", "b.md"]
    assert script.main(["--chek"]) == 2


def test_every_field_has_its_meaning_and_every_link_its_heading(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        headings = {heading.lower() for heading in re.findall(r"^#+ (.*)$", text, re.M)}
        for target in re.findall(r"\]\(#([^)]*)\)", text):
            assert target in headings, f"{name} links to #{target}"
        for target in re.findall(r"\]\((\w+\.md)\)", text):
            assert target in pages, f"{name} links to {target}"


def test_pages__hold_what_there_is(pages: dict[str, str]) -> None:
    assert (
        "| `distillation_weight` | number | `0.05` | lambda (paper: 0.05; T6e)"
        in pages["methods.md"]
    )
    assert "`MaskCLIP.equation_8`" in pages["methods.md"]
    assert "| SLIP README | `slip_7_prompts` |" in pages["protocols.md"]
    assert "| `timm` | text | **required** |" in pages["families.md"]
    assert "## karpathy" in pages["readers.md"]
    assert "| `--task`, `-t` |" in pages["commands.md"]
    assert "## maskclip-bench list tasks" in pages["commands.md"]
    assert "| `demo/maskclip` | `maskclip` |" in pages["recipes.md"]


class Part(Declaration):
    """A part."""

    number: int = 3


class Whole(Declaration):
    """A whole."""

    kind: Literal["a", "b"]
    part: Part = Part()
    sizes: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.5, 1.0)
    bounded: Annotated[float, Field(gt=0)] | None = None
    free: dict[str, Any] = Field(default_factory=dict)
    flag: bool = False
    text: str | list[str] = "x|y"


def test_types_and_defaults_in_words(script: ModuleType) -> None:
    fields = Whole.model_fields
    said = {
        name: (script.type_words(field.annotation), script.default_words(field))
        for name, field in fields.items()
    }
    assert said == {
        "kind": ("`a`, `b`", "**required**"),
        "part": ("[Part](#part)", "its defaults"),
        "sizes": ("list of whole number", "`[]`"),
        "pair": ("2 x number", "`[0.5, 1.0]`"),
        "bounded": ("number or null", "`null`"),
        "free": ("mapping of anything", "`{}`"),
        "flag": ("true or false", "`false`"),
        "text": ("text or list of text", "`x|y`"),
    }
    assert "| `text` | text or list of text | `x\\|y` |" in script.fields_table(Whole)
    assert script.with_parts(Whole).count("## Part") == 1
