r"""A filled table as LaTeX: booktabs, groups of rows and columns, notes below.

The text needs `\usepackage{booktabs}` and, with pdfLaTeX, `\usepackage[T1]{fontenc}` and
`\usepackage{textcomp}`. It compiles with pdfLaTeX, XeLaTeX and LuaLaTeX: characters that pdfLaTeX
does not know are written by their code there, and as they are elsewhere.
"""

from __future__ import annotations

from maskclip_bench.escaping import latex
from maskclip_bench.results.cell_text import EMPTY_TEXT, cell_delta, cell_number, cell_spread
from maskclip_bench.results.table_model import (
    ColumnDeclaration,
    Table,
    TableCell,
    TableRow,
    runs,
)

PREAMBLE = r"""\documentclass{article}
\usepackage[margin=15mm,landscape]{geometry}
\usepackage{iftex}
\ifPDFTeX\usepackage[T1]{fontenc}\usepackage{textcomp}\else\usepackage{fontspec}\fi
\usepackage{booktabs}
\begin{document}
"""

_SYMBOLS = {
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "↔": r"$\leftrightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "†": r"$^{\dagger}$",
    "λ": r"$\lambda$",
    "β": r"$\beta$",
    "α": r"$\alpha$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "ᵇ": r"$^{\mathrm{b}}$",
    "ᵐ": r"$^{\mathrm{m}}$",
    "²": r"$^{2}$",
    "½": r"$\frac{1}{2}$",
    "°": r"$^{\circ}$",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "*": "{*}",  # a row that begins with a bare *, [ would be an argument of the \\\\ before it
    "[": "{[}",
    "]": "{]}",
}

_FALLBACK = (
    r"\providecommand{\mcbchar}[2]{\ifdefined\Umathcode#2\else\texttt{U+#1}\fi}"
    "% XeLaTeX and LuaLaTeX print the character itself"
)
_UMLAUTS = range(0xC0, 0x180)
"""Latin letters that the T1 encoding has (but for a few, which pdfLaTeX names in a warning)."""
_NOT_IN_T1 = set("ĀāĈĉĊċĒēĔĕĖėĜĝĠġĢģĤĥĦħĨĩĪīĬĭĮįĴĵĶķĸĻļĿŀŅņŉŌōŎŏŖŗŜŝŦŧŨũŪūŬŭŲųŴŵŶŷſ×÷")


def to_latex(table: Table, *, standalone: bool = False) -> str:
    r"""A `table` environment.

    Args:
        table: The table.
        standalone: Add a preamble, so that the text is a document.
    """
    lines = [r"\begin{table}", r"  \centering", rf"  \caption{{{latex_text(table.title)}}}"]
    if table.is_empty:
        lines.append(f"  {latex_text(EMPTY_TEXT)}")
    else:
        lines += _tabular(table)
    if table.remarks:
        lines += ["", r"  \medskip", r"  \begin{minipage}{\linewidth}\footnotesize"]
        lines += [rf"    {latex_text(remark)}\par" for remark in table.remarks]
        lines += [r"  \end{minipage}"]
    lines += [r"\end{table}"]
    text = "\n".join(lines) + "\n"
    if r"\mcbchar" in text:
        text = f"{_FALLBACK}\n{text}"
    if standalone:
        return f"{PREAMBLE}{text}\\end{{document}}\n"
    return f"% Needs \\usepackage{{booktabs}}.\n{text}"


def latex_text(text: object) -> str:
    r"""`escaping.latex`, with symbols that pdfLaTeX has no input for.

    Example:
        >>> latex_text("I→T, 50 %")
        'I$\\rightarrow$T, 50 \\%'
    """
    return "".join(_character(character) for character in latex(text))


def _character(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    code = ord(character)
    if code < 0x80 or (code in _UMLAUTS and character not in _NOT_IN_T1):
        return character
    return rf"\mcbchar{{{code:04X}}}{{{character}}}"


def _tabular(table: Table) -> list[str]:
    num_columns = len(table.columns)
    lines = [rf"  \begin{{tabular}}{{l{'c' * num_columns}}}", r"    \toprule"]
    groups = [column.group for column in table.columns]
    if any(groups):
        spans = [
            rf"\multicolumn{{{last - first + 1}}}{{c}}{{{latex_text(name)}}}"
            for first, last, name in runs(groups)
        ]
        rules = [
            rf"\cmidrule(lr){{{first + 2}-{last + 2}}}"
            for first, last, name in runs(groups)
            if name
        ]
        lines += [f"    & {' & '.join(spans)} \\\\", f"    {' '.join(rules)}"]
    titles = [column.title.split("\n") for column in table.columns]
    depth = max(len(title) for title in titles)
    for index in range(depth):
        parts = [
            latex_text(title[index - depth + len(title)]) if index >= depth - len(title) else ""
            for title in titles
        ]
        lines.append(f"    & {' & '.join(parts)} \\\\")
    for first, last, group in runs([row.group for row in table.rows]):
        lines.append(r"    \midrule")
        if group:
            lines.append(
                rf"    \multicolumn{{{num_columns + 1}}}{{l}}{{\textit{{{latex_text(group)}}}}} \\"
            )
        lines += [_row(row, table) for row in table.rows[first : last + 1]]
    return [*lines, r"    \bottomrule", r"  \end{tabular}"]


def _row(row: TableRow, table: Table) -> str:
    cells = [_cell(cell, column) for cell, column in zip(row.cells, table.columns, strict=True)]
    return f"    {latex_text(row.label)} & {' & '.join(cells)} \\\\"


def _cell(cell: TableCell, column: ColumnDeclaration) -> str:
    number = latex_text(cell_number(cell, column))
    if cell.best:
        number = rf"\textbf{{{number}}}"
    elif cell.second:
        number = rf"\underline{{{number}}}"
    spread, delta = cell_spread(cell, column), cell_delta(cell, column)
    small = [latex_text(spread), f"({latex_text(delta)})" if delta else ""]
    printed = " ".join(part for part in small if part)
    return rf"{number} {{\scriptsize {printed}}}" if printed else number
