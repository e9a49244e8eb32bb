"""`maskclip-bench table` and `path`: what was measured, and where shipped files are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskclip_bench.cli.options import WorkspaceOption, console
from maskclip_bench.errors import ConfigError
from maskclip_bench.escaping import markup
from maskclip_bench.runtime import Workspace


def table(
    name: Annotated[str, typer.Argument(help="A table; see: maskclip-bench list tables")],
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            help="none, or paper: published numbers with their sources, marked as such.",
        ),
    ] = "none",
    chance: Annotated[bool, typer.Option("--chance", help="Add the score of guessing.")] = False,
    records: Annotated[
        Path | None, typer.Option("--records", help="Folder of records; default: the workspace's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write .md, .csv and .png there.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Show a table in the paper's manner: best in bold, differences to the baseline, intervals.

    For example:

        maskclip-bench table demo --chance

        maskclip-bench table imagenet --reference paper
    """
    from maskclip_bench.results.records import RecordStore
    from maskclip_bench.results.reference import load_references
    from maskclip_bench.results.tables import build_table, load_table, to_terminal, write_table

    if reference not in ("none", "paper"):
        raise ConfigError(f"--reference {reference!r} is not known. Use none or paper.")
    store = RecordStore(records or Workspace.open(workspace).records)
    references = load_references() if reference == "paper" else ()
    built = build_table(load_table(name), store, references=references, chance=chance)
    view = console()
    if built.is_empty:
        view.print(
            f"Table {markup(repr(name))} has no measured cell in {markup(store.root)}. Measure "
            "some with `maskclip-bench run --suite all`, or show the published numbers with "
            "`--reference paper`."
        )
        return
    view.print(to_terminal(built))
    if output is not None:
        for path in write_table(built, output, name):
            view.print(f"[dim]wrote {markup(path)}[/]", soft_wrap=True)


def path(
    file: Annotated[
        str,
        typer.Argument(help="A shipped file, e.g. configs/pretrain/demo/clip.yaml; or a folder."),
    ],
) -> None:
    """Print where a shipped file lies, in a checkout or an installed wheel."""
    from maskclip_bench.data_files import config_file

    print(config_file(file))
