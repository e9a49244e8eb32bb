"""Predictions beside the truth for a few test images, drawn by the toolboxes' own visualizers.

A file is the truth on the left and the prediction on the right. They are in the work folder as
`pictures_{split}/000.png`..., listed in `pictures_{split}.json`:

    {"split": "validation", "left": "truth", "right": "prediction",
     "pictures": [{"file": "pictures_validation/000.png", "sample_id": "a/b.jpg"}, ...]}
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.dist import is_main_process
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from maskclip_bench.storage import write_json

logger = logging.getLogger(__name__)

MIN_SCORE = 0.3
"""Detections below are not drawn; mmdet's default."""


@HOOKS.register_module()
class Pictures(Hook):
    """Draw a few of the tested images, evenly spaced over the split, from the main process.

    A picture that cannot be drawn is left out with a warning; it never fails a test.

    Args:
        split: Name of the split, for the index.
        folder: Where the pictures go.
        index_file: JSON that lists them, with paths relative to its own folder.
        images: Folder of the images; sample ids are paths below it.
        number: How many; 0 draws none.
    """

    priority = "LOW"

    def __init__(
        self, split: str, folder: str, index_file: str, images: str = "", number: int = 4
    ) -> None:
        self.split = split
        self.folder = Path(folder)
        self.index_file = Path(index_file)
        self.images = Path(images) if images else None
        self.number = number
        self._seen = 0
        self._drawn: list[dict[str, str]] = []

    def before_test(self, runner: Runner) -> None:
        """Choose the images of this process."""
        self._seen, self._drawn = 0, []
        loader = runner.test_dataloader
        total = min(len(loader.dataset), len(loader) * (loader.batch_size or 1))
        count = min(self.number, total)
        self._chosen = {index * total // count for index in range(count)}

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draw those of the batch that were chosen."""
        for sample in outputs or ():
            if self._seen in self._chosen and is_main_process():
                try:
                    self._draw(runner, sample)
                except Exception as error:  # of matplotlib, OpenCV, fonts
                    logger.warning("%s: no picture: %s", sample.img_path, error)
            self._seen += 1

    def after_test(self, runner: Runner) -> None:
        """Write the index."""
        if is_main_process():
            write_json(
                self.index_file,
                {
                    "split": self.split,
                    "left": "truth",
                    "right": "prediction",
                    "pictures": self._drawn,
                },
            )

    def _draw(self, runner: Runner, sample: Any) -> None:
        path = Path(sample.img_path)
        image = mmcv.imfrombytes(get(str(path)), channel_order="rgb")
        file = self.folder / f"{len(self._drawn):03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        detection = "pred_instances" in sample
        options = {"pred_score_thr": MIN_SCORE} if detection else {"with_labels": False}
        runner.visualizer.add_datasample(
            path.name, image, data_sample=sample, out_file=str(file), **options
        )
        below = self.images is not None and path.is_relative_to(self.images)
        name = path.relative_to(self.images).as_posix() if below else path.name
        self._drawn.append(
            {"file": file.relative_to(self.index_file.parent).as_posix(), "sample_id": name}
        )
