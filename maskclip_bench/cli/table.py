"""`maskclip-bench table`: declared tables, and tables of whatever was recorded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip_bench.cli.options import WorkspaceOption, console
from maskclip_bench.errors import ConfigError, MaskCLIPBenchError
from maskclip_bench.escaping import markup
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.results.table_model import Table

RecordsOption = Annotated[
    Path | None, typer.Option("--records", help="Folder of records; default: the workspace's.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
RowsOption = Annotated[
    list[str] | None,
    typer.Option("--backbone", "-b", help="Only this recorded row (repeat for more)."),
]
TasksOption = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Only this column, protocol/dataset; either may be *."),
]


def table(
    name: Annotated[
        str | None,
        typer.Argument(help="A declared table; see: maskclip-bench list tables"),
    ] = None,
    backbone: RowsOption = None,
    task: TasksOption = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", help="Row to compare with; default: the table's, or the first."),
    ] = None,
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            help="none, or paper: published numbers with their sources, marked as such.",
        ),
    ] = "none",
    chance: Annotated[
        bool | None,
        typer.Option(
            "--chance/--no-chance",
            help="Show the score of guessing; by default not in a declared table.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            help="terminal, markdown, latex, html, csv, json, png, svg or pdf; "
            "default: as the output is named, else terminal.",
        ),
    ] = None,
    as_json: JsonOption = False,
    records: RecordsOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write there: a file, or a folder for .md, .csv and .png (of a declared table).",
        ),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Show a table: best in bold, differences to the baseline with their tests, intervals.

    Either a declared table by its name, or the recorded rows and columns that -b and -t name.

    For example:

        maskclip-bench table demo --chance

        maskclip-bench table imagenet --reference paper

        maskclip-bench table -b clip_vit-demo_demo -b slip_vit-demo_demo -t "knn/*"

        maskclip-bench table demo --format latex -o demo.tex
    """
    from maskclip_bench.backbones.resolve import row_name
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.results.reference import load_references
    from maskclip_bench.results.table_files import format_of
    from maskclip_bench.results.table_requests import declared_table, tables_of

    if as_json and format not in (None, "json"):
        raise ConfigError(f"--json and --format {format} ask for two formats. Give one of them.")
    format = "json" if as_json else format
    store = RecordStore(records or Workspace.open(workspace).records)
    if name is not None:
        if backbone or task:
            raise ConfigError(
                "A declared table has its own rows and columns: give its name, or -b and -t."
            )
        if reference not in ("none", "paper"):
            raise ConfigError(f"--reference {reference!r} is not known. Use none or paper.")
        references = load_references() if reference == "paper" else ()
        built = [
            declared_table(
                name, store, references=references, chance=bool(chance), baseline=baseline
            )
        ]
    else:
        if reference != "none":
            raise ConfigError("--reference goes with a declared table; give its name.")
        built = tables_of(
            store,
            [row if "*" in row else row_name(row) for row in backbone or []],
            task or [],
            names=display_names(),
            chance=chance is not False,
            baseline=None if baseline is None else row_name(baseline),
        )
    if output is not None and format is None and format_of(output) is None:
        _show(built, "terminal", None, name, store)
        _write_folder(built, output, name)
    else:
        kind = format_of(output or Path(), format) or "terminal"
        _show(built, kind, output, name, store)


def display_names() -> dict[str, str]:
    """What tables call the declared rows; others (an encoder in memory) keep their names."""
    from maskclip_bench.backbones.declaration import backbone_names, load_backbone_declaration

    names = {}
    for name in backbone_names():
        with contextlib.suppress(MaskCLIPBenchError):  # a file that is broken now names no row
            names[name] = load_backbone_declaration(name).display_name
    return names


def _show(
    tables: Sequence[Table], kind: str, output: Path | None, name: str | None, store: RecordStore
) -> None:
    from maskclip_bench.results.rendering import as_json
    from maskclip_bench.results.table_files import TEXT_FORMATS, write_as
    from maskclip_bench.results.tables import to_terminal

    view = console()
    if name is not None and tables[0].is_empty and kind == "terminal":
        view.print(
            f"Table {markup(repr(name))} has no measured cell in {markup(store.root)}. Measure "
            "some with `maskclip-bench run --suite all`, or show the published numbers with "
            "`--reference paper`."
        )
        return
    if output is not None:
        for table, path in zip(tables, _paths(output, tables), strict=True):
            write_as(table, path, kind)
            view.print(f"[dim]wrote {markup(path)}[/]", soft_wrap=True)
    elif kind == "terminal":
        for index, table in enumerate(tables):
            view.print(*([""] if index else []), to_terminal(table), sep="\n")
    elif kind == "json" and len(tables) > 1:
        print(json.dumps([as_json(table) for table in tables], indent=2))
    elif kind in TEXT_FORMATS:
        print("\n".join(TEXT_FORMATS[kind](table) for table in tables), end="")
    else:
        raise ConfigError(f"A {kind} is no text: say where to write it with --output FILE.")


def _paths(output: Path, tables: Sequence[Table]) -> list[Path]:
    """One file a table; with two worlds the second one's name says which it is."""
    return [
        output if index == 0 else output.with_name(f"{output.stem}_{table.world}{output.suffix}")
        for index, table in enumerate(tables)
    ]


def _write_folder(tables: Sequence[Table], folder: Path, name: str | None) -> None:
    from maskclip_bench.results.tables import write_table

    view = console()
    for table in tables:
        if not table.is_empty:
            stem = Path(name).stem if name else f"recorded_{table.world}"  # a name or a YAML file
            for path in write_table(table, folder, stem):
                view.print(f"[dim]wrote {markup(path)}[/]", soft_wrap=True)
