from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from maskclip_bench.data.tar_scan import (
    BLOCK,
    CONTINUED,
    CUT_OFF,
    DAMAGED,
    HIDDEN,
    LINK,
    NO_IMAGE,
    NO_TEXT,
    OTHER,
    REPEATED_FILE,
    REPEATED_KEY,
    TRUNCATED,
    TWO_IMAGES,
    Member,
    TarListing,
    TarSamples,
    group_samples,
    scan_tar,
    split_name,
)
from maskclip_bench.errors import DataError

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in ("jpg", "png")


def write_tar(path: Path, members: list[tuple[str, bytes]], tar_format: int = 1) -> bytes:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.read_bytes()


def content(path: Path) -> list[tuple[str, bytes]]:
    data = path.read_bytes()
    return [(m.name, data[m.offset : m.offset + m.size]) for m in scan_tar(path).members]


def grouped(
    names: list[str], texts: tuple[str, ...] = ("cls", "txt"), **listing: Any
) -> TarSamples:
    members = [Member(name, BLOCK * i, 1) for i, name in enumerate(names)]
    return group_samples(TarListing(members, **listing), is_image=is_image, text_suffixes=texts)


def keys(found: TarSamples) -> list[str]:
    return [sample.key for sample in found.samples]


# --- the listing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tar_format", FORMATS)
def test_scan__equals_tarfile(tmp_path: Path, tar_format: int) -> None:
    long = "folder/" * 12 + "name-" * (2 if tar_format == tarfile.USTAR_FORMAT else 40)
    members = [("a.jpg", b"x" * 700), (f"{long}.jpg", b""), ("ü-é.json", b"y" * 512), ("z", b"1")]
    write_tar(tmp_path / "a.tar", members, tar_format)
    assert scan_tar(tmp_path / "a.tar").problem is None
    assert content(tmp_path / "a.tar") == members


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=130)


@settings(max_examples=60, deadline=None)
@given(
    members=st.lists(st.tuples(names, st.binary(max_size=1100)), max_size=5),
    tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_scan__equals_tarfile_on_random_tars(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]], tar_format: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.tar"
    write_tar(path, members, tar_format)
    expected = []
    with tarfile.open(path) as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            expected.append((info.name, file.read()))
    assert content(path) == expected
    assert scan_tar(path).problem is None


def test_scan__every_cut_is_noticed(tmp_path: Path) -> None:
    members = [("a.jpg", b"x" * 700), ("b" * 150, b"y" * 512), ("c", b"")]
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = write_tar(tmp_path / "whole.tar", members, tar_format)
        end = len(data.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
        for cut in [*range(0, end + 1, 128), end + 100]:
            (tmp_path / "cut.tar").write_bytes(data[:cut])
            listing = scan_tar(tmp_path / "cut.tar")
            assert listing.problem == TRUNCATED, cut
            assert "it ends" in listing.detail
            assert content(tmp_path / "cut.tar") == members[: len(listing.members)]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), tar_format=st.sampled_from(FORMATS))
def test_scan__damaged_headers_never_hang_or_raise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, tar_format: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    long = "n" * (90 if tar_format == tarfile.USTAR_FORMAT else 150)
    tar = bytearray(write_tar(path, [(long, b"x" * 10), ("b.jpg", b"y")], tar_format))
    for _ in range(data.draw(st.integers(1, 4))):
        tar[data.draw(st.integers(0, 2600))] = data.draw(st.integers(0, 255))
    for start in range(0, 2560, BLOCK):  # checksums fit, so that the damage is looked at
        total = sum(tar[start : start + 148]) + 256 + sum(tar[start + 156 : start + BLOCK])
        if tar[start + 257 : start + 262] == b"ustar":
            tar[start + 148 : start + 156] = b"%06o\0 " % total
    path.write_bytes(bytes(tar))
    try:
        listing = scan_tar(path)
    except DataError as error:
        assert "is compressed" in str(error)
        return
    size = path.stat().st_size
    assert all(m.size >= 0 and m.offset + m.size <= size for m in listing.members)


