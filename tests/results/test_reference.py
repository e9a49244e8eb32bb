from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from maskclip_bench import data_files
from maskclip_bench.errors import ConfigError, DataError, UnknownNameError
from maskclip_bench.results.reference import (
    KIND,
    PublishedSelector,
    ReferenceRow,
    check_selector,
    load_papers,
    load_references,
    select,
    source_of,
)

FILES = data_files.declarations(KIND, suffix=".csv")


def row(**changes: object) -> ReferenceRow:
    values: dict[str, object] = {
        "table": "T1",
        "method": "CLIP",
        "encoder": "ViT-B/16",
        "pretrain_data": "YFCC15M-V1",
        "epochs": 25,
        "task": "zero_shot_classification/imagenet",
        "metric": "top1_accuracy",
        "value": 37.6,
        "unit": "percent",
        "preset": "unknown",
        "source": "a paper",
        "directness": "its own table",
        "published_as": "zero-shot; ImageNet; top-1",
    }
    return ReferenceRow.model_validate({**values, **changes})


@pytest.mark.parametrize("name", FILES)
def test_files__hold_the_schema(name: str) -> None:
    rows = load_references([FILES[name]])
    assert rows
    keys = Counter(
        (r.table, r.method, r.encoder, r.pretrain_data, r.epochs, r.task, r.metric, r.preset)
        for r in rows
    )
    assert [key for key, count in keys.items() if count > 1] == []
    assert all(math.isfinite(r.value) for r in rows)


def test_files__all_of_them() -> None:
    assert len(load_references()) == 768


def test_files__published_averages_follow_from_their_members() -> None:
    rows = [r for r in load_references() if r.table == "A-CLIP zero-shot suite"]
    averages = [r for r in rows if r.task.endswith("/mean_of_26_sets")]
    assert len(averages) == 10
    for average in averages:
        members = [
            r.value
            for r in rows
            if (r.method, r.epochs) == (average.method, average.epochs) and r is not average
        ]
        assert len(members) == 26
        assert sum(members) / 26 == pytest.approx(average.value, abs=0.051)


def test_files__the_numbers_of_the_paper() -> None:
    rows = load_references()
    default = PublishedSelector(table="MaskCLIP T6e", method="MaskCLIP lambda=0.05 (default)")
    found = [
        select(rows, default, task=f"{protocol}/imagenet", metric="top1_accuracy")
        for protocol in ("zero_shot_classification", "augmented_linear_probe", "finetune")
    ]
    assert [r.fraction for r in found if r] == pytest.approx([0.445, 0.737, 0.836])


def test_fraction__of_percent_only() -> None:
    assert row(value=37.6).fraction == pytest.approx(0.376)
    with pytest.raises(DataError, match="a ratio cannot stand in a table of scores"):
        _ = row(value=1.56, unit="ratio").fraction


def test_row__percentage_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"a percentage lies in 0\.\.100, not 376"):
        row(value=376)


def test_select__preset_fits_or_is_unknown() -> None:
    rows = [row(preset="clip_80_prompts"), row(value=38.0, preset="slip_7_prompts"), row(value=39)]
    wanted = {"task": rows[0].task, "metric": rows[0].metric}
    selector = PublishedSelector(table="T1", method="CLIP")

    def value(preset: str | None) -> float | None:
        found = select(rows, selector, preset=preset, **wanted)
        return found.value if found else None

    assert value("slip_7_prompts") == 38.0
    assert value("other") == 39
    assert value(None) == 37.6
    assert select(rows, selector, task="knn/imagenet", metric="top1_accuracy") is None


def test_select__every_given_field_must_match() -> None:
    selector = PublishedSelector(table="T1", method="CLIP", epochs=50)
    assert not selector.matches(row())
    assert selector.matches(row(epochs=50))


def test_check_selector__says_what_was_meant() -> None:
    rows = [row()]
    check_selector(PublishedSelector(table="T1", method="CLIP"), rows)
    with pytest.raises(UnknownNameError, match=r"No published table 'T11'. Did you mean 'T1'"):
        check_selector(PublishedSelector(table="T11", method="CLIP"), rows)
    with pytest.raises(UnknownNameError, match=r"No row of T1 'CLOP'. Did you mean 'CLIP'"):
        check_selector(PublishedSelector(table="T1", method="CLOP"), rows)


def test_load__wrong_columns(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("method,value\nCLIP,1\n")
    with pytest.raises(DataError, match=r"has the columns \['method', 'value'\]; a reference file"):
        load_references([path])


def test_load__names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    fields = row().model_dump()
    header = ",".join(fields)
    path.write_text(header + "\n" + ",".join(str(v) for v in {**fields, "unit": "mm"}.values()))
    with pytest.raises(ConfigError, match=r"mine.csv, line 2 is not a valid ReferenceRow:\n.*unit"):
        load_references([path])


def test_source_of__the_paper_s_table_and_where_it_was_read() -> None:
    rows = {row.table: row for row in load_references()}
    papers = load_papers()
    assert source_of(rows["MaskCLIP T6e"], papers).citation == "Dong et al. 2023, Table 6e"
    readme = source_of(rows["SLIP README"], papers)
    assert readme.citation == "Mu et al. 2022 (SLIP), README"
    assert readme.read_in == "github:facebookresearch/SLIP README.md"
    own = rows["SLIP README"].model_copy(update={"table": "My notes"})
    assert source_of(own, papers).citation == "My notes"


def test_papers__of_every_shipped_table() -> None:
    names = {row.table.split(" ")[0] for row in load_references()}
    assert names <= set(load_papers())
