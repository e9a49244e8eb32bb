"""What a tar shard holds: its files by their headers, and the samples they make.

`scan_tar` lists the files of a tar without reading their content (ustar, GNU and pax headers), and
says where and why the listing ends too early. `group_samples` puts files together that make one
sample. Both engines use both: evaluation refuses a shard with any irregularity, since a number on a
part of a split is no number; pretraining counts it and goes on.

Which files make a sample (webdataset's rule, and what it leaves open):

* The key of a file is its path up to the first dot of its base name: `cat/0001.jpg` and
  `cat/0001.cls` are the sample `cat/0001`, `dog/0001.jpg` is another. Suffixes are lower-cased.
* A base name with several dots: `a.1.jpg` and `a.1.cls` are the sample `a.1`, since an image and a
  text with the same name belong together. Where there is no such pair, webdataset's rule holds:
  `a.seg.png` is a field of the sample `a` with the image `a.jpg`.
* Files of one key that are apart in the shard belong together unless a suffix comes twice; then
  there are two samples of one key.
* Hidden files (`._0001.jpg` of macOS, `.DS_Store`) and files without a dot are no part of a sample.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from maskclip_bench.errors import DataError
from maskclip_bench.regular_file import open_regular

BLOCK = 512

MAX_HEADER_DATA = 1 << 20
"""Bytes of the longest name or pax record that is read."""

MAX_PADDING = 1 << 20
"""Zero bytes that may follow the last file; more of them means a download that was never filled."""

TRUNCATED = "truncated"
DAMAGED = "damaged"
CONTINUED = "more data after the end of the archive"

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd", b"PK": "zip"}

_REGULAR = frozenset({b"0", b"\0", b"7"})
_WITHOUT_DATA = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"6": "named pipe",
}
_SPARSE = b"S"
_CONTINUATION = b"M"


class Member(NamedTuple):
    """A file inside a tar: its name, and where its bytes are, in bytes from the start."""

    name: str
    offset: int
    size: int


@dataclass
class TarListing:
    """What the headers of a tar say.

    Attributes:
        members: Regular files that are there completely, in order.
        special: (name, kind) of what is neither a regular file nor a folder: links, devices,
            sparse files, parts of other archives.
        problem: Why the listing ends too early: `TRUNCATED`, `DAMAGED`, `CONTINUED`; or None.
        detail: The problem in words, with the place.
    """

    members: list[Member] = field(default_factory=list)
    special: list[tuple[str, str]] = field(default_factory=list)
    problem: str | None = None
    detail: str = ""


def scan_tar(path: Path) -> TarListing:
    """List the files of a tar by its headers.

    Raises:
        CompressedTarError: It is compressed (a `DataError`).
        DataError: It is missing, no regular file, or unreadable.
    """
    listing = TarListing()
    with open_regular(path) as file:
        try:
            _Scan(file.fileno(), path, listing).run()
        except _EndsEarly as end:
            listing.problem, listing.detail = end.problem, end.detail
        except OSError as error:
            raise DataError(f"Cannot read {path} ({error.strerror}). Check the disk.") from None
    return listing


class CompressedTarError(DataError):
    """A shard is compressed as a whole."""


class _EndsEarly(Exception):
    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(problem, detail)
        self.problem = problem
        self.detail = detail


class _Scan:
    """Walks over the headers of one tar and fills a listing."""

    def __init__(self, descriptor: int, path: Path, listing: TarListing) -> None:
        self._descriptor = descriptor
        self._path = path
        self._size = os.fstat(descriptor).st_size
        self._listing = listing
        self._position = 0
        self._last_name = ""
        # What extended headers say of the next file:
        self._name: str | None = None
        self._member_size: int | None = None
        self._sparse = False

    def run(self) -> None:
        start = self._read(0, BLOCK)
        if start[:2] in _COMPRESSED and start[257:262] != b"ustar":
            raise CompressedTarError(
                f"{self._path} is compressed ({_COMPRESSED[start[:2]]}). Shards are read at any "
                "offset: unpack it to a plain .tar (images are compressed already)."
            )
        while self._header():
            pass

    def _header(self) -> bool:
        """Take the header at the position; False at the end of the archive."""
        header = self._read(self._position, BLOCK)
        if len(header) < BLOCK:
            where = f"after {self._last_name}" if self._last_name else "at its start"
            raise _EndsEarly(TRUNCATED, f"it ends {where}, without an end-of-archive block")
        if not header.strip(b"\0"):
            self._check_padding()
            return False
        if not _checksum_fits(header):
            raise _EndsEarly(
                DAMAGED, f"no tar header at byte {self._position:,} (it may be no tar at all)"
            )
        start = self._position
        try:
            self._take(header)
        except ValueError as error:  # a number or a pax record that is none
            raise _EndsEarly(DAMAGED, f"a broken header at byte {start:,} ({error})") from None
        return True

    def _take(self, header: bytes) -> None:
        kind = header[156:157]
        size = _number(header[124:136])
        if kind in b"LKxgX" and kind:
            self._extended(kind, size)
            return
        if self._member_size is not None:
            size = self._member_size
        name = self._name if self._name is not None else _name(header)
        start = self._position + BLOCK
        if kind == _SPARSE:
            start = self._behind_sparse_map(header, start)
        is_folder = kind == b"5" or (kind in (b"0", b"\0") and name.endswith("/"))
        self._advance(start, 0 if kind in _WITHOUT_DATA or is_folder else size, name)
        if is_folder:
            pass
        elif self._sparse or kind == _SPARSE:
            self._listing.special.append((name, "sparse file"))
        elif kind in _REGULAR:
            self._listing.members.append(Member(name, start, size))
        elif kind == _CONTINUATION:
            self._listing.special.append((name, "part of a file begun in another archive"))
        else:
            self._listing.special.append((name, _WITHOUT_DATA.get(kind, f"file of type {kind!r}")))
        self._last_name, self._name, self._member_size, self._sparse = name, None, None, False

    def _extended(self, kind: bytes, size: int) -> None:
        """A header about the next one: GNU's long name, or records of pax."""
        start = self._position + BLOCK
        self._advance(start, size, "a long name")
        if kind in b"Kg":  # the target of a link; records about the whole archive
            return
        if size > MAX_HEADER_DATA:
            raise ValueError(f"a name of {size:,} bytes")
        data = self._read(start, size)
        if kind == b"L":
            self._name = _text(data)
            return
        records = _pax_records(data)
        self._name = records.get("path", self._name)
        if "size" in records:
            if not re.fullmatch("[0-9]{1,20}", records["size"]):
                raise ValueError(f"the size {records['size'][:20]!r}")
            self._member_size = int(records["size"])
        self._sparse = any(key.startswith("GNU.sparse.") for key in records)

    def _advance(self, start: int, size: int, name: str) -> None:
        if size < 0:
            raise ValueError(f"a size of {size}")
        if start + size > self._size:
            raise _EndsEarly(TRUNCATED, f"it ends inside {name}")
        self._position = start + -(-size // BLOCK) * BLOCK

    def _behind_sparse_map(self, header: bytes, start: int) -> int:
        """Where the data of an old GNU sparse file begin: behind further blocks of its map."""
        more = header[482]
        while more:
            block = self._read(start, BLOCK)
            if len(block) < BLOCK:
                raise _EndsEarly(TRUNCATED, "it ends inside the map of a sparse file")
            more = block[504]
            start += BLOCK
        return start

    def _check_padding(self) -> None:
        """Behind the end-of-archive block there are only zeros, and not many.

        A second archive behind the first (`cat a.tar b.tar`) would be left out by every reader.
        """
        rest = self._size - self._position
        if self._read(self._position, min(rest, MAX_PADDING)).strip(b"\0"):
            raise _EndsEarly(
                CONTINUED,
                f"data follows the end-of-archive block at byte {self._position:,} (were two tars "
                "put together? Unpack and pack them again)",
            )
        if rest > MAX_PADDING:
            raise _EndsEarly(
                TRUNCATED,
                f"its last {rest:,} bytes are empty, as in a download that was not finished",
            )

    def _read(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0 and (part := os.pread(self._descriptor, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)


def _checksum_fits(header: bytes) -> bool:
    """The sum of all bytes, the checksum's own eight counted as spaces; old tars add signed."""
    try:
        stated = _number(header[148:156])
    except ValueError:
        return False
    counted = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(counted)
    return stated in (unsigned, unsigned - 256 * sum(byte > 127 for byte in counted))


def _number(field_: bytes) -> int:
    if field_[0] in (0o200, 0o377):  # GNU: base 256 for files of 8 GiB and more
        value = int.from_bytes(field_[1:], "big")
        return value - (256 ** (len(field_) - 1) if field_[0] == 0o377 else 0)
    digits = field_.split(b"\0")[0].strip()
    if not re.fullmatch(rb"[0-7]*", digits):
        raise ValueError(f"the number {digits!r}")
    return int(digits or b"0", 8)


def _text(field_: bytes) -> str:
    return field_.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax_records(data: bytes) -> dict[str, str]:
    """Records `length key=value` with a newline, lengths counting the whole record."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        head, _, _ = data.partition(b" ")
        if not re.fullmatch(rb"[0-9]{1,9}", head):
            raise ValueError(f"a pax record of length {head[:20]!r}")
        length = int(head)
        record = data[len(head) + 1 : length]
        if length > len(data) or not record.endswith(b"\n") or b"=" not in record:
            raise ValueError("a pax record that is cut off")
        key, _, value = record[:-1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


# --- samples -------------------------------------------------------------------------------------


NO_IMAGE = "text without an image"
NO_TEXT = "image without a text"
TWO_IMAGES = "two images of one name"
REPEATED_FILE = "file that is there twice"
REPEATED_KEY = "name of two samples"
LINK = "link, sparse or special file"
HIDDEN = "hidden file"
OTHER = "file that belongs to no sample"
CUT_OFF = "sample cut off at the end of the shard"

HARMLESS = frozenset({HIDDEN, OTHER})
"""Reasons that take no sample away."""


@dataclass
class TarSample:
    """An image with its texts.

    Attributes:
        key: Path without the suffix; characters that UTF-8 cannot hold are escaped.
        image: The image.
        texts: Suffix, lower-cased -> file: those of the wanted suffixes.
        fields: Suffixes of the further files, e.g. `json`, `seg.png`.
        repeated: Whether an earlier sample of the shard has the same key.
    """

    key: str
    image: Member
    texts: dict[str, Member]
    fields: list[str]
    repeated: bool = False


@dataclass
class TarSamples:
    """The samples of a shard, in the order of their first files, and what is irregular.

    Attributes:
        samples: Complete samples.
        irregular: Reason -> what it is true of, in words with the name.
    """

    samples: list[TarSample] = field(default_factory=list)
    irregular: dict[str, list[str]] = field(default_factory=dict)

    def note(self, reason: str, what: str) -> None:
        """Add an irregularity."""
        self.irregular.setdefault(reason, []).append(what)


@dataclass
class _Group:
    """Files of one key; `files` holds lower-cased suffixes."""

    key: str
    files: dict[str, Member] = field(default_factory=dict)
    repeated: bool = False


def group_samples(
    listing: TarListing, *, is_image: Callable[[str], bool], text_suffixes: Collection[str]
) -> TarSamples:
    """Put the files of a shard together to samples.

    Args:
        listing: Of the shard.
        is_image: Whether a file name is that of an image.
        text_suffixes: Suffixes that hold a label or captions (`cls`, `txt`), lower-case; a sample
            is complete with an image and one of them.
    """
    found = TarSamples()
    for name, kind in listing.special:
        found.note(LINK, f"{name} ({kind})")
    last = listing.members[-1] if listing.problem and listing.members else None
    images_beside: list[tuple[str, str]] = []  # (suffix, name) of images that are fields
    for group in _groups(listing.members, found):
        for part in _split_at_last_dot(group, is_image, text_suffixes):
            problem = _take_sample(part, is_image, text_suffixes, found, images_beside)
            if problem:
                cut_off = last is not None and last in part.files.values()
                told = f"{part.key} (files: {', '.join(part.files)})"
                found.note(CUT_OFF if cut_off else problem, told)
    # An image such as a.seg.png is a field if every sample has one; if some have (a.2.jpg), it is
    # an image that lacks its text.
    counts = Counter(suffix for suffix, _ in images_beside)
    for suffix, name in images_beside:
        if counts[suffix] != len(found.samples):
            found.note(NO_TEXT, name)
    return found


def split_name(name: str) -> tuple[str, str] | None:
    """(key, suffix in lower case) of a file, by webdataset's rule; None if it belongs to no sample.

    Example:
        >>> split_name("cat.v1/0001.seg.PNG")
        ('cat.v1/0001', 'seg.png')
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not stem or not dot:
        return None
    return f"{folder}{slash}{stem}", suffix.lower()


def _groups(members: Sequence[Member], found: TarSamples) -> list[_Group]:
    """Files of one key; runs of neighbours join if no suffix comes twice."""
    groups: list[_Group] = []
    newest: dict[str, _Group] = {}
    for run in _runs(members, found):
        group = newest.get(run.key)
        if group is not None and not group.files.keys() & run.files.keys():
            group.files |= run.files
            continue
        run.repeated = group is not None
        newest[run.key] = run
        groups.append(run)
    return groups


def _runs(members: Sequence[Member], found: TarSamples) -> Iterator[_Group]:
    """Neighbouring files of one key."""
    current: _Group | None = None
    for member in members:
        named = split_name(member.name)
        if named is None:
            hidden = member.name.rpartition("/")[2].startswith(".")
            found.note(HIDDEN if hidden else OTHER, member.name)
            continue
        key, suffix = named
        if current is None or key != current.key:
            if current is not None:
                yield current
            current = _Group(key)
        if suffix in current.files:
            found.note(REPEATED_FILE, member.name)
            current.files[suffix] = member._replace(size=-1)  # neither is used
        else:
            current.files[suffix] = member
    if current is not None:
        yield current


def _split_at_last_dot(
    group: _Group, is_image: Callable[[str], bool], text_suffixes: Collection[str]
) -> Iterator[_Group]:
    """The group, and before it the samples `key.1`, `key.2` that its dotted suffixes make."""
    parts: dict[str, dict[str, Member]] = {}
    for suffix, member in group.files.items():
        middle, _, last = suffix.rpartition(".")
        parts.setdefault(middle, {})[last] = member
    plain = parts.pop("", {})
    plain_image = any(is_image(f"x.{suffix}") for suffix in plain)
    for middle, files in parts.items():
        pair = any(is_image(f"x.{s}") for s in files) and any(s in text_suffixes for s in files)
        if pair or not plain_image:
            yield _Group(f"{group.key}.{middle}", files, group.repeated)
        else:
            plain |= {f"{middle}.{last}": member for last, member in files.items()}
    if plain:
        yield _Group(group.key, plain, group.repeated)


def _take_sample(
    group: _Group,
    is_image: Callable[[str], bool],
    text_suffixes: Collection[str],
    found: TarSamples,
    images_beside: list[tuple[str, str]],
) -> str | None:
    """Add a group to the samples; returns why it makes none, or None."""
    images = [s for s in group.files if "." not in s and is_image(f"x.{s}")]
    texts = {s: member for s, member in group.files.items() if s in text_suffixes}
    if any(member.size < 0 for member in group.files.values()):
        return None  # a file that is there twice: noted already
    if len(images) > 1:
        return TWO_IMAGES
    if not images and texts:
        return NO_IMAGE
    if not images:
        for member in group.files.values():
            found.note(OTHER, member.name)
        return None
    if not texts:
        return NO_TEXT
    if group.repeated:
        found.note(REPEATED_KEY, group.key)
    fields = [s for s in group.files if s not in texts and s != images[0]]
    images_beside += [(s, group.files[s].name) for s in fields if is_image(f"x.{s}")]
    key = group.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    found.samples.append(TarSample(key, group.files[images[0]], texts, fields, group.repeated))
    return None
