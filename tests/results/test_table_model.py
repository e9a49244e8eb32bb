from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from maskclip_bench.results.records import Record
from maskclip_bench.results.tables import (
    ColumnDeclaration,
    RowDeclaration,
)
from tests.results.table_examples import (
    KNN,
    PUBLISHED,
    declare,
)

Save = Callable[..., Record]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": [{"title": "x"}]}, "a column needs a task and a metric, or an average"),
        ({"columns": [{**KNN, "average": "all"}]}, "an average has no task"),
        ({"rows": [{"name": "x"}]}, "a row is measured .* or published, one of the two"),
        ({"rows": [{"name": "x", "backbone": "clip"}] * 2}, "a row stands twice in its group"),
        ({"baseline": "clap"}, "the baseline 'clap' is not among the rows"),
        ({"rows": [PUBLISHED], "baseline": None}, "published numbers cannot stand in a table of"),
    ],
)
def test_declaration__refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare(**changes)


def test_column__in_one_line() -> None:
    column = ColumnDeclaration(group="Zero-shot", title="val\ntop-1", task="a/b", metric="m")
    assert column.one_line == "Zero-shot val top-1"


def test_declaration__the_older_word_for_the_real_world() -> None:
    assert declare(world="paper").world == "real"
    assert RowDeclaration(name="x", backbone="y").published == []
