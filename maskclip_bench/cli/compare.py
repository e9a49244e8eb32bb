"""`maskclip-bench compare A B`: who wins where, with paired tests, from records alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table as RichTable
from rich.text import Text

from maskclip_bench.cli.options import WorkspaceOption, add_line, console
from maskclip_bench.cli.table import JsonOption, RecordsOption, TasksOption, display_names
from maskclip_bench.escaping import markup, one_line
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from maskclip_bench.results.comparing import Comparisons


def compare(
    first: Annotated[str, typer.Argument(help="A recorded row; NAME__seed1 for one seed of it.")],
    second: Annotated[str, typer.Argument(help="The row that is subtracted.")],
    task: TasksOption = None,
    samples: Annotated[
        int,
        typer.Option("--samples", min=0, help="Name that many samples that differ, each way."),
    ] = 3,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="Draw the differences with their intervals: .svg or .png."),
    ] = None,
    as_json: JsonOption = False,
    records: RecordsOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Compare two recorded rows: a sentence, differences with intervals, samples that differ.

    Over two or more training seeds that both rows have they are paired by seed, else by sample.
    P-values are corrected over the tasks (Holm).

    For example:

        maskclip-bench compare clip_vit-demo_demo slip_vit-demo_demo

        maskclip-bench compare clip_vit-demo_demo slip_vit-demo_demo -t "knn/*" --samples 20

        maskclip-bench compare clip_vit-demo_demo slip_vit-demo_demo --figure differences.svg
    """
    from maskclip_bench.backbones.resolve import row_name
    from maskclip_bench.results.comparing import Comparisons, Side
    from maskclip_bench.results.records import RecordStore

    store = RecordStore(records or Workspace.open(workspace).records)
    everything, names = store.all(), display_names()
    sides = [
        Side.of_store(store, row_name(row), records=everything, names=names)
        for row in (first, second)
    ]
    found = Comparisons.of(sides[0], sides[1], task or ["*"])
    if figure is not None:
        _draw(found, figure)
    if as_json:
        print(json.dumps(found.as_json(num_samples=samples), indent=2, allow_nan=False))
        return
    _show(found, samples)


def _draw(found: Comparisons, path: Path) -> None:
    """The forest plot of all tasks that were compared.

    Raises:
        ConfigError: The suffix is neither .svg nor .png.
        MissingDependencyError: A PNG needs matplotlib.
    """
    from maskclip_bench.report.forest import Difference, forest

    differences = [
        Difference(
            line.task,
            line.difference,
            line.low if line.covers else None,
            line.high if line.covers else None,
            bool(line.is_clear),
            line.direction > 0,
        )
        for line in found.frame.itertuples()
    ]
    forest(differences, first=found.first, second=found.second).save(path)
    console(stderr=True).print(f"wrote {markup(path)}", soft_wrap=True)


def _show(found: Comparisons, samples: int) -> None:
    output = console()
    output.print(Text(one_line(found.sentence)), soft_wrap=True)
    output.print()
    view = RichTable(box=None, pad_edge=False)
    for index, column in enumerate(found.columns):
        view.add_column(
            Text(one_line(column)), overflow="fold", justify="right" if index else "left"
        )
    for line in found.lines():
        add_line(view, *line)
    output.print(view)
    for line in found.as_json(num_samples=samples)["tasks"] if samples else ():
        for side, name in (("better", found.first), ("worse", found.second)):
            differing = line["samples"][side]
            if differing["number"]:
                ids = ", ".join(one_line(sample) for sample in differing["ids"])
                more = ", ..." if differing["number"] > len(differing["ids"]) else ""
                output.print(
                    Text(
                        f"{line['task']}: {differing['number']} samples favour {one_line(name)}: "
                    ),
                    Text(f"{ids}{more}", style="dim"),
                    soft_wrap=True,
                )
