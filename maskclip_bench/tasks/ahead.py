"""What a row's run does ahead: the texts of all its tasks at once, the files of the next set."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskclip_bench.errors import StorageError
from maskclip_bench.jobs import JobCancelled
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.cell import Column
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.measure import context_of
from maskclip_bench.tasks.protocols.base import open_split

if TYPE_CHECKING:
    from maskclip_bench.backbones import Backbone

logger = logging.getLogger(__name__)


def encode_texts_ahead(
    columns: Sequence[Column],
    backbone: Backbone,
    *,
    workspace: Workspace,
    features: FeatureStore,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> None:
    """Encode the texts of all tasks of a row at once.

    A task whose texts cannot be found is left out: measuring it says what is wrong.

    Raises:
        StorageError: The disk refused.
    """
    if not backbone.has_text:
        return
    lists = []
    for column in columns:
        context = context_of(
            column.protocol,
            column.declaration,
            backbone,
            workspace=workspace,
            features=features,
            limit=limit,
        )
        try:
            texts = column.protocol.texts(context)
        except (KeyboardInterrupt, JobCancelled, StorageError):
            raise
        except BaseException:  # data, settings, a protocol of another package
            logger.debug("no texts of %s", column.name, exc_info=True)
            continue
        lists += [texts] if texts else []
    try:
        features.encode_ahead(backbone, lists, progress=progress)
    except (KeyboardInterrupt, JobCancelled, StorageError):
        raise
    except BaseException:  # the first task that asks for a broken text says so
        logger.debug("texts were not encoded ahead", exc_info=True)


class ReadAhead:
    """Reads the files of a row's next data set while the present one is computed.

    They are listed, hashed and their headers checked, in one thread that a run does not wait for;
    what is wrong with them is said when they are measured.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._seen: set[str] = set()
        self._thread: threading.Thread | None = None

    def next_of(self, columns: Sequence[Column], index: int) -> Column | None:
        """The first column after `index` that is on a data set not read yet."""
        self._seen.add(columns[index].declaration.name)
        return next((c for c in columns[index + 1 :] if c.declaration.name not in self._seen), None)

    def start(self, columns: Sequence[Column], index: int) -> None:
        """Begin with the data set after the column at `index`, if nothing is being read."""
        following = self.next_of(columns, index)
        if following is None or (self._thread is not None and self._thread.is_alive()):
            return
        self._seen.add(following.declaration.name)
        self._thread = threading.Thread(
            target=self._read, args=(following,), name="read-ahead", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is read."""
        if self._thread is not None:
            self._thread.join()

    def _read(self, column: Column) -> None:
        task = column.declaration
        for split in task.splits:
            try:
                dataset = open_split(task, split, self._workspace)
                dataset.check_images()
                dataset.hash_files(lambda done, total: None)
            except BaseException:  # said when it is measured
                logger.debug("%s was not read ahead", task.name, exc_info=True)
                return
