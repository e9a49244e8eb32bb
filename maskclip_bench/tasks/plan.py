"""The plan: what this machine can do about every cell of a suite.

`make_plan` looks at what is on this machine and says of every cell whether it is recorded, ready,
can be made ready here (demo data, demo rows), or is left out and why. What was asked for by name is
not left out quietly: its cells are recorded as failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from maskclip_bench.backbones import (
    backbone_names,
    missing_weights,
    resolve_backbone,
    row_name,
    weights_folder,
)
from maskclip_bench.data.readers import forget
from maskclip_bench.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingDependencyError,
    StorageError,
    unknown_name,
)
from maskclip_bench.pretrain.same_recipe import made_by_recipe_of_today
from maskclip_bench.results.records import Record, RecordStore, row_id
from maskclip_bench.runtime import DATA_VARIABLE, Workspace
from maskclip_bench.tasks.cell import (
    Column,
    LeftOut,
    PlannedCell,
    Row,
    fingerprints_of,
    records_of,
    weights_identity,
)
from maskclip_bench.tasks.declaration import (
    HUB_PREFIX,
    TaskDeclaration,
    dataset_names,
    hub_name,
    load_task_declaration,
    missing_data,
)
from maskclip_bench.tasks.protocols import PROTOCOLS
from maskclip_bench.tasks.suite import SuiteDeclaration

if TYPE_CHECKING:
    from maskclip_bench.backbones.loading import Precision

logger = logging.getLogger(__name__)

BROKEN = "its file is broken"
"""Why a row or a data set of "*" is left out that cannot be read."""

LIST_TASKS = "List them with: maskclip-bench list tasks"


@dataclass(frozen=True)
class Named:
    """What a run was asked for by name: to leave that out is a failure."""

    rows: frozenset[str] = frozenset()
    datasets: frozenset[str] = frozenset()
    protocols: frozenset[str] = frozenset()

    @classmethod
    def of(cls, backbones: Iterable[str], tasks: Iterable[str]) -> Named:
        """From names of rows and patterns of columns, in which "*" names nothing."""
        parts = [whole_pattern(pattern).partition("/") for pattern in tasks]
        return cls(
            rows=frozenset(map(row_name, backbones)),
            datasets=frozenset(_stem(dataset) for _, _, dataset in parts) - {"*"},
            protocols=frozenset(protocol for protocol, _, _ in parts) - {"*"},
        )

    def asks(self, row: Row, column: Column) -> bool:
        """Whether both the row and the protocol were asked for by name."""
        return row.name in self.rows and column.protocol.name in self.protocols


def _stem(name: str) -> str:
    """The name of a declaration that may be given by the path of its file, or as `hf:ORG/NAME`."""
    if name.startswith(HUB_PREFIX):
        return hub_name(name)
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


@dataclass
class Plan:
    """What a suite comes to on this machine.

    Attributes:
        cells: Recorded, and to be made.
        pretraining: Rows whose weights must be made first.
        left_out: The rest, with the reason and the remedy.
        needs_demo: Whether the demo world must be there.
        limit: Images of each split that cells use; None = all.
        precision: Of the forward pass.
        validate: Whether dense cells validate while they train.
    """

    cells: list[PlannedCell] = field(default_factory=list)
    pretraining: list[Row] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    needs_demo: bool = False
    limit: int | None = None
    precision: Precision = "float32"
    validate: bool = False

    @property
    def open_cells(self) -> list[PlannedCell]:
        """Cells without a record."""
        return [cell for cell in self.cells if cell.recorded is None]


def make_plan(
    suite: SuiteDeclaration,
    workspace: Workspace,
    *,
    seeds: Sequence[int] = (0,),
    named: Named | None = None,
    limit: int | None = None,
    precision: Precision = "float32",
) -> Plan:
    """Say of every cell of the suite what this machine can do about it.

    Args:
        suite: Rows x columns.
        workspace: Where data, weights and records are.
        seeds: Pretraining seeds of the rows that are made here.
        named: What of it was asked for by name.
        limit: Images of each split to use; the records are kept apart (`records_of`).
        precision: Of the forward pass; a record of another one does not hold.

    Raises:
        UnknownNameError: The suite names a backbone, protocol or data set that does not exist.
        DataError: A record is damaged.
    """
    forget()  # listings of a plan made before: files may have changed since
    plan = Plan(limit=limit, precision=precision)
    named = named or Named()
    store = RecordStore(records_of(workspace, limit))
    columns = columns_of_suite(suite, plan.left_out)
    no_data = _absent_data(columns, workspace, named)
    plan.left_out += no_data.values()
    for row in _rows(suite, seeds, plan.left_out):
        missing = _missing_weights(row, workspace, named)
        no_weights = None if row.can_be_made else _absent_weights(row, missing, named)
        plan.left_out += [no_weights] if no_weights else []
        weights: Callable[[], str] = lambda: ABSENT  # noqa: E731
        if missing is None:
            weights = cache(partial(weights_now, row, workspace))  # takes seconds: only if needed
        if row.can_be_made and missing is None:
            _warn_of_another_recipe(row, workspace)
        cells = []
        for column in columns:
            if not _belongs(row, column, suite, named):
                continue
            absent = [item for item in (no_data.get(column.declaration.name), no_weights) if item]
            refused, unfit = (None, None) if absent else _unfit(row, column, named, limit)
            if unfit is not None:
                plan.left_out.append(unfit)
                absent = [unfit]
            if any(item.error is None for item in absent):
                continue
            cell = PlannedCell(row, column, None, asked=named.asks(row, column))
            if refused is not None or absent:
                cells.append(replace(cell, refused=refused or absent[0].error))
            else:
                recorded = _recorded(store, row, column, workspace, weights=weights, plan=plan)
                cells.append(replace(cell, recorded=recorded))
        plan.cells += cells
        if missing is not None and any(cell.is_to_measure for cell in cells):
            plan.pretraining.append(row)
    plan.needs_demo = any(cell.column.on_demo_data for cell in plan.cells if cell.is_to_measure)
    return plan


def only_failed(plan: Plan, workspace: Workspace) -> Plan:
    """The plan of the cells whose last record is a failure; nothing else is measured or shown."""
    store = RecordStore(records_of(workspace, plan.limit))

    def failed(cell: PlannedCell) -> bool:
        protocol, dataset = cell.column.protocol.name, cell.column.declaration.name
        record = store.load(cell.row_id, protocol, dataset)
        return record is not None and record.status == "failed"

    cells = [cell for cell in plan.cells if cell.recorded is None and failed(cell)]
    rows = {(cell.row.name, cell.row.seed) for cell in cells}
    return replace(
        plan,
        cells=cells,
        pretraining=[row for row in plan.pretraining if (row.name, row.seed) in rows],
        left_out=[],
        needs_demo=any(cell.column.on_demo_data for cell in cells if cell.is_to_measure),
    )


def _belongs(row: Row, column: Column, suite: SuiteDeclaration, named: Named) -> bool:
    """Whether the suite has the cell: one world, unless both sides were asked for by name."""
    both_named = row.name in named.rows and column.declaration.name in named.datasets
    if row.declaration.world != column.declaration.world and not both_named:
        return False
    name = f"{row.name}/{column.name}"
    return not any(fnmatch(name, pattern) for pattern in suite.without_cells)


def _rows(suite: SuiteDeclaration, seeds: Sequence[int], left_out: list[LeftOut]) -> list[Row]:
    """The suite's rows; a broken file among "*" is left out, one that is named is an error."""
    rows = []
    for name in backbone_names() if suite.backbones == "*" else suite.backbones:
        try:
            declaration = resolve_backbone(name)
        except ConfigError as error:
            if suite.backbones != "*":
                raise
            left_out.append(LeftOut(name, BROKEN, "Correct it.", error))
            continue
        depends_on_seed = declaration.depends_on_seed
        rows += [
            Row(declaration.name, declaration, seed)
            for seed in (seeds if depends_on_seed else (0,))
        ]
    return rows


