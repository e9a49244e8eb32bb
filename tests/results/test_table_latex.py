from __future__ import annotations

import doctest
import shutil
import subprocess
from pathlib import Path

import pytest

from maskclip_bench.results import table_latex
from maskclip_bench.results.reference import load_references
from maskclip_bench.results.table_latex import latex_text, to_latex
from maskclip_bench.results.tables import Table, build_table, load_table, table_names
from tests.results.latex_checker import check_latex
from tests.results.test_rendering import HOSTILE, example, hostile_table

COMPILERS = [name for name in ("pdflatex", "xelatex", "lualatex", "tectonic") if shutil.which(name)]


def published(name: str) -> Table:
    return build_table(load_table(name), references=load_references())


def test_example() -> None:
    assert doctest.testmod(table_latex).failed == 0


def test_latex__exactly() -> None:
    lines = [line.strip() for line in to_latex(example()).splitlines()]
    start = lines.index(r"\begin{tabular}{lccc}")
    assert lines[start : lines.index(r"\end{tabular}") + 1] == [
        r"\begin{tabular}{lccc}",
        r"\toprule",
        r"& \multicolumn{2}{c}{Zero-shot} & \multicolumn{1}{c}{Retrieval} \\",
        r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}",
        r"&  &  & I$\rightarrow$T \\",
        r"& val & unseen & R@1 \\",
        r"\midrule",
        r"\multicolumn{4}{l}{\textit{equal pairs}} \\",
        r"CLIP & 27.6 {\scriptsize $\pm$2.8} & \underline{22.5} {\scriptsize $\pm$2.7} & failed \\",
        r"MaskCLIP & \textbf{31.2} {\scriptsize $\pm$2.9 (+3.6{*})} "
        r"& 22.1 {\scriptsize $\pm$2.6 ($-$0.4)} & - \\",
        r"\midrule",
        r"\multicolumn{4}{l}{\textit{theirs}} \\",
        r"Their\textbar{}CLIP $^{\dagger}$ & 30.0$^{\dagger}$ & 30.0$^{\dagger}$ "
        r"& 30.00$^{\dagger}$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.parametrize("text", [*HOSTILE, "[x]", "*", "中文 ✓", "Ωmega", "naïve Ğ", "a--b `c'"])
def test_latex__of_any_text_is_read_by_the_strict_reader(text: str) -> None:
    check_latex(to_latex(hostile_table(text)))


@pytest.mark.parametrize("name", [name for name in table_names() if not name.startswith("demo")])
def test_latex__of_shipped_tables(name: str) -> None:
    check_latex(to_latex(published(name)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ((r"\textbf{31.2}", r"\textbf{31.2"), "brace"),
        (("27.6 {", "27.6 & {"), "cells under"),
        ((r"\midrule", r"\hline"), "unknown command"),
        (("CLIP &", "[CLIP &"), "takes"),
        ((r"\end{tabular}", ""), "cross|not closed"),
        (("27.6", "27_6"), "active"),
        (("27.6", "27 % 6"), "comment"),
        (("CLIP &", "中 &"), "no font"),
    ],
)
def test_checker__finds_what_would_not_compile(damage: tuple[str, str], said: str) -> None:
    text = to_latex(example()).replace(*damage, 1)
    with pytest.raises(AssertionError, match=said):
        check_latex(text)


def test_latex_text__unknown_characters_have_a_fallback() -> None:
    assert latex_text("中") == r"\mcbchar{4E2D}{中}"
    assert r"\providecommand{\mcbchar}" in to_latex(hostile_table("中"))
    assert "providecommand" not in to_latex(example())


def test_latex__of_an_empty_table() -> None:
    text = to_latex(Table("Empty", "", "demo", (), (), ("A note.",)))
    assert "tabular" not in text
    check_latex(text)


def compiled(compiler: str, body: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    options = ["-interaction=nonstopmode", "-halt-on-error"] if compiler != "tectonic" else []
    (folder / "a.tex").write_text(f"{table_latex.PREAMBLE}{body}\\end{{document}}\n")
    return subprocess.run(
        [compiler, *options, "a.tex"], cwd=folder, capture_output=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.skipif(not COMPILERS, reason="no TeX on this machine")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_latex__compiles(compiler: str, tmp_path: Path) -> None:
    if compiled(compiler, "x", tmp_path).returncode:
        pytest.skip(f"{compiler} lacks packages that any document needs")
    tables = [example(), published("imagenet"), published("ablations")]
    tables += [hostile_table(text) for text in [*HOSTILE, "[x]", "*x", "中文 Ω ✓", "naïve Ğ"]]
    body = "\n\\clearpage\n".join(to_latex(table) for table in tables)
    done = compiled(compiler, body, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:].decode(errors="replace")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
