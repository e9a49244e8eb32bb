"""The notes below a table: what its marks mean, where numbers come from, what is absent."""

from __future__ import annotations

from collections.abc import Sequence

from maskclip_bench.results.table_model import TableCell, TableDeclaration, TableRow

TIED_NOTE = (
    "≈ Not told apart from the best of its column: p > 0.05 in a paired test (by training seed, or "
    "by sample), corrected for all pairs of rows and columns (Holm)."
)


def table_notes(
    declaration: TableDeclaration,
    rows: Sequence[TableRow],
    *,
    absent_rows: Sequence[TableRow],
    absent_columns: Sequence[str],
    limits: str,
) -> list[str]:
    """What the marks of a table mean, what was compared and corrected, and what is absent.

    Args:
        declaration: Of the table.
        rows: With numbers, as shown.
        absent_rows: The rows left out, none of which has a number.
        absent_columns: Likewise names of columns.
        limits: Limits under which the cells were measured; empty for full runs.
    """
    cells = [cell for row in rows for cell in row.cells]
    notes = []
    if limits:
        notes.append(
            f"Limited run ({limits}): a check of the setup, not comparable with full runs."
        )
    notes += _spread_notes(cells, data_by_seed=declaration.data_by_seed)
    notes += _mark_notes(rows)
    notes += _difference_notes(declaration, rows)
    if declaration.world == "demo":
        notes.append("Demo world: drawn scenes; not comparable with published numbers.")
    notes += _published_notes(declaration, rows)
    notes += _failure_notes(declaration, rows)
    if absent_columns:
        notes.append("Not measured in any row: " + ", ".join(absent_columns) + ".")
    notes += _absence_notes(rows, absent_rows)
    return list(dict.fromkeys(notes))


def _spread_notes(cells: Sequence[TableCell], *, data_by_seed: bool) -> list[str]:
    """What stands after ±."""
    counts = sorted({cell.num_seeds for cell in cells if cell.num_seeds > 1})
    notes = []
    if counts:
        seeds = " or ".join(str(count) for count in counts)
        worlds = ", each with a world of its own" if data_by_seed else ""
        notes.append(f"Mean ± standard deviation over {seeds} training seeds{worlds}.")
    if any(cell.half_width is not None and cell.num_seeds == 1 for cell in cells):
        where = "Cells with one training run: ±" if counts else "±:"
        notes.append(
            f"{where} longer side of the 95 % interval over the test images, by drawing or image."
        )
    return notes


def _mark_notes(rows: Sequence[TableRow]) -> list[str]:
    """What bold, underlined and tied mean."""
    marked = [row for row in rows if any(cell.best for cell in row.cells)]
    if not marked:
        return []
    note = "Bold: best of its column"
    if any(cell.second for row in rows for cell in row.cells):
        note += "; underlined: second best"
    if any(row.is_published for row in rows) and not all(row.is_published for row in rows):
        note += "; measured rows among themselves, published rows among themselves"
    notes = [f"{note}. Equal numbers share a mark."]
    if any(cell.tied for row in rows for cell in row.cells):
        notes.append(TIED_NOTE)
    return notes


ERROR_LENGTH = 160
"""Characters of an error in a note; the record has all of it."""


def _failure_notes(declaration: TableDeclaration, rows: Sequence[TableRow]) -> list[str]:
    """Each error once, with the row and the columns that it left without a score."""
    failures: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for cell, column in zip(row.cells, declaration.columns, strict=True):
            if cell.origin == "failed":
                first = cell.error.splitlines()[0] if cell.error else "no message"
                if len(first) > ERROR_LENGTH:
                    first = f"{first[: ERROR_LENGTH - 1].rstrip()}…"
                failures.setdefault((row.name, first), []).append(column.one_line)
    return [
        f"Failed, so without a score: {name} in {', '.join(columns)} ({error})."
        for (name, error), columns in failures.items()
    ]


