"""The declared tables (`configs/tables/*.yaml`), and one made up for whatever was recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from maskclip_bench import data_files
from maskclip_bench.config import World, load_declaration
from maskclip_bench.errors import ConfigError
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


def table_of_records(
    records: Sequence[Record],
    *,
    title: str,
    world: World,
    names: Mapping[str, str] | None = None,
    tasks: Sequence[str] = (),
    baseline: str | None = None,
) -> TableDeclaration:
    """Declare a table for whatever was recorded: titles and columns are the records' own.

    Args:
        records: Rows and columns are taken from the ok ones of `world`.
        title: Heading.
        world: Of the table.
        names: Display names of backbones; their order is the order of the rows.
        tasks: "protocol/dataset" in the order of the columns; others come after, by name.
        baseline: Backbone to compare with; left out if it has no record.

    Raises:
        ConfigError: There is no ok record of this world.
    """
    from maskclip_bench.results.table_measured import limits

    shown = [r for r in records if r.status == "ok" and r.cell.world == world]
    if not shown:
        raise ConfigError(
            f"There is no record of the {world} world yet. Make some: maskclip-bench run"
        )
    names = names or {}
    recorded = {record.cell.backbone for record in shown}
    backbones = [name for name in names if name in recorded]
    backbones += sorted(recorded.difference(backbones))
    columns: dict[tuple[str, str], ColumnDeclaration] = {}
    for record in sorted(shown, key=lambda r: (_position(tasks, r.task), r.task)):
        for metric in record.table_columns or [record.primary_metric or ""]:
            # Newer records know their titles; an older one of the same column does not hide them.
            known = columns.get((record.task, metric))
            if known is None or record.protocol_title is not None:
                columns[record.task, metric] = ColumnDeclaration(
                    group=protocol_title(record),
                    title=f"{record.cell.dataset}\n{metric_label(record, metric)}",
                    task=record.task,
                    metric=metric,
                )
    return TableDeclaration(
        title=title,
        world=world,
        limited=any(limits(record) for record in shown),
        columns=list(columns.values()),
        rows=[RowDeclaration(name=names.get(name, name), backbone=name) for name in backbones],
        baseline=baseline if baseline in backbones else None,
    )


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
