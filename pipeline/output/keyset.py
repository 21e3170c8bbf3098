"""Millions of video keys in 16 bytes each: hashes in sorted arrays, built from columns, asked one by one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DIGEST_BYTES", "Key", "KeySet", "SortedDigests", "digest", "digests_of", "valid_text"]

Key = tuple[str, str]  # (video_id, version)

DIGEST_BYTES = 16
_SEPARATOR = "\0"  # after the version, in which it cannot be


class SortedDigests:
    """Digests in order, equal ones next to each other in the order they came in.

    ``order``: int64 (N,), where each one was before sorting, to bring other arrays into the same order.
    """

    def __init__(self, raw: bytes | bytearray) -> None:
        pairs: NDArray[np.uint64] = np.frombuffer(raw, np.uint64).reshape(-1, 2)
        high = np.ascontiguousarray(pairs[:, 0])
        order = np.argsort(high, kind="stable")
        high, low = high[order], pairs[order, 1]
        twins = np.flatnonzero(high[1:] == high[:-1])
        if len(twins):
            _sort_within_equal(high, low, order, np.union1d(twins, twins + 1))
        self.high, self.low, self.order = high, low, order

    def __len__(self) -> int:
        return len(self.high)

    def distinct(self) -> SortedDigests:
        """Each digest once: this object where they are distinct."""
        starts = self.starts()
        if len(starts) == len(self):
            return self
        fewer = SortedDigests(b"")
        fewer.high, fewer.low, fewer.order = self.high[starts], self.low[starts], self.order[starts]
        return fewer

    def starts(self) -> NDArray[np.int64]:
        """Where each distinct digest begins: int64 (distinct,)."""
        if not len(self):
            return np.zeros(0, np.int64)
        changes = (self.high[1:] != self.high[:-1]) | (self.low[1:] != self.low[:-1])
        return np.concatenate([[0], np.flatnonzero(changes) + 1])


class KeySet:
    """A set of keys, as hashes of 128 bits; two of ten million are alike with a chance of 1 in 10^24.

    16 bytes for each key, about 60 while it is built. Membership takes a few microseconds.
    """

    def __init__(self, digests: SortedDigests | bytes | bytearray = b"") -> None:
        """digests: sorted, or one after the other in any order; equal ones count once."""
        found = (digests if isinstance(digests, SortedDigests) else SortedDigests(digests)).distinct()
        self._high, self._low = found.high, found.low

    @classmethod
    def of(cls, keys: Iterable[Key]) -> KeySet:
        return cls(b"".join(digest(key) for key in keys))

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return int(self._high.nbytes + self._low.nbytes)

    def __len__(self) -> int:
        return len(self._high)

    def __contains__(self, key: Key) -> bool:
        return self.find(key) is not None

    def find(self, key: Key) -> int | None:
        """The place of a key among the sorted digests; None where it is not in the set."""
        high, low = np.frombuffer(digest(key), np.uint64)
        place = int(self._high.searchsorted(high))
        while place < len(self._high) and self._high[place] == high:
            if self._low[place] == low:
                return place
            place += 1
        return None

    def places(self, digests: SortedDigests) -> NDArray[np.int64]:
        """The place of each of some digests, -1 for those not in the set: int64 (N,)."""
        found: NDArray[np.int64] = np.full(len(digests), -1, np.int64)
        if not len(self):
            return found
        first = np.minimum(self._high.searchsorted(digests.high), len(self) - 1)
        alike = self._high[first] == digests.high
        same = alike & (self._low[first] == digests.low)
        found[same] = first[same]
        for number in np.flatnonzero(alike & ~same):  # the same upper half by chance: look further
            place = int(first[number])
            while place < len(self) and self._high[place] == digests.high[number]:
                if self._low[place] == digests.low[number]:
                    found[number] = place
                place += 1
        return found


def digest(key: Key) -> bytes:
    """16 bytes that stand for (video_id, version), as they are after writing: see ``valid_text``."""
    text = f"{key[1]}{_SEPARATOR}{key[0]}"
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = valid_text(text).encode()
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def digests_of(*columns: pa.ChunkedArray) -> bytes:
    """The digests of whole columns, one after the other: (video_id, version), or more than two texts.

    Several columns are hashed in the order: last, ..., first; a missing value as an empty text.
    """
    if not columns[0]:
        return b""
    texts = [pc.fill_null(column.cast(pa.large_string()), "") for column in reversed(columns)]
    joined = (
        texts[0]
        if len(texts) == 1
        else pc.binary_join_element_wise(*texts, pa.scalar(_SEPARATOR, pa.large_string()))
    )
    return b"".join(map(_digests, joined.chunks))


def _digests(texts: pa.Array) -> bytes:
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data) if data is not None else memoryview(b"")
    return b"".join(
        [
            blake2b(view[start:end], digest_size=DIGEST_BYTES).digest()
            for start, end in itertools.pairwise(ends)
        ]
    )


def valid_text(text: str) -> str:
    """The text with a mark in place of each character that cannot be written (odd bytes of a file name)."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _sort_within_equal(
    high: NDArray[np.uint64], low: NDArray[np.uint64], order: NDArray[np.int64], places: NDArray[np.int64]
) -> None:
    """Bring those whose upper halves are alike into order by the lower halves, in place."""
    within = places[np.lexsort((order[places], low[places], high[places]))]
    low[places], order[places] = low[within], order[within]