def _absence_notes(rows: Sequence[TableRow], absent: Sequence[TableRow]) -> list[str]:
    """Rows left out, by name; with its group where a row of the same name is shown."""
    shown = {row.name for row in rows}
    names: dict[bool, list[str]] = {True: [], False: []}
    for row in absent:
        described = f"{row.name} ({row.group})" if row.group and row.name in shown else row.name
        names[row.backbone is not None].append(described)
    notes = []
    if names[True]:
        notes.append("Not measured here, so left out: " + ", ".join(names[True]) + ".")
    if names[False]:
        notes.append("No published number for these columns: " + ", ".join(names[False]) + ".")
    return notes


def _difference_notes(declaration: TableDeclaration, rows: Sequence[TableRow]) -> list[str]:
    """What a signed number is, what a star says, and what the star does not say."""
    found = [
        (row.name, cell, column.one_line)
        for row in rows
        for cell, column in zip(row.cells, declaration.columns, strict=True)
        if cell.delta is not None
    ]
    name = next((r.name for r in declaration.rows if r.backbone == declaration.baseline), "")
    others = _of_other_seeds(declaration, rows)
    if not found:
        return others
    note = f"Signed: difference to {name}, in points"
    tested = [cell for _, cell, _ in found if cell.p_value is not None]
    if not tested:
        return [f"{note}.", *others]
    units = {"seeds": "training seed", "samples": "sample"}
    paired = [unit for covers, unit in units.items() if any(c.covers == covers for c in tested)]
    note += f"; * p ≤ 0.05, paired by {' or '.join(paired)}"
    if len(tested) > 1:
        note += f", corrected for {len(tested)} comparisons (Holm)"
    notes = [f"{note}.", *others]
    untested: dict[str, list[str]] = {}
    for row, cell, column in found:
        if cell.p_value is None:
            untested.setdefault(column, []).append(row)
    by_rows: dict[str, list[str]] = {}
    for column, names in untested.items():
        every = sum(other == column for _, _, other in found) == len(names)
        by_rows.setdefault("" if every else f" of {', '.join(names)}", []).append(column)
    for which, columns in by_rows.items():
        notes.append(f"No test of the differences{which} in: {', '.join(columns)}.")
    if "sample" in paired:
        which = "Differences paired by sample" if len(paired) > 1 else "Differences"
        notes.append(
            f"{which} are of one training run a row: * covers the noise of the test images, not "
            "that of training with another seed."
        )
    return notes


def _of_other_seeds(declaration: TableDeclaration, rows: Sequence[TableRow]) -> list[str]:
    """Where each seed has data of its own: the rows without differences for that reason."""
    base = next((row for row in rows if row.backbone == declaration.baseline), None)
    if not declaration.data_by_seed or base is None:
        return []
    names = [
        row.name
        for row in rows
        if row.backbone not in (None, declaration.baseline)
        and any(
            cell.value is not None and cell.delta is None and base.cells[index].value is not None
            for index, cell in enumerate(row.cells)
        )
    ]
    if not names:
        return []
    return [
        f"Of other seeds than {base.name}, so of other worlds, and neither compared nor marked: "
        f"{', '.join(names)}."
    ]


def _published_notes(declaration: TableDeclaration, rows: Sequence[TableRow]) -> list[str]:
    """Where published numbers stand, and where their source is silent about the preset."""
    rows = [row for row in rows if row.is_published]
    if not rows:
        return []
    found: dict[str, dict[str, dict[str, None]]] = {}  # where it was read -> paper -> its tables
    for row in rows:
        for cell in row.cells:
            for source in cell.sources:
                paper, _, table = source.citation.partition(", ")
                found.setdefault(source.read_in, {}).setdefault(paper, {})[table] = None
    places = [
        ", ".join(", ".join([paper, *filter(None, tables)]) for paper, tables in papers.items())
        + f" (read in {place})"
        for place, papers in found.items()
    ]
    notes = [f"† Published, not measured here: {'; '.join(places)}."]
    silent = []
    for index, column in enumerate(declaration.columns):
        published = [row for row in rows if row.cells[index].value is not None]
        without = [row.name for row in published if row.cells[index].preset is None]
        if without:
            which = "all rows" if len(without) == len(published) else ", ".join(without)
            silent.append(f"{column.one_line} ({which})")
    if silent:
        notes.append(f"Preset not stated by the source: {'; '.join(silent)}.")
    return notes
