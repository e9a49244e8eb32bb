r"""Text from files (names, labels, captions, messages of libraries) is shown, and never acts.

Every renderer and every line of the command line passes foreign text through one of these:
`visible` for anything printed, then the function of the format. Characters that a reader cannot
see, or that change what other characters do, are written out as escapes (`\x1b`, `\u202e`).
"""

from __future__ import annotations

import html as _html
import re
import unicodedata

_KEPT = "\n\u200c\u200d"
"""Format characters that stay: the line break, and the joiners that scripts and emoji need."""

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories written out: control, format (bidirectional overrides, zero width), surrogates
(bytes of a file name that are no UTF-8), separators of lines and paragraphs."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
"""First characters by which a spreadsheet takes a cell for a formula."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}


def visible(text: object) -> str:
    r"""`text` with invisible and acting characters written out; line breaks stay.

    Example:
        >>> visible("a\x1b[31mb\u202ec")
        'a\\x1b[31mb\\u202ec'
    """
    shown = str(text)
    if shown.isascii() and shown.replace("\n", "").isprintable():
        return shown
    return "".join(_shown(character) for character in shown)


def one_line(text: object) -> str:
    r"""`visible` on one line: line breaks become spaces.

    Example:
        >>> one_line("two\nlines")
        'two lines'
    """
    return visible(" ".join(part for part in str(text).splitlines() if part))


def markup(text: object) -> str:
    r"""For a string with rich's markup around it: square brackets of `text` stay brackets.

    Example:
        >>> markup("x[/bold]")
        'x\\[/bold]'
    """
    from rich.markup import escape

    return escape(visible(text))


def markdown(text: object) -> str:
    r"""For a line or a table cell of GitHub-flavoured Markdown: no emphasis, link, HTML or column.

    Example:
        >>> markdown("a|b <i> [x](y)")
        'a\\|b &lt;i&gt; \\[x\\](y)'
    """
    shown = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*\[\]|~])", r"\\\1", shown)
    # An underscore inside a word is no emphasis; and a bare address would become a link.
    shown = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", shown)
    shown = re.sub(r"(?i)\b(https?|ftp)://", r"\1\\://", shown)
    shown = re.sub(r"(?i)\bwww\.", lambda found: found[0][:-1] + "\\.", shown)
    # At the start of a line: headings, lists, rules.
    return re.sub(r"^(\s*\d*)([#+.)-]+(?=\s|$)|=+\s*$)", r"\1\\\2", shown)


def html(text: object) -> str:
    """For the text of an HTML element or a quoted attribute.

    Example:
        >>> html('<b>"x"')
        '&lt;b&gt;&quot;x&quot;'
    """
    return _html.escape(visible(text), quote=True)


def csv_cell(text: object) -> str:
    """For a text cell of a CSV file: a spreadsheet takes it for text, whatever it begins with.

    The quoting of commas and quotation marks is the writer's. Not for numbers.

    Example:
        >>> csv_cell("=1+1")
        "'=1+1"
    """
    shown = one_line(text)
    acts = shown.lstrip().startswith(_FORMULA) or str(text).startswith(_FORMULA)
    return f"'{shown}" if acts else shown


def latex(text: object) -> str:
    r"""For the text of a LaTeX document, tables included.

    Example:
        >>> latex("50% & more")
        '50\\% \\& more'
    """
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def _shown(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that the file system's encoding does not know
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
