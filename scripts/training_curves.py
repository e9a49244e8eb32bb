r"""Curves of some runs against each other, from their `log.jsonl`: a table and a figure.

    python scripts/training_curves.py workspace/pretrain/continued/clip_demo/seed0 \
        workspace/pretrain/continued/maskclip_demo/seed0 --every 60 --figure docs/continuation.png

Prints a Markdown table with a line for each step that all runs have; the figure shows every step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskclip_bench.training.logs import read_log

Curve = dict[int, float]
"""Step -> value."""


def curve(folder: Path, key: str) -> Curve:
    """The values of a key in a run's log."""
    return {line["step"]: line[key] for line in read_log(folder) if key in line}


def table(curves: dict[str, Curve], every: int) -> str:
    """Markdown: a line for every so many steps that all runs have, and for the last.

    Raises:
        SystemExit: There is no such step.
    """
    shared = sorted(set.intersection(*(set(found) for found in curves.values())))
    if not shared:
        raise SystemExit("The runs have no step in common; were they logged with the same key?")
    lines = [
        "| step | " + " | ".join(curves) + " |",
        "| --- |" + " --- |" * len(curves),
    ]
    for step in shared:
        if step % every == 0 or step == shared[-1]:
            values = " | ".join(f"{found[step]:.3f}" for found in curves.values())
            lines.append(f"| {step} | {values} |")
    return "\n".join(lines)


def figure(curves: dict[str, Curve], label: str, path: Path) -> None:
    """One line a run."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    for name, found in curves.items():
        axes.plot(list(found), list(found.values()), label=name, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel(label.replace("_", " "))
    axes.legend(frameon=False)
    canvas.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(canvas)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write the figure if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--key", default="held_out_contrastive_loss", help="of log.jsonl")
    parser.add_argument("--every", type=int, default=1, help="steps between lines of the table")
    parser.add_argument("--figure", type=Path, help="write a PNG too")
    options: Any = parser.parse_args(arguments)
    curves = {run.parent.name: curve(run, options.key) for run in options.runs}
    print(table(curves, options.every))
    if options.figure is not None:
        figure(curves, options.key, options.figure)


if __name__ == "__main__":
    main()
