"""From a word on the command line or in Python to a row, without a YAML file.

| word | row |
| --- | --- |
| `maskclip_vit-demo_demo` | a declared row |
| `mine.yaml` | a declaration in a file |
| `timm:vit_base_patch16_224.mae` | a model of a family: prefix, colon, what the family takes |
| `runs/mine/model` | a folder: open_clip's format, a pretraining run, or Hugging Face's format |
"""

from __future__ import annotations

import re
from pathlib import Path

from maskclip_bench.backbones.declaration import (
    BackboneDeclaration,
    backbone_names,
    load_backbone_declaration,
)
from maskclip_bench.backbones.families import FAMILIES, Family, Source
from maskclip_bench.errors import ConfigError, unknown_name

RUN_FOLDERS = ("model", "teacher")
"""Folders of a pretraining run that hold a model, the usual one first."""


def resolve_backbone(text: str) -> BackboneDeclaration:
    """The row that a word names.

    Raises:
        UnknownNameError: There is no such row, and it is no string of a family and no folder.
        ConfigError: A file is wrong, or a folder holds no model.
    """
    if text.endswith((".yaml", ".yml")) or text in backbone_names():
        return load_backbone_declaration(text)
    prefix, colon, rest = text.partition(":")
    families = families_by_prefix()
    if colon and prefix in families:
        if not rest:
            raise ConfigError(f"{text!r} names no model. Write it after the colon.")
        return _declared(text, families[prefix].source_from_string(rest))
    path = Path(text).expanduser()
    if path.is_dir():
        return _declared(text, _source_of_folder(path.absolute()))
    raise unknown_name(
        "backbone",
        text,
        backbone_names(),
        remedy="Name a row (maskclip-bench list backbones), a .yaml file, the folder of a model, "
        f"or a model of a family: {', '.join(f'{each}:...' for each in families)}.",
    )


def families_by_prefix() -> dict[str, Family]:
    """The families whose models a string can name, by prefix; a family's name works as well."""
    found: dict[str, Family] = {}
    for name in FAMILIES.names():
        family = FAMILIES[name]
        found[family.prefix or name] = family
        found.setdefault(name, family)
    return found


def row_name(text: str) -> str:
    """The name of the row that a word names; nothing is read."""
    if text.endswith((".yaml", ".yml")):
        return Path(text).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "backbone"


def cell_name(text: str) -> str:
    """A cell as it is recorded, from one whose row is named as `run --backbone` takes it.

    Example:
        >>> cell_name("python:my_encoder:MyEncoder/knn/birds")
        'python-my_encoder-MyEncoder/knn/birds'
    """
    row, *task = text.rsplit("/", 2)
    named = ":" in row or row.endswith((".yaml", ".yml"))
    return "/".join([row_name(row) if named else row, *task])


def _declared(text: str, source: Source) -> BackboneDeclaration:
    """A row of the real world, named after the word."""
    return BackboneDeclaration(name=row_name(text), display_name=text, world="real", source=source)


def _source_of_folder(folder: Path) -> Source:
    """The source of a folder, by what it holds.

    Raises:
        ConfigError: It holds no model.
    """
    from maskclip_bench.backbones.families.huggingface import HuggingFaceSource, is_folder
    from maskclip_bench.backbones.families.open_clip_folder import (
        FOLDER_CONFIG,
        OpenClipFolderSource,
    )

    for candidate in (folder, *(folder / part for part in RUN_FOLDERS)):
        if (candidate / FOLDER_CONFIG).is_file():
            return OpenClipFolderSource(open_clip_folder=str(candidate))
    if is_folder(folder):
        return HuggingFaceSource(huggingface=str(folder))
    raise ConfigError(
        f"{folder} holds no model: neither {FOLDER_CONFIG} (open_clip's format, also in model/ of "
        "a pretraining run) nor a config.json of Hugging Face. Give the folder that holds one."
    )
