"""Data sets that torchvision or the Hugging Face hub can fetch: their size first, then the files.

torchvision's own classes know the addresses, the checksums and how to unpack; only the transfer of
a file is replaced, so that one that was interrupted goes on where it stopped. The hub's library
does all of that itself.
"""

from __future__ import annotations

import contextlib
import inspect
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from maskclip_bench.errors import ConfigError, DataError, StorageError
from maskclip_bench.progress import Progress, no_progress

BLOCK = 1 << 20
TIMEOUT_SECONDS = 60.0
PART = ".part"
SPACE_FACTOR = 2.5
"""Free space that is asked for, in sizes of the download: archives and what is in them."""

Opener = Callable[..., Any]
"""`urllib.request.urlopen`, or what a test puts in its place."""


def torchvision_class(name: str) -> Any:
    """The class, if it can download.

    Raises:
        ConfigError: It cannot.
    """
    import torchvision

    kind = getattr(torchvision.datasets, name, None)
    if kind is None or "download" not in inspect.signature(kind).parameters:
        raise ConfigError(
            f"torchvision cannot download {name}. Get it as `obtain` says: maskclip-bench data list"
        )
    return kind


def addresses(kind: Any) -> list[str]:
    """Addresses of archives that a class of torchvision names among its attributes."""
    found: list[str] = []
    waiting: list[Any] = [
        value
        for name, value in vars(kind).items()
        if not name.startswith("__") and not callable(value)
    ]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, str):
            found += [value] if value.startswith(("http://", "https://")) else []
        elif isinstance(value, dict):
            waiting += list(value.values())
        elif isinstance(value, (list, tuple)):
            waiting += list(value)
    return [address for address in dict.fromkeys(found) if "." in address.rpartition("/")[2]]


def size_of(urls: Iterable[str], *, opener: Opener = urllib.request.urlopen) -> int | None:
    """Bytes of all addresses together; None if a server does not say it."""
    total = 0
    for url in urls:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with opener(request, timeout=TIMEOUT_SECONDS) as answer:
                length = answer.headers.get("Content-Length")
        except (OSError, urllib.error.URLError, ValueError):
            return None
        if length is None:
            return None
        total += int(length)
    return total or None


def check_space(folder: Path, size: int | None) -> None:
    """Refuse a download for which the disk has no room.

    Raises:
        StorageError: There is too little space.
    """
    if size is None:
        return
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < SPACE_FACTOR * size:
        raise StorageError(
            f"{folder} needs about {SPACE_FACTOR * size / 1e9:.1f} GB (archives and what is in "
            f"them), and {free / 1e9:.1f} GB are free. Make room, or set MASKCLIP_BENCH_DATA to "
            "another disk."
        )


def download(
    url: str,
    target: Path,
    *,
    progress: Progress = no_progress,
    opener: Opener = urllib.request.urlopen,
) -> None:
    """Fetch a file; what an earlier try left (`NAME.part`) is not fetched again.

    Raises:
        DataError: The server refuses, or ends before the file does.
        OSError: The disk refused.
    """
    part = target.with_name(target.name + PART)
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "maskclip-bench"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with opener(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        ) as answer:
            goes_on = have > 0 and getattr(answer, "status", 200) == 206
            have = have if goes_on else 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length is not None else 0
            with part.open("ab" if goes_on else "wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
                    have += len(block)
                    progress(f"{target.name}, MB", have >> 20, max(total, have) >> 20 or 1)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: the part is whole already
            raise _refused(url, error) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise _refused(url, error) from error
    else:
        if total and have < total:
            raise DataError(
                f"{url} ended after {have:,} of {total:,} bytes. The same command goes on there."
            )
    part.replace(target)


def _refused(url: str, error: Exception) -> DataError:
    return DataError(
        f"{url} cannot be fetched ({type(error).__name__}: {error}). The same command goes on "
        "where this one stopped."
    )


@contextlib.contextmanager
def resumable(progress: Progress, *, opener: Opener = urllib.request.urlopen) -> Iterator[None]:
    """Within it torchvision fetches files with `download`; it checks and unpacks them itself."""
    from torchvision.datasets import utils

    before = utils._urlretrieve

    def fetch(url: str, filename: Any, *_: Any, **__: Any) -> None:
        download(url, Path(filename), progress=progress, opener=opener)

    utils._urlretrieve = fetch
    try:
        yield
    finally:
        utils._urlretrieve = before


def fetch_torchvision(
    name: str,
    root: Path,
    arguments: Iterable[dict[str, Any]],
    *,
    progress: Progress = no_progress,
    opener: Opener = urllib.request.urlopen,
) -> None:
    """Let torchvision fetch and unpack a data set.

    Args:
        name: Its class.
        root: Where it goes.
        arguments: Of the class, once for each split.
        progress: Told of megabytes.
        opener: Opens addresses.

    Raises:
        ConfigError: torchvision cannot download it.
        DataError: A server refuses, or a file has another checksum.
    """
    kind = torchvision_class(name)
    root.mkdir(parents=True, exist_ok=True)
    with resumable(progress, opener=opener):
        for values in arguments:
            try:
                kind(str(root), **{**values, "download": True})
            except DataError:
                raise
            except Exception as error:  # what its readers and unpackers raise
                raise DataError(
                    f"torchvision cannot fetch {name} ({type(error).__name__}: "
                    f"{' '.join(str(error).split())[:300]}). Try again, or get it by hand: "
                    "maskclip-bench data list"
                ) from error


def hub_size(repository: str) -> int | None:
    """Bytes of a data set of the hub; None if it does not say."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().dataset_info(repository, files_metadata=True).siblings or []
    except Exception:  # no network, no such repository: fetching says which
        return None
    return sum(file.size or 0 for file in files) or None


def fetch_hub(repository: str, root: Path) -> None:
    """Fetch a data set of the hub into a folder; files that are whole are not fetched again.

    Raises:
        DataError: The hub refuses.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(repository, repo_type="dataset", local_dir=str(root))
    except Exception as error:  # the hub's library has errors of its own
        raise DataError(
            f"The hub's data set {repository} cannot be fetched ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}). Check the name, and whether it needs a login "
            "(hf auth login); the same command goes on where this one stopped."
        ) from error
