from __future__ import annotations

from pathlib import Path

import pytest

from maskclip_bench.config import Declaration
from maskclip_bench.errors import DataError
from maskclip_bench.job_folder import JobFolder, read_message


class Message(Declaration):
    text: str


def test_message__is_read_as_written(tmp_path: Path) -> None:
    path = JobFolder(tmp_path).write(Message(text="ä"))
    assert path == JobFolder(tmp_path).job
    assert read_message(path, Message) == Message(text="ä")


@pytest.mark.parametrize("content", [b"", b"{", b'{"other": 1}', b"\xff"])
def test_message__missing_or_damaged(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no job file: .*Run the suite again"):
        read_message(tmp_path / "none.json", Message)
    (tmp_path / "job.json").write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)is no job file: .*Run the suite again"):
        read_message(tmp_path / "job.json", Message)


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ('{"stage": "training", "done": 3, "total": 9}', ("training", 3, 9)),
        ('{"stage": "training", "done": 0, "total": 0}', ("training", 0, 1)),
        ('{"stage": "training", "done": null, "total": 9}', None),
        ('{"stage": "training"}', None),
        ("[1]", None),
        ('{"stage": "tr', None),
    ],
)
def test_progress__what_was_written_last(
    content: str, state: tuple[str, int, int] | None, tmp_path: Path
) -> None:
    folder = JobFolder(tmp_path)
    assert folder.read_progress() is None
    folder.progress.write_text(content)
    assert folder.read_progress() == state