def test_scan__folders_links_and_special_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in [
            ("d", tarfile.DIRTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("soft.jpg", tarfile.SYMTYPE),
            ("pipe", tarfile.FIFOTYPE),
            ("dev", tarfile.CHRTYPE),
            ("x.jpg", tarfile.REGTYPE),
            ("part", b"M"),
            ("new", b"Z"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x.jpg"
            tar.addfile(info)
    listing = scan_tar(path)
    assert [m.name for m in listing.members] == ["x.jpg"]
    assert listing.special == [
        ("hard.jpg", "hard link"),
        ("soft.jpg", "symbolic link"),
        ("pipe", "named pipe"),
        ("dev", "device"),
        ("part", "part of a file begun in another archive"),
        ("new", "file of type b'Z'"),
    ]


def old_header(name: bytes, size: int, kind: bytes = b"0", *, signed: bool = False) -> bytearray:
    header = bytearray(BLOCK)
    header[: len(name)] = name
    header[124:136] = b"%011o\0" % size
    header[156:157] = kind
    return with_checksum(header, signed=signed)


def with_checksum(header: bytearray, *, signed: bool = False) -> bytearray:
    header[148:156] = b" " * 8
    total = sum(header) - (256 * sum(byte > 127 for byte in header) if signed else 0)
    header[148:156] = b"%06o\0 " % total
    return header


def test_scan__old_formats(tmp_path: Path) -> None:
    """No `ustar`, a folder by its slash, a type of zero, a checksum of signed bytes."""
    path = tmp_path / "a.tar"
    path.write_bytes(
        old_header(b"folder/", 0, b"\0")
        + old_header("é.jpg".encode("latin-1"), 1, b"\0", signed=True)
        + b"x".ljust(BLOCK, b"\0")
        + bytes(2 * BLOCK)
    )
    assert content(path) == [("\udce9.jpg", b"x")]


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_scan__sparse_members_are_special_and_passed(tmp_path: Path, blocks: int) -> None:
    sparse = old_header(b"sparse.jpg", 5, b"S")
    sparse[482] = blocks > 0
    with_checksum(sparse)
    further = b"".join(bytes(504) + bytes([i < blocks - 1]) + bytes(7) for i in range(blocks))
    tail = bytes(old_header(b"x.jpg", 0)) + bytes(2 * BLOCK)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(sparse) + further + b"12345".ljust(BLOCK, b"\0") + tail)
    listing = scan_tar(path)
    assert listing.special == [("sparse.jpg", "sparse file")]
    assert ([m.name for m in listing.members], listing.problem) == (["x.jpg"], None)
    if blocks:
        path.write_bytes(bytes(sparse))
        assert scan_tar(path).detail == "it ends inside the map of a sparse file"


def test_scan__sparse_of_pax(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("GNUSparseFile.0/a.jpg")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "a.jpg"}
        tar.addfile(info)
    assert [kind for _, kind in scan_tar(path).special] == ["sparse file"]


def test_scan__global_pax_header_is_passed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    headers = {"comment": "a commit"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
        tar.addfile(tarfile.TarInfo("x.jpg"))
    assert content(path) == [("x.jpg", b"")]


def test_scan__two_tars_put_together(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    data = write_tar(path, [("a.jpg", b"1")])
    path.write_bytes(data + data)
    listing = scan_tar(path)
    assert (listing.problem, len(listing.members)) == (CONTINUED, 1)
    assert "were two tars put together?" in listing.detail


def test_scan__hole_left_by_a_download(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    data = write_tar(path, [(f"{i}.jpg", bytes([i + 1]) * 600) for i in range(4)])
    path.write_bytes(data[: 3 * BLOCK] + bytes(len(data) - 3 * BLOCK + (4 << 20)))
    listing = scan_tar(path)
    assert listing.problem == TRUNCATED and "download that was not finished" in listing.detail
    path.write_bytes(data[: 3 * BLOCK] + bytes(BLOCK) + data[4 * BLOCK :])
    assert scan_tar(path).problem == CONTINUED


@pytest.mark.parametrize(
    ("content", "problem", "detail"),
    [
        (b"", TRUNCATED, "it ends at its start"),
        (b"<html>not found</html>", TRUNCATED, "at its start"),
        (b"<html>not found</html>" * 100, DAMAGED, "it may be no tar at all"),
    ],
)
def test_scan__no_tar(tmp_path: Path, content: bytes, problem: str, detail: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    listing = scan_tar(tmp_path / "a.tar")
    assert listing.problem == problem and detail in listing.detail


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"0 path=x\n", "a pax record that is cut off"),
        (b"9 path=x\n99 size=1\n", "a pax record that is cut off"),
        (b"x path=y\n", "a pax record of length"),
        (b"-9 path=y\n", "a pax record of length"),
        (b"11 size=-1\n", "the size '-1'"),
        (b"12 size=1_0\n", "a broken header at byte 0 (the size"),
    ],
)
def test_scan__broken_pax_records(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.tar"
    header = bytes(old_header(b"pax", len(data), b"x"))
    tail = bytes(old_header(b"x.jpg", 0)) + bytes(2 * BLOCK)
    path.write_bytes(header + data.ljust(BLOCK, b"\0") + tail)
    listing = scan_tar(path)
    assert listing.problem == DAMAGED and words in listing.detail


def test_scan__bad_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for field, words in [
        (b"99999999999\0", "the number b'99999999999'"),
        (b"\xff" * 12, "a size of -1"),
        (b"\x80" + b"\x7f" * 11, "it ends inside x.jpg"),
    ]:
        header = old_header(b"x.jpg", 0)
        header[124:136] = field
        path.write_bytes(bytes(with_checksum(header)) + bytes(2 * BLOCK))
        assert words in scan_tar(path).detail
    path.write_bytes(bytes(old_header(b"name", 2 << 20, b"L")) + bytes(3 << 20))
    assert "a name of 2,097,152 bytes" in scan_tar(path).detail


def test_scan__large_sizes_in_base_256(tmp_path: Path) -> None:
    header = old_header(b"x.jpg", 0)
    header[124:136] = b"\x80" + (9).to_bytes(11, "big")
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(with_checksum(header)) + b"123456789".ljust(3 * BLOCK, b"\0"))
    assert content(path) == [("x.jpg", b"123456789")]


@pytest.mark.parametrize(
    ("start", "name"), [(b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"PK\3\4", "zip")]
)
def test_scan__compressed_says_what_to_do(tmp_path: Path, start: bytes, name: str) -> None:
    (tmp_path / "a.tar").write_bytes(start + b"x" * 2000)
    with pytest.raises(DataError, match=rf"compressed \({name}\).*unpack it"):
        scan_tar(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="gzip"):
        scan_tar(tmp_path / "a.tar")


def test_scan__name_that_begins_like_a_compressed_file(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("PK.jpg", b"1")])
    assert content(tmp_path / "a.tar") == [("PK.jpg", b"1")]


def test_scan__pipe_and_disk_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(DataError, match="named pipe"):
        scan_tar(tmp_path / "a.tar")

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_tar(tmp_path / "b.tar", [])
    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(DataError, match=r"Cannot read .*b\.tar \(Input/output error\)"):
        scan_tar(tmp_path / "b.tar")


# --- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("cat/0001.CLS", ("cat/0001", "cls")),
        ("v1.0/a.seg.png", ("v1.0/a", "seg.png")),
        ("./a.jpg", ("./a", "jpg")),
        ("._a.jpg", None),
        ("v1.0/README", None),
        (".DS_Store", None),
        ("a.", ("a", "")),
    ],
)
def test_split_name__is_webdatasets_rule(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected
    key, suffix = webdataset.tariterators.base_plus_ext(name)
    assert (None if key is None else (key, suffix.lower())) == expected


def test_samples__same_base_name_in_two_folders(tmp_path: Path) -> None:
    found = grouped(["cat/1.jpg", "cat/1.cls", "dog/1.jpg", "dog/1.cls"])
    assert keys(found) == ["cat/1", "dog/1"] and not found.irregular
    found = grouped(["cat/1.jpg", "dog/1.jpg", "cat/1.cls", "dog/1.cls"])
    assert [(s.image.name, s.texts["cls"].name) for s in found.samples] == [
        ("cat/1.jpg", "cat/1.cls"),
        ("dog/1.jpg", "dog/1.cls"),
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            ["v1.0/a.1.jpg", "v1.0/a.1.cls", "v1.0/a.2.jpg", "v1.0/a.2.cls"],
            ["v1.0/a.1", "v1.0/a.2"],
        ),
        (["a.1.jpg", "a.2.jpg", "a.1.cls", "a.2.cls"], ["a.1", "a.2"]),
        (["p.jpg", "p.cls", "p.v2.jpg", "p.v2.cls"], ["p", "p.v2"]),
        (["a.b.c.jpg", "a.b.c.txt"], ["a.b.c"]),
        (["a.jpg", "a.seg.png", "a.cls", "b.jpg", "b.seg.png", "b.cls"], ["a", "b"]),
        (["a.JPG", "a.Cls"], ["a"]),
        (["a.jpg", "a.json", "a.txt", "a.cls"], ["a"]),
    ],
)
def test_samples__dots_in_names(files: list[str], expected: list[str]) -> None:
    found = grouped(files)
    assert sorted(keys(found)) == expected
    assert not found.irregular
    for sample in found.samples:
        for text in sample.texts.values():
            assert text.name.rpartition(".")[0] == sample.image.name.rpartition(".")[0]


