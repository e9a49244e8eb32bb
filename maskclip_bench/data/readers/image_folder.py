"""Images in a folder a class: `{split}/{class}/**/*.jpg`, or all splits in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from maskclip_bench.data.class_table import FOLDER_IS_INDEX, ClassTable, folder_table
from maskclip_bench.data.dataset import Dataset, FileImages
from maskclip_bench.data.directory_walk import list_folders, walk_images
from maskclip_bench.data.groups import Groups, find_groups
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.readers.random_split import split_per_class

BESIDE = "images beside the class folders"


class ImageFolder(ReaderDeclaration):
    """Images in a folder a class. A class folder without images is a class all the same."""

    kind: Literal["image_folder"] = "image_folder"
    classes: str | None = None
    """File with the classes in index order (JSON list of names or of objects with `wnid` and
    `name`; or text, one `folder name` a line), `imagenet-1k`, or `index`. Without it the folders
    of all splits, sorted."""
    class_field: str = "name"
    """Key of the class's words, where the list holds objects."""
    groups: Groups = Groups()
    """Without it, each image is its own group."""
    folder: str = "{split}"
    """Folder of the class folders below the root; `{split}` in it is the name of the split."""
    train_per_class: PositiveInt | None = None
    """For sets without official splits: that many random images a class are `train`, the rest is
    `test`; drawn once and for all from the class and the file order."""

    def needed_paths(self, split: str, root: Path) -> list[Path]:
        """The folder of the split."""
        return [root, self._folder(root, split)]

    def class_table(self, splits: Sequence[str], root: Path, *, what: str) -> ClassTable:
        """From the declared list, or from the folders of all splits."""
        folders: list[str] = []
        if self.classes in (None, FOLDER_IS_INDEX):
            places = dict.fromkeys(self._folder(root, split) for split in splits)
            folders = [name for place in places for name in list_folders(place)]
        return folder_table(self.classes, field=self.class_field, root=root, folders=folders)

    def open(self, split: str, root: Path, *, classes: ClassTable | None, what: str) -> Dataset:
        """Open a split; see the base class."""
        assert classes is not None
        folder = self._folder(root, split)
        walk = walk_images(folder)
        beside = [file.name for file in walk.files if "/" not in file.name]
        files = [file for file in walk.files if "/" in file.name]
        walk.left_over.add_all(BESIDE, beside)
        names = [file.name for file in files]
        labels = classes.labels_of(
            (name.partition("/")[0] for name in names),
            what=what,
            noun=f"folders in {folder}",
        )
        paths = [file.path for file in files]
        dataset = Dataset(
            name=what,
            split=split,
            sample_ids=names,
            groups=find_groups(self.groups, names, root, split, what),
            read=FileImages(paths),
            files=paths,
            labels=np.array(labels, dtype=np.int64),
            classes=classes,
            image_paths=paths,
            left_over=walk.left_over,
        )
        if self.train_per_class is None:
            return dataset
        chosen = split_per_class(dataset.need_labels(), self.train_per_class, split)
        return replace(dataset.take(chosen.tolist()), files=[paths[index] for index in chosen])

    def _folder(self, root: Path, split: str) -> Path:
        return root / self.folder.replace("{split}", split)