def columns_of_suite(suite: SuiteDeclaration, left_out: list[LeftOut]) -> list[Column]:
    """The suite's columns, data set by data set, protocols in the order of `PROTOCOLS`.

    `left_out` gets what of "*" has a broken file; for errors see `columns_of`.
    """
    patterns = ["*/*"] if suite.tasks == "*" else suite.tasks
    return [
        column
        for column in columns_of(patterns, left_out=left_out)
        if not any(fnmatch(column.name, pattern) for pattern in suite.without_tasks)
    ]


def columns_of(
    patterns: Iterable[str],
    *,
    own: Mapping[str, TaskDeclaration] | None = None,
    left_out: list[LeftOut] | None = None,
) -> list[Column]:
    """The tasks that patterns name, each once.

    Args:
        patterns: "protocol/data set", either part may be "*"; see `whole_pattern`.
        own: Data sets that have no file, by name; they win over declared ones of the same name.
        left_out: Gets what of "*" has a broken file; without it that is an error.

    Raises:
        UnknownNameError: A protocol or data set does not exist, or the one is not measured by the
            other.
        ConfigError: A file that is named is wrong.
    """
    own = own or {}
    columns: dict[str, Column] = {}
    for pattern in patterns:
        protocol, _, dataset = whole_pattern(pattern, own).partition("/")
        if protocol != "*":
            PROTOCOLS.get_known(protocol)  # raises for one that does not exist
        tasks = _declared(dataset, own, left_out)
        found = [
            Column(PROTOCOLS[name], task)
            for task in tasks
            for name in PROTOCOLS
            if protocol in ("*", name) and name in task.protocols
        ]
        if not found:
            known = [f"{name}/{task.name}" for task in tasks for name in task.protocols]
            raise unknown_name("task", pattern, known, remedy=LIST_TASKS)
        columns |= {column.name: column for column in found}
    return list(columns.values())