def test_samples__fields_are_named() -> None:
    (sample,) = grouped(["a.jpg", "a.seg.png", "a.json", "a.txt", "a.cls"]).samples
    assert sample.fields == ["json", "seg.png"] and sorted(sample.texts) == ["cls", "txt"]


@pytest.mark.parametrize(
    ("files", "reason", "words"),
    [
        (["a.jpg"], NO_TEXT, "a (files: jpg)"),
        (["a.jpg", "a.json"], NO_TEXT, "a (files: jpg, json)"),
        (["a.jpg", "a.cls.txt"], NO_TEXT, "a (files: jpg, cls.txt)"),
        (["a.1.jpg"], NO_TEXT, "a.1 (files: jpg)"),
        (["a.jpg", "a.cls", "a.2.jpg", "b.jpg", "b.cls"], NO_TEXT, "a.2.jpg"),
        (["a.cls"], NO_IMAGE, "a (files: cls)"),
        (["a.heic", "a.cls"], NO_IMAGE, "a (files: heic, cls)"),
        (["a.jpg", "a.png", "a.cls"], TWO_IMAGES, "a (files: jpg, png, cls)"),
        (["a.jpg", "a.jpg", "a.cls"], REPEATED_FILE, "a.jpg"),
        (["a.jpg", "a.JPG", "a.cls"], REPEATED_FILE, "a.JPG"),
        (["a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls"], REPEATED_KEY, "a"),
        (["._a.jpg", "a.jpg", "a.cls"], HIDDEN, "._a.jpg"),
        (["README", "a.jpg", "a.cls"], OTHER, "README"),
        (["meta.json", "a.jpg", "a.cls"], OTHER, "meta.json"),
    ],
)
def test_samples__irregular(files: list[str], reason: str, words: str) -> None:
    assert grouped(files).irregular == {reason: [words]}


