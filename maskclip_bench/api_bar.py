"""What `evaluate` shows while it works."""

from __future__ import annotations

from typing import Any


class TaskBar:
    """A progress bar for a terminal or a notebook; the stage of the current task beside it."""

    def __init__(self, num_tasks: int, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._progress = Progress(
            console=console, transient=True, disable=not shown or not _is_seen(console)
        )
        self._all = self._progress.add_task("tasks", total=num_tasks)
        self._stage = self._progress.add_task("", total=None, visible=False)
        self._started = False

    def __enter__(self) -> TaskBar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def total(self, num_tasks: int) -> None:
        """How many tasks there are to measure."""
        self._progress.update(self._all, total=num_tasks)

    def next(self, name: str, *, counts: bool = True) -> None:
        """The next task begins; `counts`: whether it is one of the total."""
        if self._started:
            self._progress.advance(self._all)
        self._started = counts
        self._progress.update(self._all, description=name)
        self._progress.update(self._stage, visible=False)

    def advance(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` of a stage of the current task."""
        self._progress.update(
            self._stage, description=stage, completed=done, total=total, visible=done < total
        )


def _is_seen(console: Any) -> bool:
    return bool(console.is_terminal or console.is_jupyter)
