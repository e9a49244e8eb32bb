"""Which rows and columns a report is of, what they are called, and their place in every chart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

from maskclip_bench.backbones.declaration import (
    BackboneDeclaration,
    backbone_names,
    load_backbone_declaration,
)
from maskclip_bench.backbones.resolve import row_name
from maskclip_bench.errors import ConfigError, MaskCLIPBenchError
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.results.table_catalogue import load_table
from maskclip_bench.results.table_model import TableDeclaration
from maskclip_bench.tasks.declaration import (
    TaskDeclaration,
    dataset_names,
    load_task_declaration,
)
from maskclip_bench.tasks.suite import SuiteDeclaration


@dataclass(frozen=True)
class ReportRow:
    """A backbone with the seeds that are recorded.

    Attributes:
        backbone: Its name.
        label: What the page calls it.
        seeds: Sorted.
        series: Its place among the rows: colour and marker.
        declaration: Its file, where there is one.
    """

    backbone: str
    label: str
    seeds: tuple[int, ...]
    series: int
    declaration: BackboneDeclaration | None = None


@dataclass(frozen=True)
class Selection:
    """Recorded cells of a report.

    Attributes:
        title: Of the page.
        rows: In the order of the page.
        tasks: "protocol/dataset" in the order of the page.
        records: (backbone, task) -> seed -> record, ok or failed.
        tables: Names of declared tables that are shown.
        baseline: Row that the generated table and the pictures compare with.
        datasets: Declarations of the tasks' data sets, where there are files.
    """

    title: str
    rows: list[ReportRow]
    tasks: list[str]
    records: dict[tuple[str, str], dict[int, Record]]
    tables: list[str] = field(default_factory=list)
    baseline: str | None = None
    datasets: dict[str, TaskDeclaration] = field(default_factory=dict)

    def all(self) -> list[Record]:
        """Every record, row by row."""
        return [
            record
            for row in self.rows
            for task in self.tasks
            for _, record in sorted(self.records.get((row.backbone, task), {}).items())
        ]

    def row(self, backbone: str) -> ReportRow:
        """The row of a backbone."""
        return next(row for row in self.rows if row.backbone == backbone)

    def has(self, backbone: str) -> bool:
        """Whether it is among the rows."""
        return any(row.backbone == backbone for row in self.rows)

    def higher_is_better(self, task: str | None, metric: str | None) -> bool:
        """Direction of a metric, as its records say; up where none does."""
        for (_, known), by_seed in self.records.items():
            for record in by_seed.values() if known == task else ():
                if metric in record.metrics:
                    return record.metrics[metric].higher_is_better
        return True

    def ok(self, backbone: str, task: str) -> dict[int, Record]:
        """Scores of a cell by seed."""
        found = self.records.get((backbone, task), {})
        return {seed: record for seed, record in sorted(found.items()) if record.status == "ok"}


def select(
    store: RecordStore,
    *,
    suite: SuiteDeclaration | None = None,
    backbones: Sequence[str] = (),
    tasks: Sequence[str] = (),
    title: str | None = None,
) -> Selection:
    """The recorded cells of a suite, or of named rows and columns, or all that are recorded.

    Args:
        store: The records.
        suite: Rows and columns; its tables are shown.
        backbones: Only these rows, the first of them is the baseline; none = all.
        tasks: Only these columns, "protocol/dataset" with "*" for any; none = all.
        title: Of the page; None makes one.

    Raises:
        ConfigError: Nothing of it is recorded.
        DataError: A record was written by a newer version.
        StorageError: A record cannot be read.
    """
    wanted_rows = [row_name(name) for name in backbones] or _rows_of(suite)
    records: dict[tuple[str, str], dict[int, Record]] = {}
    for record in store.all():
        cell = record.cell
        if (
            (not wanted_rows or cell.backbone in wanted_rows)
            and _has_task(cell.task, suite, tasks)
            and not _excluded(cell.backbone, cell.task, suite)
        ):
            records.setdefault((cell.backbone, cell.task), {})[cell.seed] = record
    if not records:
        what = ", ".join([*backbones, *tasks]) or "this suite"
        raise ConfigError(
            f"Nothing of {what} is recorded in {store.root}. Measure it first: maskclip-bench run"
        )
    found = {backbone for backbone, _ in records}
    declared = [] if suite is None else _tables_of(suite)
    in_tables = [row.backbone for table in declared for row in table.rows if row.backbone]
    order = [*wanted_rows, *in_tables, *backbone_names(), *sorted(found)]
    order = [name for name in dict.fromkeys(order) if name in found]
    baselines = [table.baseline for table in declared if table.baseline in found]
    rows = [_row(name, records, position) for position, name in enumerate(order)]
    datasets = _declared({task.partition("/")[2] for _, task in records})
    return Selection(
        title=title or "Transfer of image and image-text encoders",
        rows=rows,
        tasks=_in_order({task for _, task in records}),
        records=records,
        tables=list(suite.tables) if suite and not backbones and not tasks else [],
        baseline=order[0] if backbones else next(iter(baselines), order[0]),
        datasets=datasets,
    )


def _rows_of(suite: SuiteDeclaration | None) -> list[str]:
    return [] if suite is None or suite.backbones == "*" else list(suite.backbones)


def _tables_of(suite: SuiteDeclaration) -> list[TableDeclaration]:
    found = []
    for name in suite.tables:
        try:
            found.append(load_table(name))
        except MaskCLIPBenchError:  # the page says so where it shows the tables
            continue
    return found


def _has_task(task: str, suite: SuiteDeclaration | None, patterns: Sequence[str]) -> bool:
    if patterns:
        return _matches(task, patterns)
    return suite is None or suite.tasks == "*" or _matches(task, suite.tasks)


def _matches(task: str, patterns: Iterable[str]) -> bool:
    """Whether protocol and data set match a pattern's two parts."""
    protocol, _, dataset = task.partition("/")
    return any(
        fnmatch(protocol, first) and fnmatch(dataset, second or "*")
        for first, _, second in (pattern.partition("/") for pattern in patterns)
    )


