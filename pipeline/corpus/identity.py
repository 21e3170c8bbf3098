"""Who is who in a corpus: ids derived from addresses, slices of the ids, a small set that finds doubles."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.records import Question, VideoRef
from pipeline.stores import TAR_URI

__all__ = ["Found", "IdSet", "derived_id", "id_hash", "is_in_slice", "own_version"]

MAX_SLUG_CHARS = 40
_NOT_IN_SLUG = re.compile(r"[^a-z0-9]+")
_64_BITS = 2**64 - 1
_MIXER = 0x9E3779B97F4A7C15  # odd, so that nothing is lost; 2**64 / golden ratio


class Found(NamedTuple):
    """An input and where it was found: the row of a manifest, counted from 1; row 0: at its own address."""

    ref: VideoRef
    origin: str = ""
    row: int = 0

    def describe(self) -> str:
        """For messages."""
        return f"{self.origin} row {self.row} ({self.ref.uri!r})" if self.row else repr(self.ref.uri)


def derived_id(address: str, start: float | None = None, end: float | None = None) -> str:
    """A stable, readable id: slug of the name's stem, "-", 16 hex digits of the hash of the address.

    ``address`` is canonical. A clip, in seconds, is part of what is hashed: two clips of a file differ.
    """
    clip = "" if start is None and end is None else f"#t={_seconds(start)},{_seconds(end)}"
    digest = hashlib.blake2b((address + clip).encode(), digest_size=8).hexdigest()
    stem = _stem(address)
    if not stem.isascii():
        stem = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    slug = _NOT_IN_SLUG.sub("-", stem.lower())[:MAX_SLUG_CHARS].strip("-")
    return f"{slug or 'video'}-{digest}"


def _stem(address: str) -> str:
    if address.startswith(TAR_URI):
        address = address.removeprefix(TAR_URI).partition("::")[0]
    elif address.startswith(("http://", "https://")):
        address = address.partition("?")[0]
    name = address.rsplit("/", 1)[-1]
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def own_version(
    version: str, questions: Sequence[Question], start: float | None = None, end: float | None = None
) -> str:
    """The version of a content that is asked questions of its own, or of which only a clip is meant.

    "~" and 8 hex digits of the hash of both are appended: another question is another version.
    """
    if not questions and start is None and end is None:
        return version
    own = [[[one.question_id, one.text] for one in questions], _seconds(start), _seconds(end)]
    return f"{version}~{hashlib.blake2b(json.dumps(own).encode(), digest_size=4).hexdigest()}"


def _seconds(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def id_hash(video_id: str) -> int:
    """64 bits that depend on nothing but the id: the same on every machine and in every release."""
    return int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest(), "big")


def is_in_slice(number: int, wanted: str | None) -> bool:
    """Whether the id of this ``id_hash`` is in slice "i/n": hash modulo n is i. None: all are."""
    if wanted is None:
        return True
    part, count = map(int, wanted.split("/"))
    return number % count == part


class IdSet:
    """The hashes of ids seen so far, in an open-addressed table of 64-bit numbers.

    12 to 24 bytes per id, half as much again while it grows; a set of strings takes some 150. Two different
    ids share a hash with odds of 1 to 37 million among 1,000,000 ids, 1 to 370,000 among 10,000,000: a caller
    must make sure that the ids are the same. Numbers of 64 bits themselves are told apart exactly.
    """

    def __init__(self) -> None:
        self._bits = 10
        self._table = array("Q", bytes(8 << self._bits))
        self._num = 0
        self._has_zero = False  # 0 marks a free place

    def __len__(self) -> int:
        return self._num + self._has_zero

    def add(self, number: int) -> bool:
        """Put a 64-bit hash in; False where it was there before."""
        if number == 0:
            was_new, self._has_zero = not self._has_zero, True
            return was_new
        place = _place(self._table, self._bits, number)
        if self._table[place]:
            return False
        self._table[place] = number
        self._num += 1
        if self._num * 3 > len(self._table) * 2:
            self._grow()
        return True

    def _grow(self) -> None:
        bits = self._bits + 1
        table = array("Q", bytes(8 << bits))
        for number in self._table:
            if number:
                table[_place(table, bits, number)] = number
        self._table, self._bits = table, bits


def _place(table: array[int], bits: int, number: int) -> int:
    """Where the number is, or the free place where it belongs. Mixed first: inodes lie close together."""
    mask = len(table) - 1
    place = ((number * _MIXER) & _64_BITS) >> (64 - bits)
    while table[place] not in (0, number):
        place = (place + 1) & mask
    return place
