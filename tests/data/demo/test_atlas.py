from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from maskclip_bench.data.demo.atlas import ART_FOLDER, drawing_id, load_atlas
from maskclip_bench.errors import ConfigError, DataError
from tests.files import module_of

ATLAS = load_atlas()
REPOSITORY = Path(__file__).resolve().parents[3]


def test_classes__three_in_each_of_21_groups() -> None:
    assert len(ATLAS.groups) == 21
    assert len(ATLAS.classes) == 63
    for group in ATLAS.groups:
        assert sum(c.group == group for c in ATLAS.classes) == 3


def test_classes__names_and_ids_are_unique_and_well_formed() -> None:
    for values in (
        [c.name for c in ATLAS.classes],
        [c.id for c in ATLAS.classes],
        [c.wnid for c in ATLAS.classes],
    ):
        assert len(set(values)) == len(values)
    assert [c.index for c in ATLAS.classes] == list(range(63))
    # Sorted folders are in label order, as ImageNet's readers expect.
    assert [c.wnid for c in ATLAS.classes] == sorted(c.wnid for c in ATLAS.classes)
    for object_class in ATLAS.classes:
        assert re.fullmatch(r"n9\d{7}", object_class.wnid)
        assert re.match(r"(an [aeiou]|a [^aeiou])", object_class.singular)
        assert not object_class.plural.startswith(("a ", "an "))
        assert len(object_class.keywords) >= 2


def test_vendors__emojione_is_held_out() -> None:
    assert ATLAS.held_out_vendors == ("emojione",)
    assert set(ATLAS.training_vendors) == {
        "noto",
        "noto-v1",
        "twemoji",
        "fluent",
        "fluent-flat",
        "fxemoji",
    }


def test_sprites__every_class_by_every_vendor_and_none_is_a_card() -> None:
    vendors = (*ATLAS.training_vendors, *ATLAS.held_out_vendors)
    expected = {drawing_id(c, vendor) for c in ATLAS.classes for vendor in vendors}
    assert set(ATLAS.sprites) == expected
    for name, sprite in ATLAS.sprites.items():
        alpha = np.asarray(sprite)[..., 3]
        assert max(sprite.size) == 80, name
        assert 0.1 < (alpha > 127).mean() < 0.97, name


def test_package__atlas_is_about_a_megabyte() -> None:
    assert sum(path.stat().st_size for path in ART_FOLDER.iterdir()) < 1_100_000


@pytest.mark.parametrize("name", ["atlas.webp", "atlas.json"])
def test_load_atlas__corrupt_file_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "art"
    shutil.copytree(ART_FOLDER, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is corrupt.*install maskclip-bench again"):
        load_atlas(folder)


@pytest.mark.parametrize("name", ["atlas.webp", "SHA256SUMS"])
def test_load_atlas__missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "art"
    shutil.copytree(ART_FOLDER, folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} cannot be read \(No such file"):
        load_atlas(folder)


def test_load_atlas__checksums_of_other_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "art"
    shutil.copytree(ART_FOLDER, folder)
    (folder / "SHA256SUMS").write_text("0123  other.bin\n")
    with pytest.raises(DataError, match=r"lists \['other.bin'\], not atlas.webp and atlas.json"):
        load_atlas(folder)


def build_script() -> ModuleType:
    pytest.importorskip("resvg_py", reason="only the build script needs it")
    return module_of("scripts/build_demo_atlas.py")


def test_build_script__its_table_is_what_is_shipped() -> None:
    module = build_script()
    for record, object_class in zip(module.read_classes(), ATLAS.classes, strict=True):
        for key in ("id", "wnid", "name", "singular", "plural", "flies"):
            assert record[key] == getattr(object_class, key)
        assert tuple(record["keywords"]) == object_class.keywords
        assert record["group"] == object_class.group.name


def test_build_script__renders_trims_and_refuses_cards() -> None:
    module = build_script()
    icons = {
        "width": 32,
        "icons": {
            "disc": {"body": '<circle cx="16" cy="10" r="6" fill="#f00"/>'},
            "card": {"body": '<rect x="2" y="2" width="28" height="28" fill="#00f"/>'},
        },
        "aliases": {"ball": {"parent": "disc"}},
    }
    icons["height"] = 32
    disc = module.render_sprite(module.icon_svg(icons, "ball"))
    assert disc.size == (module.SPRITE_SIZE, module.SPRITE_SIZE)
    assert disc.getpixel((40, 40)) == (255, 0, 0, 255)
    with pytest.raises(SystemExit, match="card-like sprite"):
        module.render_sprite(module.icon_svg(icons, "card"))


def test_holding_out__other_vendors() -> None:
    other = ATLAS.holding_out(["fluent", "fluent-flat"])
    assert other.held_out_vendors == ("fluent", "fluent-flat")
    assert "emojione" in other.training_vendors and "fluent" not in other.training_vendors
    assert other.fingerprint == ATLAS.fingerprint and ATLAS.held_out_vendors == ("emojione",)
    assert ATLAS.holding_out(["emojione"]) == ATLAS


@pytest.mark.parametrize(
    "vendors", [["apple"], ["noto", "noto"], [*ATLAS.training_vendors, *ATLAS.held_out_vendors]]
)
def test_holding_out__not_all_none_twice_none_unknown(vendors: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"cannot be held out\. Give some, not all, of noto, "):
        ATLAS.holding_out(vendors)
