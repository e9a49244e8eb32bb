"""Making the demo world on disk once, and checking it whenever it is used.

The folder appears at its final name only when it is complete (`storage.atomic_folder`), under a
lock, with a manifest `world.json` that holds the size and the hash of every file.
"""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskclip_bench import storage
from maskclip_bench.data.demo.layouts import (
    SPLITS,
    MadePiece,
    Piece,
    atlas_of,
    finish_layout,
    make_piece,
    num_scenes,
    pieces,
    plan_captions,
)
from maskclip_bench.data.demo.sizes import DemoSizes
from maskclip_bench.errors import DataError
from maskclip_bench.runtime import default_num_threads

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 5
"""Raised when the same seed draws other scenes than before."""

MANIFEST = "world.json"

FOLDER = "demo"

SCENES_PER_PROCESS = 3_000
"""Scenes that make starting a further process worthwhile."""

Progress = Callable[[str, int, int], None]
MakePieces = Callable[[Iterable[Piece]], Iterator[MadePiece]]


def prepare_demo(
    data_root: Path,
    *,
    sizes: DemoSizes | None = None,
    seed: int = 0,
    held_out: Sequence[str] = (),
    folder: str = FOLDER,
    progress: Progress | None = None,
    num_processes: int | None = None,
) -> Path:
    """Make the demo world below `data_root` if it is not there; check it if it is.

    Safe to call from several processes at once: one makes it, the others wait.

    Args:
        data_root: Folder of the data sets.
        sizes: Numbers of scenes; a world of other sizes is replaced.
        seed: Of all scenes.
        held_out: Vendors of the splits `*_ood`, which no other split uses; by default those that
            the atlas holds out.
        folder: Name of the world below `data_root`.
        progress: Called with a stage, how many of its scenes are done, and how many there are.
        num_processes: Most processes to use; by default one for each core.

    Returns:
        `<data_root>/demo`, or the folder of that name.

    Raises:
        ConfigError: There is no such vendor to hold out.
        DataError: The artwork or a file of an existing world is corrupt, or the folder is
            something else.
        StorageError: The disk refused; nothing is left behind.
    """
    sizes = sizes or DemoSizes()
    world = data_root / folder
    expected = world_fingerprint(sizes, seed, held_out)
    if _is_current(world, expected):
        return world
    with storage.exclusive(world):
        if _is_current(world, expected):  # another process made it in the meantime
            return world
        _remove_leftovers(world)
        start = time.monotonic()
        with storage.atomic_folder(world) as made:
            files = _make_world(made, sizes, seed, held_out, progress, num_processes)
            manifest = {"fingerprint": expected, "seed": seed, "sizes": sizes.values()}
            if held_out:
                manifest["held_out"] = list(held_out)
            manifest["files"] = dict(sorted(files.items()))
            (made / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            storage.fsync_path(made / MANIFEST)
        logger.info("made the demo world in %.1f s: %s", time.monotonic() - start, world)
    return world


def world_fingerprint(sizes: DemoSizes, seed: int, held_out: Sequence[str] = ()) -> str:
    """Hash of everything that decides the content of a world.

    Raises:
        ConfigError: There is no such vendor to hold out.
        DataError: The artwork is corrupt.
    """
    parts: dict[str, Any] = {
        "generator": GENERATOR_VERSION,
        "atlas": atlas_of(held_out).fingerprint,
        "sizes": sizes.values(),
        "seed": seed,
    }
    if held_out:
        parts["held_out"] = list(held_out)
    return storage.fingerprint(parts)


def check_world(world: Path) -> dict[str, Any]:
    """Compare every file of a world with its manifest; returns the manifest.

    Raises:
        DataError: A file is missing, has another size, or other bytes.
    """
    manifest = _read_manifest(world)
    files: list[tuple[str, list[Any]]] = list(manifest["files"].items())
    with ThreadPoolExecutor(min(4, default_num_threads())) as executor:
        step = max(1, len(files) // 16)
        chunks = [files[start : start + step] for start in range(0, len(files), step)]
        for _ in executor.map(lambda chunk: _check_files(world, chunk), chunks):
            pass
    return manifest


def _check_files(world: Path, files: list[tuple[str, list[Any]]]) -> None:
    for path, (size, digest) in files:
        target = world / path
        try:
            found = target.stat().st_size
        except OSError as error:
            raise _corrupt(world, f"{target} cannot be read ({error.strerror})") from error
        if found != size:
            raise _corrupt(world, f"{target} has {found} bytes, and it was made with {size}")
        if storage.sha256_file(target) != digest:
            raise _corrupt(world, f"{target} is not as it was made: its SHA-256 differs")


def _read_manifest(world: Path) -> dict[str, Any]:
    path = world / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"fingerprint", "files"} <= set(manifest):
            raise ValueError("keys are missing")
    except FileNotFoundError as error:
        raise DataError(
            f"{world} is not a demo world: it has no {MANIFEST}. If nothing in it is yours, "
            f"delete it and run again: {_command_of(world)}"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise _corrupt(world, f"{path} cannot be read ({error})") from error
    return manifest


def _corrupt(world: Path, what: str) -> DataError:
    return DataError(f"{what}. Delete {world} and run again: {_command_of(world)}")


def _command_of(world: Path) -> str:
    """The command that makes a world, by its name."""
    if world.name == FOLDER:
        return "maskclip-bench data prepare demo"
    return f"maskclip-bench study run {world.name}"


def _is_current(world: Path, expected: str) -> bool:
    """Whether the world is complete; False if there is none, or one of other settings."""
    if not world.exists():
        return False
    if _read_manifest(world)["fingerprint"] != expected:
        logger.info("%s is of another version or other sizes: it is made again", world)
        return False
    check_world(world)
    return True


def _remove_leftovers(world: Path) -> None:
    """Delete what killed processes left; the caller holds the lock, so no process is using it."""
    for folder in world.parent.glob(f".{world.name}.*{storage.TEMPORARY_SUFFIX}"):
        shutil.rmtree(folder, ignore_errors=True)


def _make_world(
    world: Path,
    sizes: DemoSizes,
    seed: int,
    held_out: Sequence[str],
    progress: Progress | None,
    num_processes: int | None,
) -> dict[str, tuple[int, str]]:
    """Write all layouts below `world`; returns path -> size and SHA-256."""
    totals = {
        layout: sum(num_scenes(sizes, layout, split) for split in splits)
        for layout, splits in SPLITS.items()
    }
    most = num_processes or default_num_threads()
    workers = max(1, min(most, sum(totals.values()) // SCENES_PER_PROCESS))
    made: dict[str, list[MadePiece]] = {layout: [] for layout in SPLITS}

    def collect(parts: Iterable[MadePiece]) -> None:
        for part in parts:
            layout = part.piece.layout
            made[layout].append(part)
            if progress:
                done = sum(p.piece.stop - p.piece.start for p in made[layout])
                progress(layout, done, totals[layout])

    with _workers(workers, world, sizes, seed, held_out) as make:
        pairs = make(pieces(sizes, "pretrain"))
        others = make(
            piece
            for layout in ("objects", "scenes", "instances")
            for piece in pieces(sizes, layout)
        )
        collect(pairs)
        # Pretraining's captions are known now, so those of retrieval can differ from them.
        seen = {text for part in made["pretrain"] for texts in part.records for text in texts}
        captions = make(plan_captions(sizes, seed, seen, held_out=held_out))
        collect(others)
        collect(captions)

    files: dict[str, tuple[int, str]] = {}
    for layout, parts in made.items():
        for part in parts:
            files |= part.files
        files |= finish_layout(layout, parts, world)
    return files


@contextmanager
def _workers(
    count: int, world: Path, sizes: DemoSizes, seed: int, held_out: Sequence[str]
) -> Iterator[MakePieces]:
    """Yield a function that makes pieces: in this process if `count` is 1, else in others.

    It returns at once; pieces come as they are done.

    Raises:
        DataError: A process was killed.
    """
    make = functools.partial(
        make_piece, world=world, sizes=sizes, seed=seed, held_out=tuple(held_out)
    )
    if count == 1:
        yield lambda todo: map(make, todo)
        return

    def start(todo: Iterable[Piece]) -> Iterator[MadePiece]:
        futures = [executor.submit(make, piece) for piece in todo]
        return (future.result() for future in as_completed(futures))

    executor = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    )
    try:
        yield start
    except BrokenProcessPool as error:
        raise DataError(
            "A process that draws the demo world was killed, perhaps for lack of memory. Run "
            "again, with fewer cores if need be (taskset -c 0 maskclip-bench data prepare demo)."
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int) -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
