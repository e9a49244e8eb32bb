"""Reading ranges of bytes of large files, from any process, with a bounded number of open files."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from maskclip_bench.data.pairs.pair_sources import BROKEN_IMAGE, BadSampleError
from maskclip_bench.errors import DataError
from maskclip_bench.regular_file import open_regular

MAX_OPEN_FILES = 128
"""Open files each process keeps."""

MAX_BYTES = 1 << 28
"""Bytes of the largest image or text that is read (256 MiB)."""


class FileReader:
    """Reads ranges of bytes; keeps the last files open.

    Reads name their offset, so a forked process can share the open files of its parent.
    """

    def __init__(self) -> None:
        self._descriptors: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """`size` bytes of `path` from `offset`; fewer at its end.

        Raises:
            DataError: There is no such regular file.
            BadSampleError: The range is larger than any image.
            OSError: The file cannot be read.
        """
        if size > MAX_BYTES:
            raise BadSampleError(BROKEN_IMAGE, f"it has {size:,} bytes, {MAX_BYTES:,} are allowed")
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._open(path)
            self._descriptors[path] = descriptor
            if len(self._descriptors) > MAX_OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
        else:
            self._descriptors.move_to_end(path)
        return os.pread(descriptor, size, offset)

    def _open(self, path: Path) -> int:
        try:
            with open_regular(path) as file:
                return os.dup(file.fileno())
        except (DataError, OSError):
            if not self._descriptors:
                raise
            self.close()  # the process may have too many open files
            return self._open(path)

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._descriptors = OrderedDict()


def inflate(data: bytes, *, size: int) -> bytes:
    """Unpack raw deflate data to at most `size` bytes.

    Raises:
        BadSampleError: The data is broken, or larger than any image.
    """
    if size > MAX_BYTES:
        raise BadSampleError(BROKEN_IMAGE, f"it has {size:,} bytes, {MAX_BYTES:,} are allowed")
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(1, size))
    except zlib.error as error:
        raise BadSampleError(BROKEN_IMAGE, f"broken zip data: {error}") from None
