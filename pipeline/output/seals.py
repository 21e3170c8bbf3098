"""The seal of a part: digests of all its bytes, in a gap before the footer, where no reader of Parquet looks.

Page checksums say which values are damaged, but not what became of the footer and of the headers of pages.
A part that somebody rewrites with another tool has no seal any more; one of an earlier release has none.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import IO, Any, Literal

__all__ = ["SEAL_BYTES", "look_at_seal", "seal_bytes", "seal_file"]

_MARK = b"flashvid\x00seal\x001\n"
_DIGEST_BYTES = 16
SEAL_BYTES = len(_MARK) + 2 * _DIGEST_BYTES  # the mark, the digest of what is before it, that of the footer
_END_BYTES = 8  # the length of the footer, and PAR1
_MOST_WRONG_BITS = 8 * len(_MARK) // 4  # in the mark itself; chance gives a half
_CHUNK_BYTES = 4 * 2**20


def seal_bytes(data: bytes) -> bytes:
    """A whole Parquet file, with its seal."""
    split = len(data) - _END_BYTES - _footer_bytes(data[-_END_BYTES:])
    body = _digest(data[:split])
    return b"".join((data[:split], _MARK, body, _digest(data[split:]), data[split:]))


def seal_file(path: str) -> None:
    """As ``seal_bytes``, in place; on disk when this returns."""
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(size - _END_BYTES)
        split = size - _END_BYTES - _footer_bytes(file.read(_END_BYTES))
        body = _digest_of(file, split)
        file.seek(split)
        footer = file.read(size - split)
        file.seek(split)
        file.write(b"".join((_MARK, body, _digest(footer), footer)))
        file.flush()
        os.fsync(file.fileno())


def look_at_seal(file: Any, num_bytes: int, whole: bool) -> Literal["none", "sound", "footer", "body"]:
    """What the seal of a seekable file tells: that there is none, that all is sound, or what is damaged.

    whole: read every byte; else only the end of the file is looked at.
    """
    found = _parts_of(file, num_bytes)
    if found is None:
        return "none"
    split, seal, footer = found
    if not seal.startswith(_MARK) or _digest(footer) != seal[-_DIGEST_BYTES:]:
        return "footer"
    if whole and _digest_of(file, split) != seal[len(_MARK) : -_DIGEST_BYTES]:
        return "body"
    return "sound"


def _parts_of(file: Any, num_bytes: int) -> tuple[int, bytes, bytes] | None:
    """Where the seal begins, the seal, and all that follows it."""
    if num_bytes < SEAL_BYTES + _END_BYTES:
        return None
    end = _range(file, num_bytes - _END_BYTES, _END_BYTES)
    split = num_bytes - _END_BYTES - _footer_bytes(end) - SEAL_BYTES
    if split < 0:
        return None
    tail = _range(file, split, num_bytes - split)
    seal, footer = tail[:SEAL_BYTES], tail[SEAL_BYTES:]
    return (split, seal, footer) if _is_mark(seal[: len(_MARK)]) else None


def _is_mark(data: bytes) -> bool:
    wrong = int.from_bytes(data, "big") ^ int.from_bytes(_MARK, "big")
    return len(data) == len(_MARK) and wrong.bit_count() <= _MOST_WRONG_BITS


def _range(file: Any, start: int, num_bytes: int) -> bytes:
    file.seek(start)
    return bytes(file.read(num_bytes))


def _footer_bytes(end: bytes) -> int:
    return int.from_bytes(end[:4], "little")


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _digest_of(file: IO[bytes] | Any, num_bytes: int) -> bytes:
    """The digest of the first bytes of a file, a chunk at a time."""
    hasher = blake2b(digest_size=_DIGEST_BYTES)
    file.seek(0)
    while num_bytes > 0 and (chunk := file.read(min(_CHUNK_BYTES, num_bytes))):
        hasher.update(chunk)
        num_bytes -= len(chunk)
    return hasher.digest()
