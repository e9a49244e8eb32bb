"""Write a table as files: Markdown, CSV and a picture."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from maskclip_bench import storage
from maskclip_bench.extras import install_command
from maskclip_bench.results.rendering import to_csv, to_markdown
from maskclip_bench.results.table_model import Table

logger = logging.getLogger(__name__)


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
