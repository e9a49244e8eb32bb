"""What the tests of a study's table say, in sentences; nothing beyond them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from maskclip_bench.results.table_model import Table, TableCell, TableRow, signed_points
from maskclip_bench.study.declaration import StudyDeclaration


def conclusions(table: Table, *, baseline: str | None, num_seeds: int) -> list[str]:
    """One sentence on how far the study is, then one for each row that is compared.

    Args:
        table: Built, with its differences tested and corrected.
        baseline: Backbone of the row compared with.
        num_seeds: Seeds that the study has.
    """
    named = {row.backbone: row.name for row in table.rows}
    rows = [row for row in table.rows if row.backbone not in (None, baseline)]
    if baseline not in named or not rows:
        return ["Nothing is compared yet: the baseline or all other rows are not measured."]
    sentences = [_how_far(table, num_seeds)]
    for row in rows:
        sentences += _of_row(row, table, named[baseline])
    return sentences


def _how_far(table: Table, num_seeds: int) -> str:
    counts = [cell.num_seeds for row in table.rows for cell in row.cells if cell.num_seeds]
    fewest = min(counts, default=0)
    if fewest < num_seeds:
        return (
            f"Unfinished: the row with the fewest has {fewest} of {num_seeds} seeds. What follows "
            "is a partial result, and no method is called better by it."
        )
    return f"All {num_seeds} seeds are measured."


def _of_row(row: TableRow, table: Table, baseline: str) -> list[str]:
    """Which columns are clearly above and below the baseline, which are not told apart."""
    pairs = list(zip(table.columns, row.cells, strict=True))
    tested = [(column, cell) for column, cell in pairs if cell.p_value is not None]
    if not tested:
        return [f"{row.name}: no test against {baseline} is possible yet (other seeds, or none)."]
    noise = "training and of the worlds" if _over_seeds(tested) else "the test images alone"
    parts = []
    for sign, word in ((1, "above"), (-1, "below")):
        clear = [
            f"{column.one_line} ({signed_points(cell.delta or 0.0, 1)})"
            for column, cell in tested
            if cell.is_clear and sign * (cell.delta or 0.0) > 0
        ]
        if clear:
            parts.append(f"clearly {word} {baseline} in {', '.join(clear)}")
    unclear = sum(not cell.is_clear for _, cell in tested)
    if not parts:
        parts.append(f"not told apart from {baseline} in any of {len(tested)} columns")
    elif unclear:
        parts.append(f"not told apart in the other {unclear}")
    return [f"{row.name}: {'; '.join(parts)}. The tests cover the noise of {noise}."]


def _over_seeds(tested: Sequence[tuple[object, TableCell]]) -> bool:
    return all(cell.covers == "seeds" for _, cell in tested)


def health_table(study: StudyDeclaration, runs: pd.DataFrame) -> str:
    """`runs.csv` as a Markdown table: held-out loss, best pass, quantizer and teacher of each run.

    Args:
        study: Whose.
        runs: The table.
    """
    columns = {
        "row": "row",
        "seed": "seed",
        "unseen_artist": "unseen artist",
        "passes": "passes",
        "cost": "cost",
        "held_out_loss_min": "held-out loss, smallest",
        "held_out_min_pass": "at pass",
        "held_out_loss_end": "at the end",
        "best_pass": "best pass (tune splits)",
        "codeword_perplexity_end": "codewords used",
        "codeword_row_perplexity_end": "a patch's",
        "codeword_turn_degrees_sum": "turned, degrees",
        "teacher_age_steps_end": "teacher's age, steps",
        "teacher_age_steps_set": "as set",
    }
    order = {row: position for position, row in enumerate(study.rows)}
    shown = runs.sort_values(
        by=["row", "seed"], key=lambda c: c.map(order) if c.name == "row" else c
    )
    lines = [f"| {' | '.join(columns.values())} |", f"| {' | '.join('---' for _ in columns)} |"]
    for record in shown.to_dict("records"):
        lines.append(f"| {' | '.join(_text(record.get(key)) for key in columns)} |")
    return "\n".join(lines)


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
