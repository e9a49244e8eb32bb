"""The Python door: comparisons and tables, of results in memory or of records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from maskclip_bench.api_results import Results, TableView
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from maskclip_bench.results.comparing import Comparisons

PathLike = str | Path


def compare(
    first: Results | str,
    second: Results | str,
    tasks: str | Iterable[str] = "*/*",
    *,
    workspace: PathLike | None = None,
) -> Comparisons:
    """Compare two models, task by task, on each task's primary metric.

    Over two or more training seeds that both have they are paired by seed, else by sample.

    Args:
        first: `Results`, or the name of a row recorded in the workspace: all its seeds, or one
            ("name__seed1").
        second: Likewise; differences are first minus second.
        tasks: Only tasks that match one of these shell patterns.
        workspace: Where records are; default as on the command line.

    Returns:
        A table and a sentence; `.frame` has the numbers, `.differing(task)` the samples.

    Raises:
        DataError: They share no task, or were measured on different samples.
        ConfigError: A task was measured with different settings, or they share no seed.
    """
    from maskclip_bench.results.comparing import Comparisons, Side
    from maskclip_bench.results.records import RecordStore

    patterns = [tasks] if isinstance(tasks, str) else list(tasks)
    store = RecordStore(Workspace.open(workspace).records)
    both = [
        source.side() if isinstance(source, Results) else Side.of_store(store, source)
        for source in (first, second)
    ]
    return Comparisons.of(both[0], both[1], patterns)


def table(
    name: str | None = None,
    *,
    backbones: str | Iterable[str] = (),
    tasks: str | Iterable[str] = (),
    baseline: str | None = None,
    workspace: PathLike | None = None,
    reference: bool = False,
    chance: bool | None = None,
) -> TableView:
    """A table of the workspace's records, as text and as HTML in a notebook.

    Args:
        name: A declared table, see `list_tables`; without one, `backbones` and `tasks` say what.
        backbones: Recorded rows, by name or shell pattern; all by default.
        tasks: Columns, likewise ("knn/*").
        baseline: Row to compare with; default: the declared table's, else the first row.
        workspace: Where records are; default as on the command line.
        reference: Add the published numbers, marked as such, to a declared table.
        chance: Add the score of guessing; default: not in a declared table.

    Raises:
        UnknownNameError: There is no such table, row or task.
        ConfigError: Its cells do not belong together, or they are of both worlds.
    """
    return TableView.of(
        name,
        backbones=[backbones] if isinstance(backbones, str) else list(backbones),
        tasks=[tasks] if isinstance(tasks, str) else list(tasks),
        baseline=baseline,
        workspace=Workspace.open(workspace),
        reference=reference,
        chance=chance,
    )