def whole_pattern(pattern: str, own: Iterable[str] = ()) -> str:
    """A pattern with both parts.

    "my_birds", a data set (also "path/to/my_birds.yaml"), is all its protocols, "*/my_birds"; a
    protocol alone is "knn/*". What has both parts stays.

    Raises:
        UnknownNameError: It has one part, which is neither a data set nor a protocol.
    """
    if pattern.endswith((".yaml", ".yml")) and Path(pattern).is_file():
        return f"*/{pattern}"
    if pattern.startswith(HUB_PREFIX):
        return f"*/{pattern}"
    if "/" in pattern:
        return pattern
    datasets = [*own, *dataset_names()]
    if pattern in datasets:
        return f"*/{pattern}"
    if pattern in PROTOCOLS:
        return f"{pattern}/*"
    raise unknown_name(
        "task",
        pattern,
        [*datasets, *PROTOCOLS],
        remedy=f"A task is protocol/data set; either part may be *, or left out. {LIST_TASKS}",
    )


def _declared(
    dataset: str, own: Mapping[str, TaskDeclaration], left_out: list[LeftOut] | None
) -> list[TaskDeclaration]:
    """The data set of that name, or all of them for "*"; for `left_out` see `columns_of`."""
    if dataset != "*":
        return [own[dataset] if dataset in own else load_task_declaration(dataset)]
    tasks = []
    for name in dict.fromkeys([*own, *dataset_names()]):
        try:
            tasks.append(own[name] if name in own else load_task_declaration(name))
        except ConfigError as error:
            if left_out is None:
                raise
            if all(item.what != f"*/{name}" for item in left_out):
                left_out.append(LeftOut(f"*/{name}", BROKEN, "Correct it.", error))
    return tasks


def _absent_data(
    columns: Iterable[Column], workspace: Workspace, named: Named
) -> dict[str, LeftOut]:
    """Data sets that are not here and cannot be drawn here, by name."""
    absent: dict[str, LeftOut] = {}
    for column in columns:
        task = column.declaration
        missing = None if column.on_demo_data else missing_data(task, workspace)
        if missing is not None:
            error = DataError(
                f"{task.name}: {missing.rstrip('.')}. The data root is {workspace.data}; "
                f"{DATA_VARIABLE} sets another."
            )
            absent[task.name] = LeftOut(
                f"*/{task.name}",
                "its data is not on this machine",
                task.obtain,
                error if task.name in named.datasets else None,
            )
    return absent


def _missing_weights(row: Row, workspace: Workspace, named: Named) -> str | None:
    """What is missing of a row's weights; a named row of a zoo is downloaded when it is loaded."""
    if row.name in named.rows and row.declaration.downloads_by_itself:
        return None
    return missing_weights(row.declaration, workspace, row.seed)


