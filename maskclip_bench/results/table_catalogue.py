"""The declared tables (`configs/tables/*.yaml`), and one made up for whatever was recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from maskclip_bench import data_files
from maskclip_bench.config import World, load_declaration
from maskclip_bench.errors import ConfigError, unknown_name
from maskclip_bench.results.table_model import ColumnDeclaration, RowDeclaration, TableDeclaration

if TYPE_CHECKING:  # the names of tables are listed without pandas
    from maskclip_bench.results.record_model import Record

KIND = "configs/tables"


def table_names() -> list[str]:
    """Names of the declared tables."""
    return list(data_files.declarations(KIND))


def load_table(name: str) -> TableDeclaration:
    """Read `configs/tables/<name>.yaml`, or a YAML file by its path.

    Raises:
        UnknownNameError: There is no such table.
        ConfigError: The file does not fit.
    """
    path = data_files.find_declaration(
        KIND, name, singular="table", listing="maskclip-bench list tables"
    )
    return load_declaration(path, TableDeclaration)


def choose_records(
    records: Sequence[Record], rows: Sequence[str] = (), tasks: Sequence[str] = ()
) -> list[Record]:
    """The records of some rows and columns.

    Args:
        records: All there are.
        rows: Backbones, by name or shell pattern; none = all.
        tasks: "protocol/dataset", likewise.

    Raises:
        UnknownNameError: A name or pattern fits no record; says which names there are.
    """
    remedy = "These have records: maskclip-bench results ls. Measure others: maskclip-bench run"
    for what, patterns, known in (
        ("recorded row", rows, {record.cell.backbone for record in records}),
        ("recorded task", tasks, {record.task for record in records}),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise unknown_name(what, pattern, known, remedy=remedy)
    return [
        record
        for record in records
        if (not rows or any(fnmatchcase(record.cell.backbone, name) for name in rows))
        and (not tasks or any(fnmatchcase(record.task, name) for name in tasks))
    ]


def table_of_records(
    records: Sequence[Record],
    *,
    title: str,
    world: World,
    names: Mapping[str, str] | None = None,
    tasks: Sequence[str] = (),
    baseline: str | None = None,
    seeds: Mapping[str, Sequence[int]] | None = None,
) -> TableDeclaration:
    """Declare a table for whatever was recorded: titles and columns are the records' own.

    Args:
        records: Rows and columns are taken from those of `world`. A task that failed everywhere
            has one column, in which every cell says so.
        title: Heading.
        world: Of the table.
        names: Display names of backbones; their order is the order of the rows.
        tasks: "protocol/dataset" in the order of the columns; others come after, by name.
        baseline: Backbone to compare with; left out if it has no record.
        seeds: Of a backbone, only these; all by default.

    Raises:
        ConfigError: There is no record of this world.
    """
    from maskclip_bench.results.table_measured import limits

    shown = [record for record in records if record.cell.world == world]
    if not shown:
        raise ConfigError(
            f"There is no record of the {world} world yet. Make some: maskclip-bench run"
        )
    names = names or {}
    recorded = {record.cell.backbone for record in shown}
    backbones = [name for name in names if name in recorded]
    backbones += sorted(recorded.difference(backbones))
    labels = _distinct({name: names.get(name, name) for name in backbones})
    seeds = seeds or {}
    return TableDeclaration(
        title=title,
        world=world,
        limited=any(limits(record) for record in shown),
        columns=_columns_of(shown, tasks),
        rows=[
            RowDeclaration(
                name=labels[name], backbone=name, seeds=list(seeds[name]) if name in seeds else None
            )
            for name in backbones
        ],
        baseline=baseline if baseline in backbones else None,
    )


def _columns_of(records: Sequence[Record], tasks: Sequence[str]) -> list[ColumnDeclaration]:
    columns: dict[tuple[str, str], ColumnDeclaration] = {}
    scored = {record.task for record in records if record.status == "ok"}
    for record in sorted(records, key=lambda r: (_position(tasks, r.task), r.task)):
        if record.status != "ok" and record.task in scored:
            continue
        for metric in record.shown_metrics:
            # Newer records know their titles; an older one of the same column does not hide them.
            known = columns.get((record.task, metric))
            if known is None or record.protocol_title is not None:
                lines = [record.cell.dataset]
                if metric:
                    lines.append(metric_label(record, metric))
                columns[record.task, metric] = ColumnDeclaration(
                    group=protocol_title(record),
                    title="\n".join(lines),
                    task=record.task,
                    metric=metric,
                )
    return list(columns.values())


def _distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Display names that tell the rows apart: those that several rows have get their backbone."""
    given = list(names.values())
    return {
        key: name if given.count(name) == 1 else f"{name} ({key})" for key, name in names.items()
    }


def protocol_title(record: Record) -> str:
    """The record's own title of its protocol; for old records the name in words.

    Example: "linear_probe" -> "Linear probe".
    """
    return record.protocol_title or record.cell.protocol.replace("_", " ").capitalize()


def metric_label(record: Record, metric: str) -> str:
    """The record's own label of a metric; for old records its name in words."""
    return record.metrics[metric].label or metric.replace("_", " ")


def _position(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)