def test_samples__links_are_irregular() -> None:
    found = grouped(["a.jpg", "a.cls"], special=[("b.jpg", "hard link")])
    assert found.irregular == {LINK: ["b.jpg (hard link)"]}


def test_samples__twice_the_same_key_stay_apart() -> None:
    found = grouped(["a.jpg", "a.txt", "b.jpg", "b.txt", "a.cls", "a.txt", "a.jpg"])
    first, _, second = found.samples
    assert (first.image.offset, first.texts["txt"].offset, list(first.texts)) == (0, BLOCK, ["txt"])
    assert (second.image.offset, second.texts["cls"].offset) == (6 * BLOCK, 4 * BLOCK)
    assert (first.repeated, second.repeated) == (False, True)


def test_samples__cut_off_at_the_end_is_counted_apart() -> None:
    found = grouped(["a.jpg", "b.jpg", "b.cls", "c.jpg"], problem=TRUNCATED)
    assert found.irregular == {NO_TEXT: ["a (files: jpg)"], CUT_OFF: ["c (files: jpg)"]}


def test_samples__key_that_is_no_utf8() -> None:
    assert keys(grouped(["caf\udce9.jpg", "caf\udce9.cls"])) == ["caf\\xe9"]


def test_samples__nothing() -> None:
    assert grouped([]) == TarSamples()


parts = st.sampled_from(["a", "b", "cat/a", "dog/a", "v1.0/b", "x y", "é"])
suffixes = st.lists(st.sampled_from(["jpg", "png", "txt", "json", "CLS"]), unique=True)


@settings(max_examples=150, deadline=None)
@given(shard=st.lists(st.tuples(parts, suffixes), unique_by=lambda part: part[0]))
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_samples__equal_webdatasets_grouping(
    tmp_path_factory: pytest.TempPathFactory, shard: list[tuple[str, list[str]]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "group.tar"
    files = [(f"{key}.{suffix}", b"x") for key, found in shard for suffix in found]
    write_tar(path, files)
    with path.open("rb") as stream:
        read = list(webdataset.tariterators.tar_file_iterator(stream))
    theirs = list(webdataset.tariterators.group_by_keys({**row, "__url__": ""} for row in read))
    found = group_samples(scan_tar(path), is_image=is_image, text_suffixes=("txt",))
    expected = [
        row["__key__"]
        for row in theirs
        if "txt" in row and sum(suffix in row for suffix in ("jpg", "png")) == 1
    ]
    assert keys(found) == expected
    incomplete = len(theirs) - len(expected)
    told = sum(len(found.irregular.get(reason, [])) for reason in (NO_TEXT, NO_IMAGE, TWO_IMAGES))
    neither = sum(not {"txt", "jpg", "png"} & row.keys() for row in theirs)
    assert told == incomplete - neither
