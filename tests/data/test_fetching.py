"""Fetching with a server in memory: resuming, checksums, space."""

from __future__ import annotations

import email.message
import hashlib
import io
import sys
import tarfile
import types
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torchvision
from torchvision.datasets import utils

from maskclip_bench.data import fetching
from maskclip_bench.errors import ConfigError, DataError, StorageError

URL = "https://example.org/set.tar"


class Server:
    """`urlopen` of files in memory; may end early."""

    def __init__(self, files: dict[str, bytes], *, stop_at: int | None = None) -> None:
        self.files = files
        self.stop_at = stop_at
        self.ranges: list[str | None] = []

    def __call__(self, request: Any, timeout: float) -> Any:
        url = request.full_url
        if url not in self.files:
            raise urllib.error.HTTPError(url, 404, "Not Found", email.message.Message(), None)
        content, wanted = self.files[url], request.headers.get("Range")
        if request.get_method() != "HEAD":
            self.ranges.append(wanted)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
        if start >= len(content) and wanted:
            raise urllib.error.HTTPError(url, 416, "Range", email.message.Message(), None)
        answer = io.BytesIO(content[start : self.stop_at])
        headers = {"Content-Length": str(len(content) - start)}
        answer.headers = headers  # type: ignore[attr-defined]
        answer.status = 206 if wanted else 200  # type: ignore[attr-defined]
        return answer


def test_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20
    target = tmp_path / "set.tar"
    with pytest.raises(DataError, match=r"ended after 1,000 of 5,120 bytes. The same command"):
        fetching.download(URL, target, opener=Server({URL: content}, stop_at=1000))
    assert not target.exists()
    server = Server({URL: content})
    fetching.download(URL, target, opener=server)
    assert (target.read_bytes(), server.ranges) == (content, ["bytes=1000-"])
    (tmp_path / "set.tar.part").write_bytes(content)  # whole, but not renamed
    fetching.download(URL, target, opener=server)
    assert target.read_bytes() == content


def test_download__refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be fetched \(HTTPError: HTTP Error 404"):
        fetching.download(URL, tmp_path / "x", opener=Server({}))


def test_size() -> None:
    server = Server({URL: b"12345", f"{URL}.2": b"67"})
    assert fetching.size_of([URL, f"{URL}.2"], opener=server) == 7
    assert fetching.size_of([URL, "https://example.org/absent.tar"], opener=server) is None


def test_space(tmp_path: Path) -> None:
    fetching.check_space(tmp_path / "a/b", 1000)
    fetching.check_space(tmp_path / "a/b", None)
    with pytest.raises(StorageError, match=r"needs about .* GB .* are free. Make room"):
        fetching.check_space(tmp_path / "a/b", 10**18)


def test_addresses_of_torchvision() -> None:
    assert fetching.addresses(torchvision.datasets.CIFAR10)[0].endswith("cifar-10-python.tar.gz")
    assert len(fetching.addresses(torchvision.datasets.DTD)) == 1
    with pytest.raises(ConfigError, match="torchvision cannot download FER2013"):
        fetching.torchvision_class("FER2013")


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("set/a.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"hi"))
    return buffer.getvalue()


def small(digest: str) -> Any:
    class Small(torchvision.datasets.VisionDataset):
        _URL = URL

        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            super().__init__(root)
            if download:
                utils.download_and_extract_archive(URL, root, md5=digest)

    return Small


def test_torchvision_checks_and_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive()
    digest = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(torchvision.datasets, "Small", small(digest), raising=False)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops=3: url)
    before = utils._urlretrieve
    server = Server({URL: content})
    splits = [{"split": "train"}, {"split": "test"}]
    fetching.fetch_torchvision("Small", tmp_path, splits, opener=server)
    assert (tmp_path / "set/a.txt").read_text() == "hi"
    assert len(server.ranges) == 1  # the second split finds the archive
    assert utils._urlretrieve is before
    monkeypatch.setattr(torchvision.datasets, "Small", small("0" * 32), raising=False)
    with pytest.raises(DataError, match=r"torchvision cannot fetch Small \(RuntimeError"):
        fetching.fetch_torchvision("Small", tmp_path / "new", splits, opener=server)


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def snapshot(repository: str, *, repo_type: str, local_dir: str) -> None:
        calls.append((repository, repo_type, local_dir))
        if repository == "a/absent":
            raise OSError("404")

    class Api:
        def dataset_info(self, repository: str, files_metadata: bool) -> Any:
            files = [types.SimpleNamespace(size=3), types.SimpleNamespace(size=None)]
            return types.SimpleNamespace(siblings=files)

    hub = types.SimpleNamespace(snapshot_download=snapshot, HfApi=Api)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    fetching.fetch_hub("a/b", tmp_path)
    assert calls == [("a/b", "dataset", str(tmp_path))]
    assert fetching.hub_size("a/b") == 3
    with pytest.raises(DataError, match=r"The hub's data set a/absent cannot be fetched \(OSError"):
        fetching.fetch_hub("a/absent", tmp_path)
