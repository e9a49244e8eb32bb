"""Seeded fuzz of every kind of file that is read: our own error or a result, never a traceback."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from maskclip_bench import data_files, storage
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.config import load_declaration
from maskclip_bench.data.images import decode
from maskclip_bench.data.tar_scan import scan_tar
from maskclip_bench.data.text_files import read_json, read_table
from maskclip_bench.errors import MaskCLIPBenchError
from maskclip_bench.pretrain.recipe import Recipe, load_recipe
from maskclip_bench.results.measurement import Measurement, Metric
from maskclip_bench.results.record_reading import check_values
from maskclip_bench.results.records import Cell, RecordStore, measured_record
from maskclip_bench.results.reference import load_references
from maskclip_bench.results.tables import TableDeclaration, build_table
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.suite import SuiteDeclaration
from tests.hardening.harness import at_most, fuzzed

CELL = Cell(backbone="clip", protocol="knn", dataset="birds", world="real", cell_fingerprint="f")
OUTCOMES = pd.DataFrame(
    {
        "sample_id": [f"s{i}" for i in range(20)],
        "group": [f"g{i // 2}" for i in range(20)],
        "m": np.arange(20) % 2.0,
    }
)
COLUMN = {"title": "t", "task": "knn/birds", "metric": "m"}
TABLE = TableDeclaration.model_validate(
    {
        "title": "T",
        "world": "real",
        "columns": [COLUMN],
        "rows": [{"name": "C", "backbone": "clip"}],
    }
)


def shipped(folder: str, name: str) -> bytes:
    return data_files.declarations(folder)[name].read_bytes()


def record_file(folder: Path) -> Path:
    store = RecordStore(folder)
    measurement = Measurement({"m": Metric(0.5)}, "m", OUTCOMES, "p")
    store.save(measured_record(CELL, measurement), OUTCOMES)
    return store.path("clip", "knn", "birds")


def record_bytes(folder: Path) -> bytes:
    """Without a seal, so that the reader has to look at every field."""
    path = record_file(folder)
    values = json.loads(path.read_bytes())
    del values["seal"]
    path.write_text(json.dumps(values, indent=1))
    return path.read_bytes()


def read_record_file(content: bytes, folder: Path) -> None:
    path = record_file(folder)
    path.write_bytes(content)
    table = build_table(TABLE, RecordStore(folder))
    for row in table.rows:
        for cell in row.cells:
            # A record of before there were seals is shown only if its outcomes give its value.
            assert cell.value is None or cell.value == pytest.approx(0.5)


def outcomes_bytes(folder: Path) -> bytes:
    record_file(folder)
    return next(folder.glob("clip/*.parquet")).read_bytes()


def read_outcomes_file(content: bytes, folder: Path) -> None:
    """The hash in the record is made to fit, so that the reader meets the content itself."""
    path = record_file(folder)
    (record,) = RecordStore(folder).all()
    assert record.outcomes_file is not None
    (path.parent / record.outcomes_file).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    check_values(path, record.model_copy(update={"outcomes_sha256": digest}))


def features_bytes(folder: Path) -> bytes:
    return save({"backbone": torch.ones(4, 3), "joint": torch.zeros(4, 2)})


def read_features_file(content: bytes, folder: Path) -> None:
    store = FeatureStore(folder)
    identity = {"fuzz": 1}
    made = {"backbone": torch.ones(4, 3)}
    store.get(identity, lambda: made, note="x")
    (note,) = folder.glob("*/*.json")
    note.with_suffix(".safetensors").write_bytes(content)
    values = json.loads(note.read_text())
    storage.write_json(note, {**values, "sha256": hashlib.sha256(content).hexdigest()})
    store.get(identity, lambda: made, note="x")


def note_bytes(folder: Path) -> bytes:
    FeatureStore(folder).get({"fuzz": 1}, lambda: {"backbone": torch.ones(4, 3)}, note="x")
    (note,) = folder.glob("*/*.json")
    return note.read_bytes()


def read_note_file(content: bytes, folder: Path) -> None:
    made = {"backbone": torch.ones(4, 3)}
    store = FeatureStore(folder)
    store.get({"fuzz": 1}, lambda: made, note="x")
    (note,) = folder.glob("*/*.json")
    note.write_bytes(content)
    found = store.get({"fuzz": 1}, lambda: made, note="x")
    assert torch.equal(found["backbone"], made["backbone"])


def checksums_bytes(folder: Path) -> bytes:
    for name in ("a", "b\nc"):
        (folder / name).write_text(name)
    return storage.write_checksums(folder).read_bytes()


def read_checksums_file(content: bytes, folder: Path) -> None:
    whole = checksums_bytes(folder)
    (folder / storage.CHECKSUMS).write_bytes(content)
    problems = storage.check_checksums(folder)
    assert (
        problems or content.split() == whole.split() or set(whole.split()) <= set(content.split())
    )


def written(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], None]:
    """A reader of one file, called with its path."""

    def use(content: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(content)
        read(path)

    return use


def image_bytes(form: str) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        output = io.BytesIO()
        Image.fromarray(pixels).save(output, form)
        return output.getvalue()

    return make


def tar_bytes(folder: Path) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name in ("a/0.jpg", "a/0.txt", "b/1.jpg", "b/1.txt"):
            member = tarfile.TarInfo(name)
            member.size = 20
            tar.addfile(member, io.BytesIO(b"x" * 20))
    return output.getvalue()


def first_reference_file() -> bytes:
    files = data_files.declarations("results/reference", suffix=".csv")
    return next(iter(files.values())).read_bytes()


KINDS: dict[str, tuple[Callable[[Path], bytes], Callable[[bytes, Path], None]]] = {
    "backbone.yaml": (
        lambda folder: shipped("backbones", "maskclip_vit-demo_demo"),
        written("x.yaml", lambda path: load_declaration(path, BackboneDeclaration)),
    ),
    "task.yaml": (
        lambda folder: shipped("tasks", "demo_objects"),
        written("x.yaml", lambda path: load_declaration(path, TaskDeclaration)),
    ),
    "suite.yaml": (
        lambda folder: shipped("configs/suites", "demo"),
        written("x.yaml", lambda path: load_declaration(path, SuiteDeclaration)),
    ),
    "table.yaml": (
        lambda folder: shipped("configs/tables", "demo"),
        written("x.yaml", lambda path: load_declaration(path, TableDeclaration)),
    ),
    "recipe.yaml": (
        lambda folder: yaml.safe_dump(load_recipe("demo/clip").model_dump(mode="json")).encode(),
        written("x.yaml", lambda path: load_declaration(path, Recipe)),
    ),
    "reference.csv": (
        lambda folder: b"\n".join(first_reference_file().splitlines()[:12]),
        written("x.csv", lambda path: load_references([path])),
    ),
    "record.json": (record_bytes, read_record_file),
    "outcomes.parquet": (outcomes_bytes, read_outcomes_file),
    "features.safetensors": (features_bytes, read_features_file),
    "features.json": (note_bytes, read_note_file),
    "SHA256SUMS": (checksums_bytes, read_checksums_file),
    "annotations.json": (
        lambda folder: json.dumps({"images": [{"id": 1}], "annotations": []}).encode(),
        written("x.json", read_json),
    ),
    "captions.tsv": (
        lambda folder: b'path\tcaption\na.jpg\t"a" cat\nb.jpg\ta dog\n',
        written("x.tsv", lambda path: read_table(path, columns=["path", "caption"])),
    ),
    "image.jpg": (image_bytes("JPEG"), lambda content, folder: decode(content, what="x") and None),
    "image.png": (image_bytes("PNG"), lambda content, folder: decode(content, what="x") and None),
    "image.webp": (image_bytes("WEBP"), lambda content, folder: decode(content, what="x") and None),
    "image.tiff": (image_bytes("TIFF"), lambda content, folder: decode(content, what="x") and None),
    "shard.tar": (tar_bytes, written("x.tar", scan_tar)),
}


def attack(kind: str, folder: Path, *, seed: int, number: int) -> None:
    make, read = KINDS[kind]
    (folder / "valid").mkdir()
    valid = make(folder / "valid")
    (folder / "again").mkdir()
    read(valid, folder / "again")  # what is attacked works
    for index, content in enumerate(fuzzed(valid, seed=seed, number=number)):
        place = folder / str(index)
        place.mkdir()
        try:
            with at_most(20):
                read(content, place)
        except MaskCLIPBenchError as error:
            assert str(error)
        except Exception as error:
            (folder / "input").write_bytes(content)
            raise AssertionError(f"{kind}, input {index}: {content[:300]!r}") from error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_fuzz__a_few(kind: str, tmp_path: Path) -> None:
    attack(kind, tmp_path, seed=0, number=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_fuzz__three_hundred_in_all(kind: str, tmp_path: Path) -> None:
    attack(kind, tmp_path, seed=1, number=17)
