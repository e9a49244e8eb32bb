"""The frame of the hardening tests: commands without traceback or hang, damage, fuzz, hostile text.

A test of this folder takes something that works, harms it (a kill, a full disk, a flipped bit, a
name with an escape sequence), and asserts what docs/trust.md promises: a documented exit code, one
sentence, nothing that was written before is lost, no wrong number.

    run = command("table", "demo", workspace=folder)      a process of its own
    run.assert_clean()                                     no traceback, documented exit code
    for name, content in damaged(path.read_bytes()): ...   cut, emptied, one bit, zeros, ...
    for content in fuzzed(valid, seed=0, number=30): ...   the same inputs every time
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from maskclip_bench.errors import (
    EXIT_DATA,
    EXIT_DEPENDENCY,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STORAGE,
    EXIT_USAGE,
)

DOCUMENTED = {
    0,
    EXIT_FAILED,
    EXIT_USAGE,
    EXIT_DATA,
    EXIT_STORAGE,
    EXIT_DEPENDENCY,
    EXIT_INTERRUPTED,
}

SECONDS = 300.0
"""Longer than this is a hang; the machine may be busy."""

HOSTILE_TEXTS = {
    "markup": "x[/bold]",
    "link": "[link=https://evil.example]x[/link]",
    "colour": "\x1b[31mred\x1b[0m",
    "terminal link": "\x1b]8;;https://evil.example\x07x\x1b]8;;\x07",
    "8-bit escape": "\x9b31m",
    "line break": "a\nb\rc",
    "bidirectional": "abc\u202egnp.exe",
    "invisible": "a\u200bb\ufeff",
    "formula": "=HYPERLINK(1)",
    "column": "a|b",
    "script": "<script>alert(1)</script>",
    "latex": "\\input{/etc/passwd}",
    "long": "x" * 5000,
}

HOSTILE_NAMES = {
    "space": " a b ",
    "line break": "a\nb",
    "tab": "a\tb",
    "quote": "a'b\"c",
    "dash": "-rf",
    "bracket": "a[/bold]b",
    "escape": "a\x1b[2Jb",
    "bidirectional": "a\u202eb",
    "umlaut": "ä\u0308",
    "percent": "a%20b$HOME`x`",
    "long": "x" * 120,
}
"""Names that a folder may have on Linux."""


@dataclass(frozen=True)
class Run:
    """What a command did."""

    arguments: tuple[str, ...]
    code: int
    output: str
    errors: str

    def assert_clean(self, *codes: int) -> None:
        """No traceback, nothing that acts on a terminal, and one of the documented exit codes."""
        text = self.output + self.errors
        assert "Traceback (most recent call last)" not in text, f"{self.arguments}\n{text}"
        assert self.code in (codes or DOCUMENTED), f"{self.arguments}: {self.code}\n{text}"
        acting = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        assert acting is None, f"{self.arguments}: {acting!r}"


def command(*arguments: str, timeout: float = SECONDS, **variables: str) -> Run:
    """Run `maskclip-bench` in a process of its own; a hang is an error."""
    environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1", **variables}
    result = subprocess.run(
        [sys.executable, "-m", "maskclip_bench", *arguments],
        capture_output=True,
        timeout=timeout,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Run(
        arguments,
        result.returncode,
        result.stdout.decode("utf-8", "replace"),
        result.stderr.decode("utf-8", "replace"),
    )


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in the body if it takes longer (main thread, systems with SIGALRM)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {seconds} s: a hang")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def damaged(content: bytes) -> Iterator[tuple[str, bytes]]:
    """What disks, copies and editors do to a file: cut at several lengths, one bit, and more."""
    size = len(content)
    for share in (0.0, 0.1, 0.5, 0.9):
        yield f"cut at {share:.0%}", content[: int(size * share)]
    yield "one byte less", content[:-1]
    for share in (0.02, 0.3, 0.7, 0.98):
        position = int(size * share)
        flipped = bytes([content[position] ^ 1])
        yield f"one bit at {share:.0%}", content[:position] + flipped + content[position + 1 :]
    yield "zeros in the middle", content[: size // 3] + bytes(size // 3) + content[2 * size // 3 :]
    yield "all zeros", bytes(size)
    yield "text", b"<html>404 Not Found</html>"
    yield "twice", content + content
    yield "one byte more", content + b"\x00"


TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"\n", b"  ", b"- ", b"null", b"true", b"NaN",
    b"1e999", b"-1", b"9" * 30, b"0x1F", b"2024-01-01", b"&a [*a]", b"*b",
    b"!!python/object:os.system",
    b"<<: *a", b"_base_: 5", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 2000, b"{a: " * 300,
    "\u202e".encode(), b"\x1b[2J",
)  # fmt: skip


def fuzzed(content: bytes, *, seed: int, number: int) -> Iterator[bytes]:
    """`number` mutations of a valid file, the same for the same seed."""
    draw = random.Random(f"{seed}/{len(content)}")
    for _ in range(number):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 5, 20))):
            position = draw.randrange(len(changed) + 1)
            kind = draw.randrange(6)
            if kind == 0 and changed:
                changed[position % len(changed)] ^= 1 << draw.randrange(8)
            elif kind == 1:
                changed[position:position] = draw.choice(TOKENS)
            elif kind == 2:
                del changed[position : position + draw.randrange(1, 40)]
            elif kind == 3:
                changed[position : position + 8] = draw.randbytes(8)
            elif kind == 4:
                start = draw.randrange(len(changed) + 1)
                changed[position:position] = changed[start : start + draw.randrange(1, 200)]
            elif kind == 5 and draw.random() < 0.2:
                del changed[position:]
        yield bytes(changed)
