r"""A strict reader of the LaTeX that our tables use: what it accepts, TeX compiles.

It knows a few commands with their arguments and nothing else. An unknown command, an unbalanced
brace, an active character outside of its place, a row of the wrong number of columns, an argument
that a `\\` or a rule would swallow, or a character that pdfLaTeX has no font for is an error.
"""

from __future__ import annotations

import re

ARGUMENTS = {
    "begin": 1, "end": 1, "caption": 1, "textbf": 1, "textit": 1, "underline": 1, "multicolumn": 3,
    "cmidrule": 1, "mcbchar": 2, "texttt": 1,
    "centering": 0, "toprule": 0, "midrule": 0, "bottomrule": 0, "medskip": 0, "par": 0,
    "footnotesize": 0, "scriptsize": 0, "linewidth": 0, "ldots": 0,
    "textbackslash": 0, "textasciicircum": 0, "textasciitilde": 0, "textless": 0,
    "textgreater": 0, "textbar": 0, "textquotedbl": 0,
}  # fmt: skip
MATH = {
    r"\pm", "-", r"\rightarrow", r"\leftarrow", r"\leftrightarrow", r"\leq", r"\geq", r"\times",
    r"\cdot", r"^{\dagger}", r"\lambda", r"\beta", r"\alpha", r"\mu", r"\sigma", r"\tau",
    r"^{\mathrm{b}}", r"^{\mathrm{m}}", r"^{2}", r"\frac{1}{2}", r"^{\circ}",
}  # fmt: skip
TOKEN = re.compile(r"\\([A-Za-z]+)|\\([{}$&#%_])|(\\\\)|(\$[^$]*\$)|(%[^\n]*\n?)|(.)", re.DOTALL)


def check_latex(text: str) -> None:
    """Raise AssertionError where TeX would stop or do what was not meant."""
    text = re.sub(r"^\\providecommand\{\\mcbchar\}[^\n]*\n", "", text)
    text = text.removeprefix("% Needs \\usepackage{booktabs}.\n")
    text = re.sub(r"^\\providecommand\{\\mcbchar\}[^\n]*\n", "", text)
    _check_tokens(text)
    _check_environments(text)
    for body in re.findall(r"\\begin\{tabular\}\{(l?c*)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        _check_tabular(*body)


def _check_tokens(text: str) -> None:
    depth = 0
    for match in TOKEN.finditer(text):
        command, _, newline, math, comment, character = match.groups()
        if command is not None:
            assert command in ARGUMENTS, f"unknown command \\{command}"
            rest = text[match.end() :]
            if command == "cmidrule":
                rest = rest.removeprefix("(lr)")
            if ARGUMENTS[command]:
                assert rest.startswith("{"), f"\\{command} lacks an argument: {rest[:20]!r}"
            elif command.endswith("rule"):
                assert not rest.lstrip().startswith(("[", "(")), f"\\{command} takes {rest[:20]!r}"
            else:
                assert not re.match(r"[A-Za-z]", rest), f"\\{command} runs into {rest[:20]!r}"
        elif newline is not None:
            assert not text[match.end() :].lstrip().startswith(("[", "*")), "\\\\ takes an argument"
        elif math is not None:
            assert math[1:-1] in MATH, f"unknown mathematics {math}"
        elif comment is not None:
            raise AssertionError(f"a comment swallows {comment!r}")
        elif character is not None:
            assert character not in "\\$#^_~%", f"active character {character!r}"
            depth += {"{": 1, "}": -1}.get(character, 0)
            assert depth >= 0, "a brace closes nothing"
            printable = character == "\n" or ord(character) >= 0x20
            assert printable, f"control character {character!r}"
            in_fallback = re.search(r"\\mcbchar\{[0-9A-F]{4,6}\}\{$", text[: match.start()])
            latin = 0xC0 <= ord(character) < 0x180
            assert ord(character) < 0x7F or latin or in_fallback, f"no font has {character!r}"
    assert depth == 0, "a brace is not closed"


def _check_environments(text: str) -> None:
    open_ones: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            assert name in ("table", "tabular", "minipage"), f"unknown environment {name}"
            open_ones.append(name)
        else:
            assert open_ones, f"\\end{{{name}}} without a beginning"
            assert open_ones.pop() == name, "environments cross"
    assert not open_ones, f"not closed: {open_ones}"


def _check_tabular(columns: str, body: str) -> None:
    for line in body.split(r"\\")[:-1]:
        line = re.sub(r"\\(top|mid|bottom)rule|\\cmidrule\(lr\)\{\d+-\d+\}", "", line)
        cells = re.split(r"(?<!\\)&", line)
        width = 0
        for cell in cells:
            span = re.match(r"\s*\\multicolumn\{(\d+)\}", cell)
            width += int(span[1]) if span else 1
        assert width == len(columns), f"{width} cells under {len(columns)} columns: {line!r}"
    for first, last in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", body):
        assert 1 <= int(first) <= int(last) <= len(columns)
