"""The folder of a run: whose it is, who writes in it, and whether it is finished.

It holds recipe.yaml, log.jsonl, progress.json, tensorboard/, checkpoints/, and at the end teacher/
and model/. Anything in it may be damaged or missing; what a run needs of it is verified.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml

from maskclip_bench import distributed, storage
from maskclip_bench.config import read_yaml
from maskclip_bench.errors import ConfigError, DamagedFileError, MaskCLIPBenchError, StorageError
from maskclip_bench.pretrain.export import finished_fingerprint
from maskclip_bench.pretrain.recipe import Recipe, recorded_recipe
from maskclip_bench.runtime import CHECKPOINT_FOLDER, MODEL_FOLDER, RECIPE_FILE, TEACHER_FOLDER
from maskclip_bench.training.checkpoint import CheckpointStore

logger = logging.getLogger(__name__)


class RunFolder:
    """One run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def model(self) -> Path:
        """The finished student."""
        return self.root / MODEL_FOLDER

    @property
    def teacher(self) -> Path:
        """The finished momentum teacher, of methods that have one."""
        return self.root / TEACHER_FOLDER

    def store(self, *, keep: int) -> CheckpointStore:
        """The checkpoints."""
        return CheckpointStore(self.root / CHECKPOINT_FOLDER, keep=keep)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock on the main process; another run on this folder waits.

        Raises:
            StorageError: The disk refused.
        """
        with contextlib.ExitStack() as stack:
            distributed.on_main(partial(self._lock, stack))
            yield

    def _lock(self, stack: contextlib.ExitStack) -> None:
        try:
            stack.enter_context(storage.exclusive(self.root / "run", timeout=0.2))
        except StorageError:
            logger.info("Another process trains in %s; waiting for it.", self.root)
            stack.enter_context(storage.exclusive(self.root / "run"))
        storage.remove_leftovers(self.root, recursive=True)

    def is_finished(self, recipe: Recipe) -> bool:
        """Whether model/ (and teacher/) of this recipe are there, as they were written.

        Raises:
            DamagedFileError: They are damaged, and no checkpoint is left to write them again from.
        """
        if finished_fingerprint(self.model) != recipe.computation_fingerprint():
            return False
        problems = {
            folder: found
            for folder in (self.model, self.teacher)
            if folder.is_dir() and (found := storage.check_checksums(folder))
        }
        for folder, found in problems.items():
            message = f"{folder} is damaged: {', '.join(found)}."
            if not self._checkpoints():
                raise DamagedFileError(
                    f"{message} There is no checkpoint to write it again from. Restore it from a "
                    f"backup, or remove {self.root} to train again."
                )
            logger.warning("%s It is written again from the newest checkpoint.", message)
        return not problems

    def claim(self, recipe: Recipe) -> None:
        """Write recipe.yaml, or make sure that the one there is of the same computation.

        A recipe of which nothing was computed yet (no checkpoint, no model) is replaced.

        Raises:
            ConfigError: The folder holds another run.
            StorageError: The disk refused.
        """
        path = self.root / RECIPE_FILE
        there = self.recorded()
        if there is None:
            self._check_model(recipe)
        elif self._has_begun():
            self.check_same(there, recipe)
        storage.write_text(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))

    def check_same(self, there: Recipe, recipe: Recipe) -> None:
        """Compare the recipe of what is here with the one that is asked for.

        Raises:
            ConfigError: They compute something else.
        """
        if there.computation_fingerprint() == recipe.computation_fingerprint():
            return
        ours, theirs = recipe.model_dump(mode="json"), there.model_dump(mode="json")
        keys = [key for key in ours if ours[key] != theirs.get(key) and key != "name"]
        raise ConfigError(
            f"{self.root} holds a run of another recipe; it differs in: {', '.join(keys)}. "
            "Choose another folder with --output, or remove that one."
        )

    def recorded(self) -> Recipe | None:
        """The recipe in the folder; None if there is none, or it cannot be read (with a warning).

        What was computed is still known: every checkpoint holds its recipe.
        """
        path = self.root / RECIPE_FILE
        if not path.exists():
            return None
        try:
            return recorded_recipe(read_yaml(path), where=str(path))
        except (MaskCLIPBenchError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            logger.warning("%s cannot be read and is written again. (%s)", path, reason)
            return None

    def _check_model(self, recipe: Recipe) -> None:
        """Without a recipe, make sure that no finished model of another one is replaced."""
        made_by = finished_fingerprint(self.model)
        if made_by not in (None, recipe.computation_fingerprint()) and not self._checkpoints():
            raise ConfigError(
                f"{self.model} was made by another recipe, and {RECIPE_FILE} beside it is missing "
                "or damaged. Choose another folder with --output, or remove that one."
            )

    def _checkpoints(self) -> list[Path]:
        return self.store(keep=1).paths()

    def _has_begun(self) -> bool:
        return bool(self._checkpoints()) or self.model.exists()
