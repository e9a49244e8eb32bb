from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from maskclip_bench import errors
from maskclip_bench.errors import MaskCLIPBenchError, did_you_mean, storage_error, unknown_name


def test_did_you_mean__close_name() -> None:
    assert did_you_mean("zeroshot", ["zero_shot", "knn"]) == " Did you mean 'zero_shot'?"


def test_did_you_mean__nothing_close() -> None:
    assert did_you_mean("xyz", ["zero_shot", "knn"]) == ""


def test_unknown_name__says_what_came_what_is_known_and_what_to_do() -> None:
    error = unknown_name("suite", "al", ["demo", "all"], remedy="List them with: x")
    assert str(error) == "No suite 'al'. Did you mean 'all'? Known: all, demo. List them with: x"


def test_unknown_name__long_lists_are_cut() -> None:
    error = unknown_name("task", "q", [f"t{i:02d}" for i in range(20)], remedy="R")
    assert "t10, t11 and 8 more. R" in str(error)


def test_unknown_name__empty_catalogue() -> None:
    assert "Known: none." in str(unknown_name("task", "q", [], remedy="R"))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on the device: x. Free some space"),
        (errno.EACCES, "No permission to write: x. Choose a folder you may write to"),
        (errno.EROFS, "No permission to write"),
        (errno.EIO, r"Cannot write \(Input/output error\)"),
    ],
)
def test_storage_error__names_path_and_remedy(number: int, message: str) -> None:
    with pytest.raises(errors.StorageError, match=message):
        raise storage_error(OSError(number, os.strerror(number)), Path("x"))


def test_exit_codes__as_documented() -> None:
    assert errors.__doc__ is not None
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, MaskCLIPBenchError)
    ]
    assert {cls.exit_code for cls in classes} == {1, 2, 3, 4, 5}
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert f"| {code} |" in errors.__doc__


def test_config_error__is_a_value_error() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.MissingDependencyError, ImportError)
