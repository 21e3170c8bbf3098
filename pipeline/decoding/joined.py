"""Files put one behind the other, as `cat` does: where the next begins, if the first is readable by itself.

Most demuxers stop where the first file ends, without a word. Only headers are read, and what lies behind the
last picture, where a file that is whole has little.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.decoding.containers import Limits, head_of, is_same_kind, opened, packets_of

__all__ = ["ONE_FILE", "Extent", "extent_of", "next_file", "note_of_rest"]

_CHUNK_BYTES = 2**20
_MOST_BOXES = 200_000  # fragments of a very long recording
_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"})
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_EBML_MARK = _EBML.to_bytes(4, "big")
_NUT_MARK = b"nut/multimedia container\0"
# Their demuxers read on where another file follows; the others stop, or read it by the index of the first.
_READ_ON = frozenset({"matroska", "avi"})
# What files of other formats begin with. Long enough that no picture or sound holds them by chance.
_BEGINNINGS = {
    "flv": (b"FLV\x01\x01\0\0\0\x09", b"FLV\x01\x04\0\0\0\x09", b"FLV\x01\x05\0\0\0\x09"),
    "asf": (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),),
    "apng": (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",),
    "wtv": (bytes.fromhex("b7d800203749da11a64e0007e95ead8d"),),
}


@dataclass(frozen=True)
class Extent:
    """How much of a file is read as one video.

    end: the byte at which reading ends, None: with the file. runs_on: times that start anew are run on.
    note: what to say of it, or None for a file that is one.
    """

    end: int | None = None
    runs_on: bool = False
    note: str | None = None


ONE_FILE = Extent()


def extent_of(path: str, limits: Limits) -> Extent:
    """Whether another file follows in this one, and whether it goes on with the same stream.

    Raises as ``opened`` does.
    """
    byte = next_file(path)
    if byte is None:
        return ONE_FILE
    with opened(path, limits) as (container, stream):
        names = set(container.format.name.split(","))
        if "mov" in names and _goes_on(container, stream, limits, byte):
            return ONE_FILE  # one movie in fragments, with its header repeated
        if names & _READ_ON and is_same_kind(path, byte, container, stream):
            return Extent(None, True, f"another file begins at byte {byte}, over which times run on")
    return Extent(byte, False, _unread(path, byte))


def note_of_rest(path: str, containers: frozenset[str], byte: int) -> str | None:
    """What to say of another file that begins behind the last picture that was read; None where none does."""
    found = _next_beginning(path, containers, byte)
    return None if found is None else _unread(path, found)


def _unread(path: str, byte: int) -> str:
    rest = os.path.getsize(path) - byte
    return f"another file begins at byte {byte}; its {rest} bytes are not read"


def _goes_on(container: Any, stream: Any, limits: Limits, byte: int) -> bool:
    """Whether all that is stored behind a byte is decoded after all that is stored before it."""
    before: list[int] = []
    behind: list[int] = []
    for packet in packets_of(container, stream, limits):
        if packet.dts is not None and packet.pos is not None:
            (before if packet.pos < byte else behind).append(packet.dts)
    return bool(before and behind) and min(behind) > max(before)


def next_file(path: str) -> int | None:
    """The byte at which a second file begins, by the sizes that the headers of the first give."""
    head = head_of(path)
    with open(path, "rb") as file:
        if head[4:8] in _BOXES:
            return _second_movie(file)
        if head[:4] == _EBML_MARK:
            return _second_matroska(file)
        if head[:4] == b"DKIF":
            return _second_ivf(file)
        if head.startswith(_NUT_MARK):
            return _find(file, len(_NUT_MARK), [_NUT_MARK])
        return _second_riff(file) if head[:4] == b"RIFF" else None


def _next_beginning(path: str, containers: frozenset[str], byte: int) -> int | None:
    beginnings = [each for name in containers for each in _BEGINNINGS.get(name, ())]
    if not beginnings:
        return None
    with open(path, "rb") as file:
        return _find(file, byte, beginnings)


def _find(file: BinaryIO, byte: int, marks: Sequence[bytes]) -> int | None:
    """Where the first of these marks stands, from a byte of the file on."""
    overlap = max(map(len, marks)) - 1
    file.seek(byte)
    held = b""
    while chunk := file.read(_CHUNK_BYTES):
        held += chunk
        found = [at for at in map(held.find, marks) if at >= 0]
        if found:
            return byte + min(found)
        byte += max(0, len(held) - overlap)
        held = held[-overlap:]
    return None


def _is_beginning(head: bytes) -> bool:
    """Whether a file of a kind that says its size begins with these bytes."""
    is_riff = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    return head[4:8] == b"ftyp" or head[:4] == _EBML_MARK or is_riff


def _second_movie(file: BinaryIO) -> int | None:
    """Where a new file follows upon what a movie consists of, or a second ``moov`` upon the first."""
    total = os.fstat(file.fileno()).st_size
    at, behind_moov = 0, None
    has_media = False
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if has_media and _is_beginning(head):
            return at
        if len(head) < 8 or (size < 8 and size != 0) or at + size > total:
            return None
        if kind == b"moov":
            if behind_moov is not None:
                return behind_moov
            behind_moov = at + size
        has_media = has_media or kind in (b"moov", b"mdat")
        if size == 0:  # to the end of the file
            return None
        at += size
    return None


def _second_matroska(file: BinaryIO) -> int | None:
    """Where another EBML header stands: behind the first segment, or anywhere if that tells no size."""
    at = 0
    for wanted in (_EBML, _SEGMENT):
        file.seek(at)
        found, begin, size = _element(file)
        if found != wanted:
            return None
        if size is None:
            return _next_ebml(file, begin)
        at = begin + size
    file.seek(at)
    return at if _is_beginning(file.read(16)) else None


def _next_ebml(file: BinaryIO, byte: int) -> int | None:
    at: int | None = byte
    while at is not None and (at := _find(file, at, [_EBML_MARK])) is not None:
        file.seek(at)
        head = file.read(64)
        if b"webm" in head or b"matroska" in head:
            return at
        at += len(_EBML_MARK)
    return None


def _second_ivf(file: BinaryIO) -> int | None:
    """Where a header of 32 bytes takes the place of a frame's size and time."""
    at = 32
    while True:
        file.seek(at)
        head = file.read(12)
        if len(head) < 12:
            return None
        if head[:8] == b"DKIF\0\0\x20\0":
            return at
        at += 12 + int.from_bytes(head[:4], "little")


def _element(file: BinaryIO) -> tuple[int, int, int | None]:
    """(id, where its content begins, bytes of its content or None) of the EBML element that stands here."""
    head = file.read(12)
    if len(head) < 5:
        return 0, file.tell(), None
    size_at = 4
    width = 9 - head[size_at].bit_length()
    if width > 8:
        return 0, file.tell(), None
    size = int.from_bytes(head[size_at : size_at + width], "big") & ((1 << 7 * width) - 1)
    begin = file.tell() - len(head) + size_at + width
    return int.from_bytes(head[:4], "big"), begin, None if size == (1 << 7 * width) - 1 else size


def _second_riff(file: BinaryIO) -> int | None:
    """Where another list of kind AVI begins; those of kind AVIX belong to the first."""
    at = 0
    for number in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(12)
        if number and _is_beginning(head):
            return at
        if head[:4] != b"RIFF":
            return None
        at += 8 + int.from_bytes(head[4:8], "little")
        at += at % 2
    return None
