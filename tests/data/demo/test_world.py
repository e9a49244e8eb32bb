from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.data.demo import DemoSizes, check_world, prepare_demo
from maskclip_bench.data.demo import layouts as layouts_module
from maskclip_bench.data.demo import world as world_module
from maskclip_bench.data.demo.atlas import load_atlas
from maskclip_bench.data.demo.captions import tokens_of
from maskclip_bench.data.demo.slices import SLICES
from maskclip_bench.errors import DataError, StorageError

ATLAS = load_atlas()


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def pairs(world: Path) -> dict[str, dict[str, bytes]]:
    """Key -> extension -> content, of all shards."""
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted((world / "pretrain" / "shards").glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                key, extension = member.name.split(".")
                file = archive.extractfile(member)
                assert file is not None and member.mtime == 0
                samples.setdefault(key, {})[extension] = file.read()
    return samples


def pixels(source: Path | bytes) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return np.asarray(image)


# --- formats ------------------------------------------------------------------------------------


def test_pretrain__shards_hold_image_json_and_text(world: Path, sizes: DemoSizes) -> None:
    summary = read(world / "pretrain" / "shards.json")
    assert summary == {
        "num_samples": 45,
        "shards": {
            "pretrain-000000.tar": 20,
            "pretrain-000001.tar": 20,
            "pretrain-000002.tar": 5,
        },
    }
    samples = pairs(world)
    assert len(samples) == sizes.pretrain
    for sample in samples.values():
        assert set(sample) == {"jpg", "json", "txt"}
        assert pixels(sample["jpg"]).shape == (72, 72, 3)
        captions = json.loads(sample["json"])["captions"]
        assert len(captions) == 5
        assert sample["txt"].decode() == captions[0]


def test_objects__imagenet_folders(world: Path, sizes: DemoSizes) -> None:
    classes = read(world / "objects" / "classes.json")
    assert [c["wnid"] for c in classes] == [c.wnid for c in ATLAS.classes]
    for split, per_class in (("train", 6), ("val", 1), ("val_ood", 1), ("tune", 1)):
        folder = world / "objects" / split
        assert sorted(p.name for p in folder.iterdir()) == [c["wnid"] for c in classes]
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*.jpg")}
        sidecar = read(world / "objects" / f"{split}.json")
        assert files == set(sidecar) and len(files) == 63 * per_class
        for path, entry in sidecar.items():
            object_class = ATLAS.classes[[c["wnid"] for c in classes].index(path[:9])]
            assert entry["drawing"] == f"{object_class.id}--{entry['vendor']}"
    train = read(world / "objects" / "train.json")
    vendors = {e["vendor"] for path, e in train.items() if path.startswith("n90101000")}
    assert vendors == set(ATLAS.training_vendors)


def test_scenes__ade20k_layout(world: Path) -> None:
    classes = read(world / "scenes" / "classes.json")
    assert [c["id"] for c in classes] == list(range(1, 30))
    assert [c["kind"] for c in classes] == ["stuff"] * 8 + ["thing"] * 21
    assert len({tuple(c["color"]) for c in classes}) == 29
    assert all(0 <= value <= 255 for c in classes for value in c["color"])
    for split, count in (("training", 6), ("validation", 5), ("validation_ood", 5)):
        images = sorted((world / "scenes" / "images" / split).glob("*.jpg"))
        labels = sorted((world / "scenes" / "annotations" / split).glob("*.png"))
        assert [p.stem for p in images] == [p.stem for p in labels] and len(images) == count
        for image, label in zip(images, labels, strict=True):
            assert pixels(image).shape == (128, 128, 3)
            values = pixels(label)
            assert values.shape == (128, 128) and values.dtype == np.uint8
            assert values.max() <= 29
            assert np.unique(values).size >= 3


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
def test_instances__coco_json_in_pycocotools(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_module = pytest.importorskip("pycocotools.coco")
    areas: list[int] = []
    for split, count in (("train", 12), ("val", 8), ("val_ood", 8)):
        coco = coco_module.COCO(
            str(world / "instances" / "annotations" / f"instances_{split}.json")
        )
        assert len(coco.getImgIds()) == count
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == [
            g.name for g in ATLAS.groups
        ]
        for image in coco.loadImgs(coco.getImgIds()):
            shape = pixels(world / "instances" / split / image["file_name"]).shape
            assert shape == (image["height"], image["width"], 3)
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            assert annotations
            total = np.zeros(shape[:2], int)
            for annotation in annotations:
                mask = coco.annToMask(annotation)
                total += mask
                areas.append(annotation["area"])
                assert mask.sum() == annotation["area"] > 0
                rows, columns = np.nonzero(mask)
                left, top = columns.min(), rows.min()
                width, height = columns.max() - left + 1, rows.max() - top + 1
                assert annotation["bbox"] == [left, top, width, height]
            assert total.max() == 1, "visible masks do not overlap"
    capsys.readouterr()  # pycocotools prints
    counts = np.histogram(areas, [0, 32**2, 96**2, np.inf])[0]
    assert counts.min() > 0, "small, medium and large objects"


def test_captions__karpathy_json(world: Path) -> None:
    images = read(world / "captions" / "dataset_demo.json")["images"]
    assert [image["split"] for image in images] == ["test"] * 12 + ["val"] * 5
    assert [image["imgid"] for image in images] == list(range(17))
    sentences = [s for image in images for s in image["sentences"]]
    assert [s["sentid"] for s in sentences] == list(range(17 * 5))
    for image in images:
        assert pixels(world / "captions" / "images" / image["filename"]).shape == (72, 72, 3)
        assert image["sentids"] == [s["sentid"] for s in image["sentences"]]
        for sentence in image["sentences"]:
            assert sentence["imgid"] == image["imgid"]
            assert sentence["tokens"] == tokens_of(sentence["raw"])


# --- splits ---------------------------------------------------------------------------------------


def test_splits__emojione_is_in_no_training_split(world: Path) -> None:
    drawings: dict[str, list[str]] = {
        "pretrain": [d for s in pairs(world).values() for d in json.loads(s["json"])["drawings"]],
        "captions": [
            d
            for image in read(world / "captions" / "dataset_demo.json")["images"]
            for d in image["drawings"]
        ],
    }
    for split in layouts_module.SPLITS["objects"]:
        if split in SLICES:
            continue  # this world has none
        sidecar = read(world / "objects" / f"{split}.json")
        drawings[f"objects/{split}"] = [entry["drawing"] for entry in sidecar.values()]
    for split in layouts_module.SPLITS["scenes"]:
        sidecar = read(world / "scenes" / f"drawings_{split}.json")
        drawings[f"scenes/{split}"] = [d for found in sidecar.values() for d in found]
    for split in layouts_module.SPLITS["instances"]:
        content = read(world / "instances" / "annotations" / f"instances_{split}.json")
        drawings[f"instances/{split}"] = [a["drawing"] for a in content["annotations"]]
    assert len(drawings) == 12
    for split, found in drawings.items():
        assert found
        held_out = {d.split("--")[1] == "emojione" for d in found}
        assert held_out == {split.endswith("_ood")}, split


def test_splits__no_image_is_in_two_splits(world: Path) -> None:
    found = [hashlib.sha256(p.read_bytes()).hexdigest() for p in world.rglob("*.jpg")]
    found += [hashlib.sha256(s["jpg"]).hexdigest() for s in pairs(world).values()]
    assert len(found) == len(set(found)) == 63 * 9 + 17 + 16 + 28 + 45


def test_splits__retrieval_captions_are_unique_and_not_in_pretraining(world: Path) -> None:
    seen = {c for s in pairs(world).values() for c in json.loads(s["json"])["captions"]}
    images = read(world / "captions" / "dataset_demo.json")["images"]
    texts = [s["raw"] for image in images for s in image["sentences"]]
    assert len(set(texts)) == len(texts)
    assert not seen & set(texts)


# --- making it ------------------------------------------------------------------------------------


def test_prepare__same_world_from_one_and_two_processes(
    world: Path, sizes: DemoSizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_module, "SCENES_PER_PROCESS", 1)
    other = prepare_demo(tmp_path, sizes=sizes, num_processes=2)
    files = sorted(p.relative_to(world).as_posix() for p in world.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other).as_posix() for p in other.rglob("*") if p.is_file())
    for path in files:
        if path.endswith((".jpg", ".png")):
            np.testing.assert_array_equal(pixels(world / path), pixels(other / path))
        else:
            assert (world / path).read_bytes() == (other / path).read_bytes(), path


def test_prepare__other_seed_other_scenes(mini: DemoSizes, tmp_path: Path) -> None:
    images = [
        prepare_demo(tmp_path / str(seed), sizes=mini, seed=seed)
        / "objects/train/n90101000/train_000000.jpg"
        for seed in (0, 1)
    ]
    assert images[0].read_bytes() != images[1].read_bytes()


def test_prepare__again_makes_nothing(
    world: Path, sizes: DemoSizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*arguments: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(world_module, "_make_world", make)
    assert prepare_demo(world.parent, sizes=sizes) == world


def test_prepare__other_sizes_replace_the_world(
    world: Path, mini: DemoSizes, tmp_path: Path
) -> None:
    target = tmp_path / "demo"
    shutil.copytree(world, target)
    prepare_demo(tmp_path, sizes=mini)
    assert read(target / "world.json")["sizes"]["pretrain"] == 3
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["demo"]


def test_prepare__another_artist_held_out_in_a_folder_of_its_own(
    mini: DemoSizes, tmp_path: Path
) -> None:
    sizes = dataclasses.replace(
        mini, objects_val_ood=1, objects_val_small=1, objects_val_occluded=1
    )
    made = prepare_demo(tmp_path, sizes=sizes, held_out=["noto"], folder="other", num_processes=1)
    assert made == tmp_path / "other"
    assert read(made / "world.json")["held_out"] == ["noto"]
    vendors = {
        split: {entry["vendor"] for entry in read(made / "objects" / f"{split}.json").values()}
        for split in ("train", "val_ood", "val_small", "val_occluded")
    }
    assert vendors["val_ood"] == {"noto"}
    assert all("noto" not in vendors[split] for split in vendors if split != "val_ood")
    for sample in pairs(made).values():
        assert not any(name.endswith("--noto") for name in json.loads(sample["json"])["drawings"])
    for image in read(made / "captions" / "dataset_demo.json")["images"]:
        assert not any(name.endswith("--noto") for name in image["drawings"])
    with pytest.raises(DataError, match=r"run again: maskclip-bench study run other"):
        (made / "objects" / "val.json").unlink()
        check_world(made)


def test_prepare__slices_only_where_they_are_asked_for(mini: DemoSizes, tmp_path: Path) -> None:
    made = prepare_demo(tmp_path, sizes=mini, num_processes=1)
    assert not (made / "objects" / "val_small.json").exists()
    assert "held_out" not in read(made / "world.json")


def test_prepare__reports_progress(sizes: DemoSizes, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    prepare_demo(tmp_path, sizes=sizes, progress=lambda *call: calls.append(call))
    last = {stage: (done, total) for stage, done, total in calls}
    assert last == {
        "pretrain": (45, 45),
        "objects": (63 * 9, 63 * 9),
        "scenes": (16, 16),
        "instances": (28, 28),
        "captions": (17, 17),
    }
    assert ("pretrain", 20, 45) in calls


def test_prepare__leftovers_of_killed_processes_go(mini: DemoSizes, tmp_path: Path) -> None:
    leftover = tmp_path / ".demo.123-abcdef.tmp"
    leftover.mkdir()
    (leftover / "half.jpg").write_bytes(b"half")
    prepare_demo(tmp_path, sizes=mini)
    assert not leftover.exists()


SCRIPT = """
import logging, sys
from pathlib import Path
from maskclip_bench.data.demo import DemoSizes, prepare_demo
logging.basicConfig(level=logging.INFO)
sizes = DemoSizes(*(int(value) for value in sys.argv[2:]))
prepare_demo(Path(sys.argv[1]), sizes=sizes)
assert "torch" not in sys.modules
"""


def test_prepare__two_processes_at_once_make_one_world(mini: DemoSizes, tmp_path: Path) -> None:
    values = [str(value) for value in vars(mini).values()]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), *values]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    logs = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], logs
    assert sum("made the demo world" in log for log in logs) == 1
    assert check_world(tmp_path / "demo")["sizes"] == mini.values()


