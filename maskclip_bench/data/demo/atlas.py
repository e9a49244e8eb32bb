"""The artwork and the words of the demo world: a sprite atlas and the names of its classes.

Sprites are emoji drawings of several vendors (licences: `NOTICE`). One class drawn by one vendor
is a *drawing*, `"turtle--noto"`. `scripts/build_demo_atlas.py` makes the files.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from maskclip_bench.errors import ConfigError, DataError

ART_FOLDER = Path(__file__).resolve().parent / "art"
ATLAS_FILE = "atlas.webp"
INDEX_FILE = "atlas.json"
CHECKSUM_FILE = "SHA256SUMS"


@dataclass(frozen=True)
class Group:
    """A hypernym: the category of the instance and semantic layouts.

    Attributes:
        index: 0-based position.
        name: "sea animal".
        singular: With its article, "a sea animal".
        plural: "sea animals".
    """

    index: int
    name: str
    singular: str
    plural: str


@dataclass(frozen=True)
class ObjectClass:
    """One nameable kind of object.

    Attributes:
        index: 0-based position, the label of the classification layout.
        id: "tropical-fish".
        wnid: Folder name, shaped like a WordNet id.
        name: What prompts call it, "tropical fish".
        singular: With its article, "a tropical fish", "a pair of scissors".
        plural: "tropical fish", "pairs of scissors".
        group: Its hypernym.
        keywords: Words that go with it, at least two.
        flies: How often it is in the air where there is a sky, 0 to 1.
    """

    index: int
    id: str
    wnid: str
    name: str
    singular: str
    plural: str
    group: Group
    keywords: tuple[str, ...]
    flies: float


@dataclass(frozen=True)
class Atlas:
    """All drawings, cut out, and what they are called.

    Attributes:
        classes: In label order.
        groups: In category order.
        training_vendors: Vendors that training and seen-drawing test splits use.
        held_out_vendors: Vendors that only the splits named `*_ood` use.
        sprites: Drawing id -> RGBA image, trimmed.
        fingerprint: Hash of the two files.
    """

    classes: tuple[ObjectClass, ...]
    groups: tuple[Group, ...]
    training_vendors: tuple[str, ...]
    held_out_vendors: tuple[str, ...]
    sprites: Mapping[str, Image.Image]
    fingerprint: str

    def holding_out(self, vendors: Sequence[str]) -> Atlas:
        """The same drawings with other vendors held out.

        Args:
            vendors: Those that only the splits named `*_ood` use; all others are for training.

        Raises:
            ConfigError: One is unknown or given twice, or none is left for training.
        """
        known = (*self.training_vendors, *self.held_out_vendors)
        training = tuple(vendor for vendor in known if vendor not in vendors)
        if len(set(vendors)) != len(vendors) or not set(vendors) <= set(known) or not training:
            raise ConfigError(
                f"Vendors {list(vendors)} cannot be held out. Give some, not all, of "
                f"{', '.join(known)}, each once."
            )
        return replace(self, training_vendors=training, held_out_vendors=tuple(vendors))


def drawing_id(object_class: ObjectClass, vendor: str) -> str:
    """The id of one class drawn by one vendor: the unit that a bootstrap resamples."""
    return f"{object_class.id}--{vendor}"


def load_atlas(folder: Path = ART_FOLDER) -> Atlas:
    """Read the atlas, checked against its checksums; cached per process.

    Raises:
        DataError: A file is missing or does not match its checksum.
    """
    return _load(folder)


@functools.lru_cache(maxsize=2)
def _load(folder: Path) -> Atlas:
    contents, hashes = {}, []
    for name, expected in _checksums(folder).items():
        path = folder / name
        try:
            contents[name] = path.read_bytes()
        except OSError as error:
            raise _broken(f"{path} cannot be read ({error.strerror})") from error
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise _broken(
                f"{path} is corrupt: its SHA-256 begins with {found[:12]}, "
                f"and {CHECKSUM_FILE} says {expected[:12]}"
            )
        hashes.append(found)

    index = json.loads(contents[INDEX_FILE])
    sheet = Image.open(io.BytesIO(contents[ATLAS_FILE])).convert("RGBA")
    groups = {
        group["name"]: Group(position, group["name"], group["singular"], group["plural"])
        for position, group in enumerate(index["groups"])
    }
    classes = tuple(
        ObjectClass(
            index=position,
            id=record["id"],
            wnid=record["wnid"],
            name=record["name"],
            singular=record["singular"],
            plural=record["plural"],
            group=groups[record["group"]],
            keywords=tuple(record["keywords"]),
            flies=float(record["flies"]),
        )
        for position, record in enumerate(index["classes"])
    )
    vendors = index["vendors"]
    return Atlas(
        classes=classes,
        groups=tuple(groups.values()),
        training_vendors=tuple(v["name"] for v in vendors if not v["held_out"]),
        held_out_vendors=tuple(v["name"] for v in vendors if v["held_out"]),
        sprites={
            name: sheet.crop((x, y, x + width, y + height))
            for name, (x, y, width, height) in index["sprites"].items()
        },
        fingerprint=hashlib.sha256("".join(hashes).encode()).hexdigest()[:16],
    )


def _checksums(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 as `sha256sum` writes them."""
    path = folder / CHECKSUM_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise _broken(f"{path} cannot be read ({error.strerror})") from error
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if set(sums) != {ATLAS_FILE, INDEX_FILE}:
        raise _broken(f"{path} lists {sorted(sums)}, not {ATLAS_FILE} and {INDEX_FILE}")
    return sums


def _broken(what: str) -> DataError:
    return DataError(
        f"{what}. This file is part of the package: install maskclip-bench again "
        "(pip install --force-reinstall --no-deps maskclip-bench), or restore it with git checkout."
    )
