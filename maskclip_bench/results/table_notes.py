"""The notes below a table: what its marks mean, where numbers come from, what is absent."""

from __future__ import annotations

from collections.abc import Sequence

from maskclip_bench.results.table_model import TableCell, TableDeclaration, TableRow


def table_notes(
    declaration: TableDeclaration,
    rows: Sequence[TableRow],
    *,
    absent_rows: Sequence[str],
    absent_columns: Sequence[str],
    limits: str,
) -> list[str]:
    """What the marks of a table mean, what was compared and corrected, and what is absent.

    Args:
        declaration: Of the table.
        rows: With numbers, as shown.
        absent_rows: Names of the rows left out, none of which has a number.
        absent_columns: Likewise of columns.
        limits: Limits under which the cells were measured; empty for full runs.
    """
    cells = [(row, cell) for row in rows for cell in row.cells]
    notes = []
    if limits:
        notes.append(
            f"Limited run ({limits}): a check of the setup, not comparable with full runs."
        )
    one_seed = any(cell.half_width is not None and cell.num_seeds == 1 for _, cell in cells)
    counts = sorted({cell.num_seeds for _, cell in cells if cell.num_seeds > 1})
    if counts:
        seeds = " or ".join(str(count) for count in counts)
        worlds = ", each with a world of its own" if declaration.data_by_seed else ""
        notes.append(f"Mean ± standard deviation over {seeds} training seeds{worlds}.")
    if one_seed:
        where = "Cells with one training run: ±" if counts else "±:"
        notes.append(
            f"{where} longer side of the 95 % interval over the test images, by drawing or image."
        )
    notes += _difference_notes(declaration, [cell for _, cell in cells])
    if declaration.world == "demo":
        notes.append("Demo world: drawn scenes; not comparable with published numbers.")
    notes += _published_notes(declaration, rows)
    for row, cell in cells:
        if cell.origin == "failed":
            first = cell.error.splitlines()[0][:160]
            notes.append(f"Failed, so without a score: {row.name} ({first}).")
    if absent_columns:
        notes.append("Not measured in any row: " + ", ".join(absent_columns) + ".")
    if absent_rows:
        notes.append("Without any number here: " + ", ".join(absent_rows) + ".")
    return list(dict.fromkeys(notes))


def _difference_notes(declaration: TableDeclaration, cells: Sequence[TableCell]) -> list[str]:
    """What a signed number is, what a star says, and what the star does not say."""
    if all(cell.delta is None for cell in cells):
        return []
    name = next(row.name for row in declaration.rows if row.backbone == declaration.baseline)
    note = f"Signed: difference to {name}, in points"
    tested = [cell for cell in cells if cell.p_value is not None]
    if not tested:
        return [f"{note}."]
    units = {"seeds": "training seed", "samples": "sample"}
    paired = [unit for covers, unit in units.items() if any(c.covers == covers for c in tested)]
    note += f"; * p ≤ 0.05, paired by {' or '.join(paired)}"
    if len(tested) > 1:
        note += f", corrected for {len(tested)} comparisons (Holm)"
    notes = [f"{note}."]
    if "sample" in paired:
        which = "Differences paired by sample" if len(paired) > 1 else "Differences"
        notes.append(
            f"{which} are of one training run a row: * covers the noise of the test images, not "
            "that of training with another seed."
        )
    return notes


def _published_notes(declaration: TableDeclaration, rows: Sequence[TableRow]) -> list[str]:
    """Where published numbers stand, and where their source is silent about the preset."""
    rows = [row for row in rows if row.is_published]
    if not rows:
        return []
    tables: dict[str, dict[str, None]] = {}  # source -> its tables, in order
    for row in rows:
        for cell in row.cells:
            for part in cell.sources:
                table, _, source = part.partition(": ")
                tables.setdefault(source, {})[table] = None
    listing = "; ".join(f"{', '.join(names)}: {source}" for source, names in tables.items())
    notes = [f"† Published, not measured here. {listing}."]
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