# --- what can go wrong ----------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"has \d+ bytes, and it was made with \d+"),
        (alter, "is not as it was made: its SHA-256 differs"),
        (Path.unlink, r"cannot be read \(No such file or directory\)"),
    ],
)
@pytest.mark.parametrize(
    "name", ["pretrain/shards/pretrain-000001.tar", "instances/annotations/instances_val.json"]
)
def test_prepare__damaged_file_is_named_with_the_remedy(
    world: Path,
    sizes: DemoSizes,
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
    name: str,
) -> None:
    target = tmp_path / "demo"
    shutil.copytree(world, target)
    damage(target / name)
    with pytest.raises(DataError, match=message) as caught:
        prepare_demo(tmp_path, sizes=sizes)
    assert str(target / name) in str(caught.value)
    remedy = f"Delete {target} and run again: maskclip-bench data prepare demo"
    assert remedy in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"files": {}}'])
def test_prepare__damaged_manifest_is_named(
    world: Path, sizes: DemoSizes, tmp_path: Path, content: str
) -> None:
    target = tmp_path / "demo"
    shutil.copytree(world, target)
    (target / "world.json").write_text(content)
    with pytest.raises(DataError, match=r"world\.json cannot be read.*Delete .*demo and run again"):
        prepare_demo(tmp_path, sizes=sizes)


