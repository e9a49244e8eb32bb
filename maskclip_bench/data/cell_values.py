"""Values of lists (JSON, Parquet, Hugging Face) as labels, captions and groups.

`str` makes a text of anything: `None`, a list, 2.0. As a label, caption or group such a text is a
fault that no score shows, so each is refused here, or read as what it means.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def key_of(value: Any) -> str:
    """What the files call a class, group or split; empty where a list says nothing.

    A float that is a whole number is that number: columns with gaps are floats in many libraries.

    Raises:
        ValueError: It is no text and no whole number.

    Example:
        >>> [key_of(value) for value in ("owl", 2, 2.0, None)]
        ['owl', '2', '2', '']
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (str, int)):
        return str(value)
    raise ValueError(f"{value!r:.60} is no text and no whole number")


def captions_of(value: Any) -> list[str]:
    """The captions in one value: a text, or a list of texts; spaces are made single.

    What is missing or blank is no caption.

    Raises:
        ValueError: It is something else.

    Example:
        >>> captions_of(["a  dog", None, " "])
        ['a dog']
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    values = value if isinstance(value, (list, tuple)) else [value]
    found = []
    for text in values:
        if text is None or (isinstance(text, float) and math.isnan(text)):
            continue
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if not isinstance(text, str):
            raise ValueError(f"{text!r:.60} is no caption: a caption is a text")
        found.append(" ".join(text.split()))
    return [text for text in found if text]
