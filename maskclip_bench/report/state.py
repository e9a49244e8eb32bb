"""Whether a folder is a report, and whether it still shows what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskclip_bench import __version__, storage
from maskclip_bench.errors import ConfigError, MaskCLIPBenchError
from maskclip_bench.report.looking import RETRIEVED, SEEN
from maskclip_bench.report.runs import LOG_FILE
from maskclip_bench.report.selection import Selection
from maskclip_bench.results.table_catalogue import load_table
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import data_available

HERE = Path(__file__).resolve().parent

INDEX = "index.html"
MARK = "data/report.js"
"""A folder that holds it is a report, and may be written again."""
STATE = "data/state.json"
"""What the page was made of; written last."""


def check_folder(folder: Path) -> None:
    """Refuse to write into a folder of something else.

    Raises:
        ConfigError: It holds files that are no report, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Name a folder for the report.")
    if not folder.is_dir() or (folder / MARK).is_file():
        return
    begun = {"pictures", "data", "cells", "assets"}
    entries = sorted(entry.name for entry in folder.iterdir())
    others = [name for name in entries if name not in begun]
    if others or (entries and not {"pictures", "data"}.intersection(entries)):
        raise ConfigError(
            f"{folder} holds files that are no report ({', '.join((others or entries)[:3])}...). "
            "Name a new or empty folder."
        )


def state_of(selection: Selection, workspace: Workspace | None, folder: Path) -> dict[str, Any]:
    """Hashes of all that the page depends on.

    Args:
        selection: Rows and records.
        workspace: Where logs and data are.
        folder: Of the report, for its pictures.
    """
    records = [
        [record.row_id, record.task, record.seal or record.outcomes_sha256]
        for record in selection.all()
    ]
    rows = [[row.backbone, row.label, row.seeds] for row in selection.rows]
    tasks = {name: task.model_dump(mode="json") for name, task in selection.datasets.items()}
    here = {
        name: workspace is not None and data_available(task, workspace)
        for name, task in selection.datasets.items()
    }
    return {
        "version": __version__,
        "code": _files(sorted(path for path in HERE.rglob("*") if path.suffix in _OURS)),
        "records": storage.fingerprint(records),
        "shown": storage.fingerprint(
            [selection.title, selection.baseline, rows, tasks, here, _tables(selection)]
        ),
        "pictures": _files([folder / SEEN, folder / RETRIEVED]),
        "runs": _files(_logs(selection, workspace)),
    }


_OURS = (".py", ".html", ".css", ".js")


def built_state(folder: Path) -> dict[str, Any] | None:
    """What the page in a folder was made of; None if there is none, or it was not finished."""
    whole = (folder / INDEX).is_file() and (folder / MARK).is_file()
    return storage.read_object(folder / STATE) if whole else None


def _tables(selection: Selection) -> list[Any]:
    found: list[Any] = []
    for name in selection.tables:
        try:
            found.append([name, load_table(name).model_dump(mode="json")])
        except MaskCLIPBenchError as error:
            found.append([name, str(error)])
    return found


def _logs(selection: Selection, workspace: Workspace | None) -> list[Path]:
    if workspace is None:
        return []
    return [
        workspace.pretraining(row.declaration.recipe, row.seeds[0]) / LOG_FILE
        for row in selection.rows
        if row.declaration is not None and row.declaration.recipe is not None
    ]


def _files(paths: list[Path]) -> str:
    """Hash of the contents of files, those that are absent included."""
    hashes = [storage.sha256_file(path) if path.is_file() else None for path in paths]
    return storage.fingerprint(hashes)