def test_prepare__a_folder_of_somebody_else_is_left_alone(sizes: DemoSizes, tmp_path: Path) -> None:
    mine = tmp_path / "demo" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(DataError, match=r"is not a demo world: it has no world\.json"):
        prepare_demo(tmp_path, sizes=sizes)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on the device"),
        (errno.EACCES, "No permission to write"),
    ],
)
def test_prepare__disk_refuses_and_nothing_is_left(
    mini: DemoSizes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    message: str,
) -> None:
    write_bytes = Path.write_bytes

    def refuse(path: Path, content: bytes) -> int:
        if "instances" in str(path):
            raise OSError(number, "refused", str(path))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match=message):
        prepare_demo(tmp_path, sizes=mini)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_prepare__data_root_that_is_a_file(sizes: DemoSizes, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.write_text("a file")
    with pytest.raises(StorageError, match="Cannot write"):
        prepare_demo(root, sizes=sizes)


def test_prepare__killed_worker_is_explained(
    sizes: DemoSizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Executor:
        def __init__(self, *arguments: object, **options: object) -> None: ...

        def submit(self, *arguments: object) -> None:
            raise BrokenProcessPool("killed")

        def shutdown(self, **options: object) -> None: ...

    monkeypatch.setattr(world_module, "ProcessPoolExecutor", Executor)
    monkeypatch.setattr(world_module, "SCENES_PER_PROCESS", 1)
    with pytest.raises(DataError, match="was killed, perhaps for lack of memory"):
        prepare_demo(tmp_path, sizes=sizes, num_processes=2)
    assert not (tmp_path / "demo").exists()