def _excluded(backbone: str, task: str, suite: SuiteDeclaration | None) -> bool:
    return suite is not None and (
        any(fnmatch(task, pattern) for pattern in suite.without_tasks)
        or any(fnmatch(f"{backbone}/{task}", pattern) for pattern in suite.without_cells)
    )


def _row(
    backbone: str, records: dict[tuple[str, str], dict[int, Record]], position: int
) -> ReportRow:
    seeds = {seed for (name, _), by_seed in records.items() if name == backbone for seed in by_seed}
    declaration = None
    if backbone in backbone_names():
        try:
            declaration = load_backbone_declaration(backbone)
        except MaskCLIPBenchError:  # its file changed since; the record is what counts here
            declaration = None
    label = declaration.display_name if declaration else backbone
    return ReportRow(backbone, label, tuple(sorted(seeds)), position, declaration)


def _declared(names: set[str]) -> dict[str, TaskDeclaration]:
    """Declarations of the data sets that have a file that can be read."""
    known = set(dataset_names())
    found = {}
    for name in sorted(names & known):
        try:
            found[name] = load_task_declaration(name)
        except MaskCLIPBenchError:  # as above
            continue
    return found


ORDER = (
    "zero_shot_classification",
    "linear_probe",
    "finetune",
    "few_shot",
    "knn",
    "retrieval",
    "zero_shot_segmentation",
    "linear_segmentation",
    "knn_segmentation",
    "segmentation",
    "detection",
)
"""Protocols as papers order them; others come after, by name."""


def _in_order(tasks: set[str]) -> list[str]:
    def place(task: str) -> tuple[int, str, str]:
        protocol, _, dataset = task.partition("/")
        rank = ORDER.index(protocol) if protocol in ORDER else len(ORDER)
        return rank, protocol, dataset

    return sorted(tasks, key=place)