def _warn_of_another_recipe(row: Row, workspace: Workspace) -> None:
    """Say if a row's weights were made by its recipe as it was before a change."""
    name = row.declaration.recipe
    assert name is not None
    folder = weights_folder(row.declaration, workspace, row.seed)
    if folder is not None and made_by_recipe_of_today(folder, name, row.seed) is False:
        logger.warning(
            "The weights of %s were made by another version of the recipe %s, and are measured as "
            "they are. To make them again, delete %s and the row's records in %s.",
            row.label,
            name,
            workspace.pretraining(name, row.seed),
            workspace.records / row_id(row.name, row.seed),
        )


def _absent_weights(row: Row, missing: str | None, named: Named) -> LeftOut | None:
    if missing is None:
        return None
    error = CheckpointError(f"{row.name}: {missing}")
    return LeftOut(
        row.name,
        "its weights are not on this machine",
        missing,
        error if row.name in named.rows else None,
    )


def _unfit(
    row: Row, column: Column, named: Named, limit: int | None
) -> tuple[BaseException | None, LeftOut | None]:
    """Why the protocol cannot measure the row: an error for its record, or a thing left out."""
    protocol = column.protocol
    try:
        protocol.settings_of(column.declaration)  # raises where they are wrong
        protocol.preset_version(column.declaration)  # or name a preset that there is not
        reason = protocol.left_out(column.declaration, row.declaration)
    except (KeyboardInterrupt, StorageError):
        raise
    except BaseException as error:  # wrong settings, or a protocol of another package
        return error, None
    if reason is None and limit is not None and protocol.runs_as_job:
        reason = f"{protocol.name} trains on whole splits, and a limit was given"
    if reason is None:
        return None, None
    what = f"{row.name} x {column.name}"
    kind = MissingDependencyError if protocol.missing_packages() else ConfigError
    asked = kind(f"{what}: {reason}.") if named.asks(row, column) else None
    return None, LeftOut(what, reason, "", asked)


ABSENT = "absent"
"""In place of the identity of weights that are not here; their records are kept."""

UNKNOWN = "unknown"
"""In place of the identity of weights that could not be read; measuring says why."""


def weights_now(row: Row, workspace: Workspace) -> str:
    """The identity of a row's weights; whatever is wrong with them is told when they are loaded."""
    try:
        return weights_identity(row, workspace)
    except (KeyboardInterrupt, StorageError):
        raise
    except BaseException:  # SystemExit in somebody's encoder, too
        logger.debug("no identity of %s", row.name, exc_info=True)
        return UNKNOWN


def _recorded(
    store: RecordStore,
    row: Row,
    column: Column,
    workspace: Workspace,
    *,
    weights: Callable[[], str],
    plan: Plan,
) -> Record | None:
    """The ok record of the cell, if what it depends on is still the same.

    A row whose weights were deleted after it was measured (they are ABSENT) keeps its records.
    Data that cannot be read leaves the cell to be measured, which says what is wrong with it.
    """
    record = store.load(row_id(row.name, row.seed), column.protocol.name, column.declaration.name)
    if record is None or record.status != "ok":
        return None
    changed = changed_parts(
        record, row, column, workspace, weights(), plan.limit, precision=plan.precision
    )
    return None if changed else record


def changed_parts(
    record: Record,
    row: Row,
    column: Column,
    workspace: Workspace,
    weights: str,
    limit: int | None = None,
    *,
    precision: Precision = "float32",
) -> dict[str, tuple[str, str]]:
    """What a record depends on that is not as it was: part -> (then, now); empty = all the same.

    Args:
        record: An ok record of the cell.
        row: The cell's row.
        column: The cell's column.
        workspace: Where the data is.
        weights: Identity of the row's weights now, or ABSENT.
        limit: Images of each split.
        precision: Of the forward pass.
    """
    then = record.fingerprints
    if missing_data(column.declaration, workspace) is not None:
        return {"data": (then.get("data", ""), "not on this machine")}
    if weights == ABSENT:
        weights = then.get("weights", "")
    try:
        now = fingerprints_of(
            column.protocol,
            column.declaration,
            row.declaration,
            workspace,
            weights=weights,
            limit=limit,
            precision=precision,
        )
    except (KeyboardInterrupt, StorageError):
        raise
    except BaseException as error:  # measuring says what is wrong, in the cell's record
        return {"data or settings": ("", f"cannot be read ({type(error).__name__}: {error})")}
    return {
        part: (then.get(part, "none"), now.get(part, "none"))
        for part in sorted({*then, *now})
        if then.get(part) != now.get(part)
    }
