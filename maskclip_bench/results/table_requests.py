"""Tables that a person asks for: a declared one by its name, or recorded rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maskclip_bench.errors import ConfigError
from maskclip_bench.results.records import RecordStore
from maskclip_bench.results.reference import ReferenceRow
from maskclip_bench.results.table_model import Table
from maskclip_bench.results.tables import (
    build_table,
    choose_records,
    load_table,
    recorded_tables,
)


def declared_table(
    name: str,
    store: RecordStore,
    *,
    references: Sequence[ReferenceRow] = (),
    chance: bool = False,
    baseline: str | None = None,
) -> Table:
    """A declared table, filled.

    Args:
        name: Of the table, or the path of its file.
        store: Of the records.
        references: Published numbers.
        chance: Add a row with the score of guessing.
        baseline: Another row to compare with than the declared one.

    Raises:
        UnknownNameError: There is no such table.
        ConfigError: The baseline is none of its measured rows, or its cells do not fit each other.
    """
    declaration = load_table(name)
    if baseline is not None:
        known = [row.backbone for row in declaration.rows if row.backbone]
        if baseline not in known:
            raise ConfigError(
                f"The baseline {baseline!r} is not a measured row of the table {name!r}. Use one "
                f"of {', '.join(known)}."
            )
        declaration = declaration.model_copy(update={"baseline": baseline})
    return build_table(declaration, store, references=references, chance=chance)


def tables_of(
    store: RecordStore,
    rows: Sequence[str],
    tasks: Sequence[str],
    *,
    names: Mapping[str, str] | None = None,
    chance: bool = True,
    baseline: str | None = None,
) -> list[Table]:
    """Recorded rows and columns as tables, one a world; the first row is the baseline.

    Args:
        store: Of the records.
        rows: Backbones, by name or shell pattern, in the order of the table; none = all.
        tasks: "protocol/dataset", likewise; not both may be empty.
        names: What tables call backbones.
        chance: Add a row with the score of guessing.
        baseline: Another row to compare with.

    Raises:
        UnknownNameError: A name or pattern fits no record.
        ConfigError: Nothing was named, nothing fits both, or the cells do not fit each other.
    """
    if not rows and not tasks:
        raise ConfigError(
            "Say which table: a name (see: maskclip-bench list tables), or recorded rows and "
            "columns with -b and -t."
        )
    chosen = choose_records(store.all(), rows, tasks)
    if not chosen:
        raise ConfigError(
            "No record fits both the rows and the tasks. What there is: maskclip-bench results ls"
        )
    recorded = {record.cell.backbone for record in chosen}
    order = [name for name in dict.fromkeys(rows) if name in recorded]
    order += sorted(recorded.difference(order))
    return recorded_tables(
        chosen,
        store,
        names={name: (names or {}).get(name, name) for name in order},
        chance=chance,
        baseline=baseline,
    )
