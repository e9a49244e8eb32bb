"""Small copies of the real data sets of the tables, in the layouts in which they are published."""

from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

VOC_CLASSES = """
aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
pottedplant sheep sofa train tvmonitor
""".split()  # noqa: SIM905

IMAGENET_FOLDERS = ("n01440764", "n01443537")
"""Labels 0 and 1."""


def image(path: Path, *, value: int = 90, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value // 2, 10)).save(path)
    return path


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def binary(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def caltech101(root: Path) -> None:
    (root / "caltech101/caltech101/Annotations").mkdir(parents=True)
    for name in ("BACKGROUND_Google", "Faces", "accordion"):
        for number in range(1, 32 if name == "accordion" else 33):
            path = root / f"caltech101/caltech101/101_ObjectCategories/{name}"
            image(path / f"image_{number:04d}.jpg")


def cifar(root: Path, folder: str, files: tuple[str, ...], key: str, meta: dict[str, Any]) -> None:
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    for file in files:
        binary(root / folder / file, pickle.dumps({"data": pixels, key: [0, 1]}))
    name = "batches.meta" if key == "labels" else "meta"
    binary(root / folder / name, pickle.dumps(meta))


def cifar10(root: Path) -> None:
    files = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    words = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    cifar(root / "cifar10", "cifar-10-batches-py", files, "labels", {"label_names": words})


def cifar100(root: Path) -> None:
    words = {"fine_label_names": [f"class_{number}" for number in range(100)]}
    cifar(root / "cifar100", "cifar-100-python", ("train", "test"), "fine_labels", words)


def country211(root: Path) -> None:
    for split in ("train", "valid", "test"):
        for code in ("AD", "AE"):
            image(root / f"country211/country211/{split}/{code}/1.jpg")


def cub200(root: Path) -> None:
    folder = root / "cub200/CUB_200_2011"
    names = ["001.Black_footed_Albatross/a.jpg", "001.Black_footed_Albatross/b.jpg"]
    names += ["002.Laysan_Albatross/c.jpg", "002.Laysan_Albatross/d.jpg"]
    for name in names:
        image(folder / "images" / name)
    text(folder / "images.txt", "".join(f"{n} {name}\n" for n, name in enumerate(names, 1)))
    text(folder / "image_class_labels.txt", "1 1\n2 1\n3 2\n4 2\n")
    text(folder / "train_test_split.txt", "1 1\n2 0\n3 1\n4 0\n")
    text(folder / "classes.txt", "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")


def dtd(root: Path) -> None:
    folder = root / "dtd/dtd/dtd"
    for split in ("train", "val", "test"):
        names = [f"{name}/{name}_{split}.jpg" for name in ("banded", "blotchy", "lined")]
        for name in names:
            image(folder / "images" / name)
        text(folder / f"labels/{split}1.txt", "".join(f"{name}\n" for name in names))


def eurosat(root: Path) -> None:
    for name, count in (("AnnualCrop", 1001), ("Forest", 1)):
        for number in range(count):
            image(root / f"eurosat/eurosat/2750/{name}/{number}.jpg", size=(2, 2))


def fer2013(root: Path) -> None:
    path = root / "fer2013/fer2013/icml_face_data.csv"
    path.parent.mkdir(parents=True)
    pixels = " ".join(["7"] * 48 * 48)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["emotion", " Usage", " pixels"])
        for emotion in range(7):
            for usage in ("Training", "PublicTest", "PrivateTest"):
                table.writerow([emotion, usage, pixels])


def fgvc_aircraft(root: Path) -> None:
    folder = root / "fgvc_aircraft/fgvc-aircraft-2013b/data"
    text(folder / "variants.txt", "707-320\n727-200\n")
    for number, split in enumerate(("train", "val", "test")):
        lines = ""
        for variant, name in enumerate(("707-320", "727-200")):
            image(folder / f"images/{number}{variant}.jpg")
            lines += f"{number}{variant} {name}\n"
        text(folder / f"images_variant_{split}.txt", lines)


def food101(root: Path) -> None:
    folder = root / "food101/food-101"
    for split in ("train", "test"):
        listed = {name: [f"{name}/{split}"] for name in ("apple_pie", "baklava")}
        for names in listed.values():
            image(folder / "images" / f"{names[0]}.jpg")
        text(folder / f"meta/{split}.json", json.dumps(listed))


def gtsrb(root: Path) -> None:
    folder = root / "gtsrb/gtsrb"
    for label in range(2):
        image(folder / f"GTSRB/Training/{label:05d}/a.ppm")
        image(folder / f"GTSRB/Final_Test/Images/{label:05d}.ppm")
    lines = "Filename;Width;Height;ClassId\n00000.ppm;12;10;0\n00001.ppm;12;10;1\n"
    text(folder / "GT-final_test.csv", lines)


def hateful_memes(root: Path) -> None:
    folder = root / "hateful_memes"
    for split in ("train", "dev"):
        rows = []
        for label in range(2):
            image(folder / f"img/{split}{label}.png")
            rows.append({"id": label, "img": f"img/{split}{label}.png", "label": label})
        text(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def imagenet_like(folder: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        for name in IMAGENET_FOLDERS:
            image(folder / split / name / f"{split}.JPEG")


def imagenet_v2(root: Path) -> None:
    for label in (0, 999):
        image(root / f"imagenet_v2/imagenetv2-matched-frequency-format-val/{label}/a.jpeg")


def kinetics700(root: Path) -> None:
    for split in ("train_images", "val_images"):
        for name in ("abseiling", "acting in play"):
            image(root / f"kinetics700_frames/{split}/{name}/a.jpg")


def mnist(root: Path) -> None:
    folder = root / "mnist/MNIST/raw"
    for part in ("train", "t10k"):
        images = (2051).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in (2, 28, 28))
        binary(folder / f"{part}-images-idx3-ubyte", images + bytes(2 * 28 * 28))
        labels = (2049).to_bytes(4, "big") + (2).to_bytes(4, "big") + bytes([3, 4])
        binary(folder / f"{part}-labels-idx1-ubyte", labels)


def objectnet(root: Path) -> None:
    folder = root / "objectnet/objectnet-1.0"
    labels = {
        "air_freshener": "Air freshener",
        "alarm_clock": "Alarm clock",
        "backpack": "Backpack",
    }
    shared = {"Alarm clock": "analog clock; digital clock", "Backpack": "backpack"}
    text(folder / "mappings/folder_to_objectnet_label.json", json.dumps(labels))
    text(folder / "mappings/objectnet_to_imagenet_1k.json", json.dumps(shared))
    for name in labels:
        image(folder / f"images/{name}/a.png")


def oxford_flowers(root: Path) -> None:
    folder = root / "oxford_flowers/flowers-102"
    folder.mkdir(parents=True)
    for number in range(1, 7):
        image(folder / f"jpg/image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]])})
    splits = {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]}
    savemat(folder / "setid.mat", {name: np.array(ids) for name, ids in splits.items()})


def oxford_pets(root: Path) -> None:
    folder = root / "oxford_pets/oxford-iiit-pet"
    for split in ("trainval", "test"):
        lines = ""
        for label, name in enumerate((f"Abyssinian_{split}", f"american_bulldog_{split}"), start=1):
            image(folder / f"images/{name}.jpg")
            lines += f"{name} {label} {label} 1\n"
        text(folder / f"annotations/{split}.txt", lines)


def patch_camelyon(root: Path) -> None:
    import h5py

    folder = root / "patch_camelyon/pcam"
    folder.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        name = f"camelyonpatch_level_2_split_{split}"
        with h5py.File(folder / f"{name}_x.h5", "w") as file:
            file["x"] = np.zeros((2, 96, 96, 3), dtype=np.uint8)
        with h5py.File(folder / f"{name}_y.h5", "w") as file:
            file["y"] = np.array([0, 1], dtype=np.uint8).reshape(2, 1, 1, 1)


def rendered_sst2(root: Path) -> None:
    for split in ("train", "valid", "test"):
        for name in ("negative", "positive"):
            image(root / f"rendered_sst2/rendered-sst2/{split}/{name}/a.png")


def resisc45(root: Path) -> None:
    for name in ("airplane", "airport"):
        for number in range(71):
            image(root / f"resisc45/NWPU-RESISC45/{name}/{name}_{number:03d}.jpg", size=(2, 2))


def stanford_cars(root: Path) -> None:
    folder = root / "stanford_cars/stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["Acura RL Sedan 2012", "BMW M3 Coupe 2012"], dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    for split, path in (
        ("train", folder / "devkit/cars_train_annos.mat"),
        ("test", folder / "cars_test_annos_withlabels.mat"),
    ):
        rows = np.zeros(2, dtype=[("fname", object), ("class", object)])
        for number in range(2):
            image(folder / f"cars_{split}/{number}.jpg")
            rows[number] = (f"{number}.jpg", number + 1)
        savemat(path, {"annotations": rows})


def stl10(root: Path) -> None:
    folder = root / "stl10/stl10_binary"
    text(
        folder / "class_names.txt",
        "airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck",
    )
    binary(folder / "unlabeled_X.bin", b"")
    binary(folder / "fold_indices.txt", b"")
    for split in ("train", "test"):
        binary(folder / f"{split}_X.bin", bytes(2 * 3 * 96 * 96))
        binary(folder / f"{split}_y.bin", bytes([1, 2]))


def sun397(root: Path) -> None:
    folder = root / "sun397/SUN397"
    text(folder / "ClassName.txt", "/a/abbey\n/a/airplane_cabin\n")
    for name in ("abbey", "airplane_cabin"):
        for number in range(51):
            image(folder / f"a/{name}/sun_{number:03d}.jpg", size=(2, 2))


def svhn(root: Path) -> None:
    (root / "svhn").mkdir()
    for split in ("train", "test"):
        pixels = np.zeros((32, 32, 3, 2), dtype=np.uint8)
        savemat(root / f"svhn/{split}_32x32.mat", {"X": pixels, "y": np.array([[10], [1]])})


def ucf101(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("ApplyEyeMakeup", "ApplyLipstick"):
            image(root / f"ucf101_frames/{split}/{name}/a.jpg")


def voc2007(root: Path) -> None:
    folder = root / "voc2007/VOCdevkit/VOC2007"
    names = VOC_CLASSES
    for first, split in ((5, "train"), (7, "val"), (1, "test")):
        ids = [f"{first + number:06d}" for number in (0, 1)]
        for name in ids:
            image(folder / f"JPEGImages/{name}.jpg")
        text(folder / f"ImageSets/Main/{split}.txt", "".join(f"{name}\n" for name in ids))
        for label, name in enumerate(names):
            values = (1 if label < 2 else -1, 0 if label == 0 else -1)
            lines = "".join(f"{i} {v:2d}\n" for i, v in zip(ids, values, strict=True))
            text(folder / f"ImageSets/Main/{name}_{split}.txt", lines)


def shards(folder: Path, labels: tuple[int, ...]) -> None:
    """A data set of CLIP_benchmark's hub: `{split}/0.tar`, `nshards.txt`."""
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        text(folder / split / "nshards.txt", "1\n")
        with tarfile.open(folder / split / "0.tar", "w") as tar:
            for number, label in enumerate(labels):
                buffer = io.BytesIO()
                Image.new("RGB", (12, 10), (number, 0, 0)).save(buffer, "WEBP")
                members = ((f"s{number:07d}.cls", str(label).encode()),)
                for name, content in (*members, (f"s{number:07d}.webp", buffer.getvalue())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def karpathy(folder: Path, file: str, images: str, *, below: str = "", captions: int = 5) -> None:
    entries = []
    for split in ("train", "test"):
        for number in range(2):
            name = f"{split}{number}.jpg"
            image(folder / images / below / name)
            sentences = [{"raw": f"Caption {i} of {name}."} for i in range(captions + number)]
            entry = {"filename": name, "split": split, "sentences": sentences}
            entries.append(entry | ({"filepath": below} if below else {}))
    text(folder / file, json.dumps({"images": entries, "dataset": "small"}))


SMALL: dict[str, Callable[[Path], None]] = {
    "caltech101": caltech101,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "clevr_counts": lambda root: shards(root / "clevr_counts", (0, 7)),
    "coco_captions": lambda root: karpathy(
        root / "coco_captions", "dataset_coco.json", ".", below="val2014"
    ),
    "coco_captions_5": lambda root: karpathy(
        root / "coco_captions", "dataset_coco.json", ".", below="val2014"
    ),
    "country211": country211,
    "cub200": cub200,
    "dtd": dtd,
    "eurosat": eurosat,
    "fer2013": fer2013,
    "fgvc_aircraft": fgvc_aircraft,
    "flickr8k": lambda root: karpathy(
        root / "flickr8k", "dataset_flickr8k.json", "Flicker8k_Dataset"
    ),
    "flickr30k": lambda root: karpathy(
        root / "flickr30k", "dataset_flickr30k.json", "flickr30k-images"
    ),
    "food101": food101,
    "gtsrb": gtsrb,
    "hateful_memes": hateful_memes,
    "imagenet": lambda root: imagenet_like(root / "imagenet", ("train", "val")),
    "imagenet_80_prompts": lambda root: imagenet_like(root / "imagenet", ("val",)),
    "imagenet_a": lambda root: imagenet_like(root, ("imagenet-a",)),
    "imagenet_o": lambda root: imagenet_like(root, ("imagenet-o",)),
    "imagenet_r": lambda root: imagenet_like(root, ("imagenet-r",)),
    "imagenet_sketch": lambda root: imagenet_like(root / "imagenet_sketch", ("sketch",)),
    "imagenet_v2": imagenet_v2,
    "kinetics700": kinetics700,
    "kitti_distance": lambda root: shards(root / "kitti_distance", (0, 3)),
    "mnist": mnist,
    "objectnet": objectnet,
    "oxford_flowers": oxford_flowers,
    "oxford_pets": oxford_pets,
    "patch_camelyon": patch_camelyon,
    "patch_camelyon_2_prompts": patch_camelyon,
    "rendered_sst2": rendered_sst2,
    "resisc45": resisc45,
    "stanford_cars": stanford_cars,
    "stl10": stl10,
    "sun397": sun397,
    "svhn": svhn,
    "svhn_6_prompts": svhn,
    "ucf101": ucf101,
    "voc2007": voc2007,
}
"""Data set -> what writes a small copy of it below a data root."""
