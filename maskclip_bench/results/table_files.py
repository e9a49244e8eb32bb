"""Write a table as files: any format by its suffix, or Markdown, CSV and a picture at once."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast, get_args

from maskclip_bench import storage
from maskclip_bench.errors import ConfigError, MissingDependencyError
from maskclip_bench.extras import install_command
from maskclip_bench.results.rendering import to_csv, to_json, to_markdown
from maskclip_bench.results.table_html import to_html
from maskclip_bench.results.table_latex import to_latex
from maskclip_bench.results.table_model import Table

logger = logging.getLogger(__name__)

Picture = Literal["png", "svg", "pdf"]

TEXT_FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": to_markdown,
    "latex": to_latex,
    "html": to_html,
    "csv": to_csv,
    "json": to_json,
}
"""Name -> what gives the text."""
FORMATS = ("terminal", *TEXT_FORMATS, *get_args(Picture))
"""What `--format` takes."""
SUFFIXES = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".tex": "latex",
    ".html": "html",
    ".htm": "html",
    ".csv": "csv",
    ".json": "json",
    **{f".{kind}": kind for kind in get_args(Picture)},
}
"""Of a file -> its format."""


def format_of(path: Path, wanted: str | None = None) -> str | None:
    """The format of a file by its name, if none is wanted; None for a folder.

    Raises:
        ConfigError: The wanted format does not exist.
    """
    if wanted is None:
        return SUFFIXES.get(path.suffix.lower())
    if wanted not in FORMATS:
        raise ConfigError(f"No format {wanted!r}. Use one of {', '.join(FORMATS)}.")
    return wanted


def write_as(table: Table, path: Path, kind: str) -> None:
    """Write a table into one file, atomically.

    Args:
        table: The table.
        path: The file.
        kind: One of `FORMATS`.

    Raises:
        StorageError: The disk refused.
        MissingDependencyError: A picture without matplotlib.
    """
    if kind in get_args(Picture):
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingDependencyError(
                f"A picture ({kind}) needs matplotlib: {install_command('pictures')}"
            )
        from maskclip_bench.results.picture import to_picture

        with storage.atomic_file(path) as temporary:
            to_picture(table, temporary, cast("Picture", kind))
    elif kind == "terminal":
        storage.write_text(path, plain_text(table))
    else:
        storage.write_text(path, TEXT_FORMATS[kind](table))


def plain_text(table: Table, *, width: int = 100) -> str:
    """What a terminal of `width` columns shows, without colours."""
    from io import StringIO

    from rich.console import Console

    from maskclip_bench.results.table_terminal import to_terminal

    output = StringIO()
    Console(file=output, width=width).print(to_terminal(table, width=width))
    return "\n".join(line.rstrip() for line in output.getvalue().rstrip().splitlines()) + "\n"


def write_table(table: Table, folder: Path, name: str) -> list[Path]:
    """Write `<name>.md`, `<name>.csv` and `<name>.png` into `folder`, each atomically.

    A file that would not change is left alone, so that running a suite again changes nothing.
    Without matplotlib (the extra `pictures`) there is no picture, and a line of the log says so.

    Returns:
        The files of the table.

    Raises:
        StorageError: The disk refused.
    """
    markdown, values, picture = (folder / f"{name}.{suffix}" for suffix in ("md", "csv", "png"))
    texts = {markdown: to_markdown(table), values: to_csv(table)}
    changed = [path for path, text in texts.items() if not _holds(path, text)]
    files = [markdown, values]
    if importlib.util.find_spec("matplotlib") is None:
        logger.info("Without matplotlib there is no picture: %s", install_command("pictures"))
    else:
        files.append(picture)
    if picture in files and (changed or not picture.exists()):
        from maskclip_bench.results.picture import to_png

        with storage.atomic_file(picture) as temporary:
            to_png(table, temporary)
    for path in changed:
        storage.write_text(path, texts[path])
    return files


def _holds(path: Path, text: str) -> bool:
    try:
        return path.is_file() and path.read_bytes() == text.encode()
    except OSError as error:
        raise storage.read_error(error, path) from error
