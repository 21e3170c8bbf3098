"""The members of an uncompressed tar archive, from its headers alone: no body is read, nothing is unpacked.

POSIX.1-1988 (ustar), POSIX.1-2001 (PAX) and GNU archives. Names are labels and nothing else: "../" or a
leading "/" mean nothing here.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["Member", "RangeReader", "TarError", "read_members"]

BLOCK = 512
FETCH_BYTES = 2048  # a header with a PAX header before it, or two small members
MAX_NAME_BYTES = 2**20  # of a PAX or GNU header: it is read whole
MAX_SIZE = 2**62  # of a member: more does not fit into the numbers that are passed on
MAX_PADDING_BYTES = 2**20  # zeros after the end that are looked through for a joined archive
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_WITHOUT_BODY = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_NO_FILES = (b"D", b"M", b"N", b"V")  # GNU: a list of a folder, the rest of another volume's file, a label


class Member(NamedTuple):
    """One regular file: its bytes lie at [offset, offset + num_bytes), as they are unless it is sparse."""

    name: str
    offset: int
    num_bytes: int
    is_sparse: bool = False


class TarError(Exception):
    """The archive cannot be read on; the text says where and why. ``is_compressed``: it never can."""

    def __init__(self, message: str, is_compressed: bool = False) -> None:
        super().__init__(message)
        self.is_compressed = is_compressed


class RangeReader:
    """Ranges of a file, fetched in pieces of at least 2 kB; remembers the last piece.

    ``fetch(offset, length)`` gets bytes; ``num_bytes`` is the size of the file.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._fetch = fetch
        self._start, self._piece = 0, b""

    def read(self, offset: int, length: int, ahead: int = FETCH_BYTES) -> bytes:
        """[offset, offset + length), less where the file ends before."""
        length = max(0, min(length, self.num_bytes - offset))
        start = offset - self._start
        if start < 0 or start + length > len(self._piece):
            want = min(max(length, ahead), self.num_bytes - offset)
            self._start, self._piece, start = offset, self._fetch(offset, want), 0
            if len(self._piece) != want:
                raise OSError(f"{len(self._piece)} bytes came instead of {want} from byte {offset} on")
        return self._piece[start : start + length]


class _Extended:
    """What PAX and GNU headers say of the member after them."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.num_bytes: int | None = None
        self.is_sparse = False


def read_members(reader: RangeReader) -> Iterator[Member]:
    """Every regular file, in order; links, folders and devices are passed over.

    Raises TarError where the archive is compressed, damaged or cut short, after what came before that; a
    member that reaches beyond the end of the file is given out first. Archives joined by ``cat`` are read on.
    """
    offset, zeros, extended = 0, 0, _Extended()
    if reader.num_bytes < BLOCK:
        _check_plain(reader.read(0, BLOCK))
    while offset + BLOCK <= reader.num_bytes:
        block = reader.read(offset, BLOCK, ahead=FETCH_BYTES if not zeros else 16 * FETCH_BYTES)
        if not any(block):
            zeros += BLOCK
            offset += BLOCK
            if zeros > MAX_PADDING_BYTES:
                return
            continue
        header = _header(block, offset, is_joined=zeros > 0)
        zeros, body = 0, offset + BLOCK
        size = _size_of(header, extended, offset)
        offset = body + -(-size // BLOCK) * BLOCK
        if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            _read_extended(reader, header, body, size, extended)
            continue
        if header.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue  # defaults for all that follows name no member; the target of a link is of no use
        is_sparse = extended.is_sparse or header.type == tarfile.GNUTYPE_SPARSE
        if header.type == tarfile.GNUTYPE_SPARSE:
            body, offset = _after_sparse_map(reader, block, body, size)
        if header.type not in _WITHOUT_BODY + _NO_FILES:  # a type not known is a file, as POSIX has it
            yield Member(extended.name or _ustar_name(block), body, size, is_sparse)
        extended = _Extended()
    if offset > reader.num_bytes:
        raise TarError(f"cut short: {reader.num_bytes} bytes of at least {offset}")
    if not zeros:
        raise TarError(f"cut short: no mark of its end in its {reader.num_bytes} bytes")


def _header(block: bytes, offset: int, is_joined: bool) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        if offset == 0:
            _check_plain(block)
        where = "after the mark of its end" if is_joined else "where a header is due"
        raise TarError(f"damaged: no tar header at byte {offset}, {where} ({error})") from None


def _check_plain(start: bytes) -> None:
    kind = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)
    if kind is not None:
        rule = "so no member can be read on its own: decompress the shard"
        raise TarError(f"compressed with {kind}, {rule}", is_compressed=True) from None


def _size_of(header: tarfile.TarInfo, extended: _Extended, offset: int) -> int:
    """Bytes that follow the header. Links, folders and devices have none, whatever their header says."""
    if header.type in _WITHOUT_BODY:
        return 0
    size = header.size if extended.num_bytes is None else extended.num_bytes
    if not 0 <= size <= MAX_SIZE:
        raise TarError(f"damaged: the header at byte {offset} says {size} bytes")
    return size


def _ustar_name(block: bytes) -> str:
    """Prefix and name. GNU headers keep other things where the prefix would be."""
    name, prefix = (os.fsdecode(part.split(b"\0", 1)[0]) for part in (block[:100], block[345:500]))
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def _read_extended(
    reader: RangeReader, header: tarfile.TarInfo, body: int, size: int, extended: _Extended
) -> None:
    if size > MAX_NAME_BYTES:
        raise TarError(f"damaged: {size} bytes of name at byte {body}, at most {MAX_NAME_BYTES} are read")
    data = reader.read(body, size)
    if len(data) < size:
        raise TarError(f"cut short: {reader.num_bytes} bytes of at least {body + size}")
    if header.type == tarfile.GNUTYPE_LONGNAME:
        extended.name = os.fsdecode(data.split(b"\0", 1)[0])
        return
    for key, value in _pax_records(data, body):
        if key == b"size":
            extended.num_bytes = _decimal(value, body)
        elif key == b"path":
            extended.name = extended.name if extended.is_sparse else os.fsdecode(value)
        elif key.startswith(b"GNU.sparse."):
            extended.is_sparse = True
            if key == b"GNU.sparse.name":
                extended.name = os.fsdecode(value)


def _pax_records(data: bytes, body: int) -> Iterator[tuple[bytes, bytes]]:
    """Records "length key=value\\n", the length that of the whole record."""
    at = 0
    while at < len(data) and data[at]:
        digits, space, _ = data[at : at + 20].partition(b" ")
        length = _decimal(digits, body) if space else 0
        record = data[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length < len(digits) + 3 or len(record) < length or not equals or record[-1:] != b"\n":
            raise TarError(f"damaged: the extended header at byte {body} is malformed")
        yield key, value
        at += length


def _decimal(digits: bytes, body: int) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise TarError(f"damaged: the extended header at byte {body} is malformed")
    return int(digits)


def _after_sparse_map(reader: RangeReader, block: bytes, body: int, size: int) -> tuple[int, int]:
    """Where the data of an old GNU sparse member begin, and the next header is due: more map may come."""
    more = block[482]
    while more and body + BLOCK <= reader.num_bytes:
        more = reader.read(body, BLOCK)[504]
        body += BLOCK
    return body, body + -(-size // BLOCK) * BLOCK
