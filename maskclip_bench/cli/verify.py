"""`maskclip-bench verify`: is every file of a workspace as it was written?

What carries a checksum is compared with it, every value of a record is computed again from its
outcomes, and what dead processes left is found. With `--fix`, what is damaged is set aside or
removed, so that the next `run` makes it again; nothing whole is touched.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from maskclip_bench import storage
from maskclip_bench.cli.options import console
from maskclip_bench.errors import EXIT_DATA, ConfigError, DataError, MaskCLIPBenchError
from maskclip_bench.escaping import markup, one_line
from maskclip_bench.runtime import CHECKPOINT_FOLDER, WORKSPACE_VARIABLE, Workspace

if TYPE_CHECKING:
    from maskclip_bench.results.records import RecordStore


@dataclass(frozen=True)
class Item:
    """Something that can be checked.

    Attributes:
        kind: What the table counts it under.
        path: Its file or folder.
        check: Returns what is wrong, one line a problem; empty if it is whole, None if it was
            written before there were checksums.
        fix: Repairs it; returns what was done, None if that is not possible.
        remedy: What the user can do.
    """

    kind: str
    path: Path
    check: Callable[[], list[str] | None]
    fix: Callable[[], str | None]
    remedy: str


@dataclass(frozen=True)
class Finding:
    """What is wrong with an item, and what was done about it."""

    item: Item
    problem: str
    done: str | None = None


def verify(
    workspace: Annotated[
        Path | None,
        typer.Argument(
            help="The workspace; default: ./workspace.",
            envvar=WORKSPACE_VARIABLE,
            show_default="./workspace",
        ),
    ] = None,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Set aside or remove what is damaged or left over; run makes it again."
        ),
    ] = False,
) -> None:
    """Check every record, outcome, feature, model, checkpoint and data file against its checksum.

    Exit codes: 0 all is whole, or was repaired; 2 there is no such workspace; 3 something is
    damaged; 4 something cannot be read.

    For example:

        maskclip-bench verify

        maskclip-bench verify workspace --fix
    """
    opened = Workspace.open(workspace)
    if not opened.root.is_dir():
        raise ConfigError(
            f"There is no workspace {opened.root}. Give the folder that `maskclip-bench run` "
            "wrote to."
        )
    items = list(items_of(opened))
    counts: Counter[tuple[str, str]] = Counter()
    findings = []
    for item in _with_bar(items):
        state, finding = examine(item, fix=fix)
        counts[item.kind, state] += 1
        if finding is not None:
            findings.append(finding)
    output = console()
    output.print(_summary(counts))
    for finding in findings:
        _show(finding)
    if not findings:
        output.print(f"All is as it was written: {markup(opened.root)}", soft_wrap=True)
    if any(finding.done is None for finding in findings):
        if not fix:
            output.print("Repair what can be repaired: maskclip-bench verify --fix")
        raise typer.Exit(EXIT_DATA)


def examine(item: Item, *, fix: bool) -> tuple[str, Finding | None]:
    """Check an item, and repair it -> ("whole", "unsealed", "damaged" or "repaired", finding).

    Raises:
        StorageError: It cannot be read.
    """
    problems = item.check()
    if problems is None:
        return "unsealed", None
    if not problems:
        return "whole", None
    done = item.fix() if fix else None
    return "repaired" if done else "damaged", Finding(item, "; ".join(problems), done)


def items_of(workspace: Workspace) -> Iterator[Item]:
    """Everything below a workspace that can be checked; nothing is read yet."""
    yield from _leftovers(workspace.root)
    for folder in sorted(workspace.root.glob("records*")):
        yield from _records(folder)
    yield from _features(workspace.features)
    yield from _probes(workspace.root / "probes")
    yield from _checkpoints(workspace.pretrain)
    yield from _models(workspace.pretrain)
    yield from _checked_folders(workspace.jobs)
    yield from _demo_worlds(workspace.data)


def _leftovers(root: Path) -> Iterator[Item]:
    for path in storage.leftovers(root, recursive=True):
        yield Item(
            "leftovers",
            path,
            check=partial(_always, "a dead process left it"),
            fix=partial(_remove_leftover, path),
            remedy="Remove it.",
        )


def _records(folder: Path) -> Iterator[Item]:
    """The records of a folder, and outcomes that no record names."""
    from maskclip_bench.results.records import RecordStore

    store = RecordStore(folder)
    named = set()
    for path in store.paths():
        named.add((path.parent, path.stem))
        yield Item(
            "records",
            path,
            check=partial(_check_record, store, path),
            fix=partial(_set_aside_record, path),
            remedy="Run the suite again: the cell is measured again.",
        )
    for path in sorted(folder.glob("*/*.parquet")):
        stem = path.name.split(".")[0]
        # The outcomes of a record that was set aside go when its cell is measured again.
        aside = any(path.parent.glob(f"{stem}.json.damaged-*"))
        if (path.parent, stem) not in named and not aside:
            yield Item(
                "outcomes",
                path,
                check=partial(_always, "no record names it"),
                fix=partial(_remove, path),
                remedy="Remove it.",
            )


def _check_record(store: RecordStore, path: Path) -> list[str] | None:
    try:
        record = store.check(path, values=True)
    except DataError as error:  # of a newer version
        return [str(error)]
    except MaskCLIPBenchError as error:
        if error.exit_code != EXIT_DATA:
            raise
        return [str(error)]
    return [] if record.seal is not None else None


def _features(folder: Path) -> Iterator[Item]:
    notes = sorted(folder.glob("*/*.json"))
    for note in notes:
        tensors = note.with_suffix(".safetensors")
        yield Item(
            "features",
            tensors,
            check=partial(_check_features, note, tensors),
            fix=partial(_remove, note, tensors),
            remedy="Run the suite again: they are computed again.",
        )
    for tensors in sorted(folder.glob("*/*.safetensors")):
        if tensors.with_suffix(".json") not in notes:
            yield Item(
                "features",
                tensors,
                check=partial(_always, "it was not committed"),
                fix=partial(_remove, tensors),
                remedy="Remove it.",
            )


def _check_features(note: Path, tensors: Path) -> list[str]:
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
        expected = values["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return [f"{note.name} is damaged"]
    except OSError as error:
        raise storage.read_error(error, note) from error
    try:
        found = storage.sha256_file(tensors)
    except FileNotFoundError:
        return ["it is missing"]
    except OSError as error:
        raise storage.read_error(error, tensors) from error
    return [] if found == expected else ["its hash is not the one in its .json"]


def _probes(folder: Path) -> Iterator[Item]:
    for path in sorted(folder.glob("*/*.safetensors")):
        yield Item(
            "probes",
            path,
            check=partial(_check_probe, path),
            fix=partial(_remove, path),
            remedy="It is written again when the model is loaded.",
        )


def _check_probe(path: Path) -> list[str]:
    from maskclip_bench.backbones.probe import read_probe

    return [] if read_probe(path) is not None else ["it is damaged"]


def _checkpoints(folder: Path) -> Iterator[Item]:
    from maskclip_bench.training.checkpoint import checkpoint_paths

    folders = sorted(folder.glob(f"**/{CHECKPOINT_FOLDER}"))
    for path in (path for found in folders for path in checkpoint_paths(found)):
        yield Item(
            "checkpoints",
            path,
            check=partial(_check_checkpoint, path),
            fix=partial(_set_aside, path),
            remedy="The next `pretrain` or `run` continues from the one before it.",
        )


def _check_checkpoint(path: Path) -> list[str]:
    from maskclip_bench.training.checkpoint import load_checkpoint

    try:
        load_checkpoint(path)
    except MaskCLIPBenchError as error:
        return [str(error)]
    return []


def _models(folder: Path) -> Iterator[Item]:
    """Exported models of the runs; a damaged one can be written again from a checkpoint."""
    for model in sorted({*folder.glob("**/model"), *folder.glob("**/teacher")}):
        has_checkpoint = any((model.parent / "checkpoints").glob("step_*.pt"))
        yield Item(
            "models",
            model,
            check=partial(storage.check_checksums, model),
            fix=partial(_set_aside, model) if has_checkpoint else _nothing,
            remedy=(
                "The next `run` writes it again from the newest checkpoint."
                if has_checkpoint
                else f"Restore it from a backup, or remove {model.parent} to train again."
            ),
        )


def _checked_folders(folder: Path) -> Iterator[Item]:
    for listing in sorted(folder.glob(f"**/{storage.CHECKSUMS}")):
        if any(".damaged-" in part for part in listing.parts):
            continue
        yield Item(
            "jobs",
            listing.parent,
            check=partial(storage.check_checksums, listing.parent),
            fix=partial(_set_aside, listing.parent),
            remedy="Run the suite again: the job is done again.",
        )


def _demo_worlds(folder: Path) -> Iterator[Item]:
    from maskclip_bench.data.demo.world import MANIFEST

    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        yield Item(
            "demo data",
            manifest.parent,
            check=partial(_check_world, manifest.parent),
            fix=partial(_set_aside, manifest.parent),
            remedy="maskclip-bench data prepare demo",
        )


def _check_world(world: Path) -> list[str]:
    from maskclip_bench.data.demo.world import check_world

    try:
        check_world(world)
    except DataError as error:
        return [str(error)]
    return []


def _set_aside_record(path: Path) -> str | None:
    """The record, and with it its outcomes, which nothing would name."""
    done = _set_aside(path)
    if done is not None:
        for outcomes in path.parent.glob(f"{path.stem}.*.parquet"):
            storage.set_aside(outcomes)
    return done


def _set_aside(path: Path) -> str | None:
    target = storage.set_aside(path)
    return None if target is None else f"set aside as {target.name}"


def _remove(*paths: Path) -> str | None:
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError:
        return None
    return "removed"


def _remove_leftover(path: Path) -> str | None:
    storage.remove_leftovers(path.parent)
    return None if path.exists() else "removed"


def _always(problem: str) -> list[str]:
    return [problem]


def _nothing() -> None:
    """For what only the user can repair."""


def _with_bar(items: list[Item]) -> Iterator[Item]:
    """The items, with a bar on stderr."""
    with Progress(
        TextColumn("checking {task.fields[kind]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    ) as progress:
        bar = progress.add_task("", total=len(items), kind="")
        for item in items:
            progress.update(bar, kind=item.kind)
            yield item
            progress.advance(bar)


def _summary(counts: Counter[tuple[str, str]]) -> RichTable:
    view = RichTable("checked", box=None, pad_edge=False)
    states = {
        "whole": "whole",
        "unsealed": "made before checksums",
        "damaged": "damaged",
        "repaired": "repaired",
    }
    for title in states.values():
        view.add_column(title, justify="right")
    for kind in dict.fromkeys(kind for kind, _ in counts):
        view.add_row(kind, *(str(counts[kind, state] or "-") for state in states))
    return view


def _show(finding: Finding) -> None:
    output = console()
    what = finding.done or finding.item.remedy
    output.print(
        Text.assemble(
            ("repaired " if finding.done else "damaged ", "yellow" if finding.done else "red"),
            f"{one_line(finding.item.path)}: {one_line(finding.problem)}",
            (f" ({one_line(what)})", "dim"),
        ),
        soft_wrap=True,
    )
