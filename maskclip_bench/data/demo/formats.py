"""The file formats of the real sets, as bytes: JPEG, PNG, webdataset tar, COCO run lengths."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

JPEG_QUALITY = 92


def jpeg_bytes(image: Image.Image) -> bytes:
    """A JPEG file without chroma subsampling, which would blur so small a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def png_bytes(labels: NDArray[np.uint8]) -> bytes:
    """A grey PNG file of labels, uint8 [H, W]."""
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def json_bytes(value: Any) -> bytes:
    """A compact JSON file."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return (text + "\n").encode()


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar file whose bytes depend on nothing but names and contents (no times, no owners)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o644
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding of a mask [H, W].

    Runs go down the columns and begin with the number of zeros
    (https://github.com/cocodataset/cocoapi, `common/maskApi.h`).

    Example:
        >>> run_lengths(np.array([[False, True], [True, True]]))
        {'counts': [1, 3], 'size': [2, 2]}
    """
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])  # starts and ends of runs of ones
    edges = np.concatenate([[0], changes, [mask.size]])
    counts = np.diff(edges)
    if counts[-1] == 0:
        counts = counts[:-1]
    return {"counts": counts.tolist(), "size": list(mask.shape)}


def bounding_box(mask: NDArray[np.bool_]) -> list[float]:
    """COCO's box of a mask [H, W]: left, top, width, height in pixels.

    Example:
        >>> bounding_box(np.array([[False, False], [False, True]]))
        [1.0, 1.0, 1.0, 1.0]
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [
        float(left),
        float(top),
        float(int(columns[-1]) - left + 1),
        float(int(rows[-1]) - top + 1),
    ]
