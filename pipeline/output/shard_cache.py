"""Indexes of tar shards, kept beside the output so that a shard is read through only once."""

from __future__ import annotations

from contextlib import suppress
from hashlib import blake2b

from pipeline.stores import Storage, StorageDownError

__all__ = ["SHARDS", "ShardCache"]

SHARDS = "_shards"
_MAX_BYTES = 2**30


class ShardCache:
    """Bytes by name below ``<output>/_shards/``, at most ``max_bytes`` in all: the oldest make room.

    A cache that cannot be written costs time, not the run: ``put`` then does nothing. One writer at a time.
    """

    def __init__(self, storage: Storage, max_bytes: int = _MAX_BYTES) -> None:
        self._storage = storage
        self._max_bytes = max_bytes
        self._sizes: dict[str, int] | None = None  # oldest first

    def get(self, name: str) -> bytes | None:
        """What was put under a name; None where it was not, or had to make room."""
        return self._storage.read(_path(name))

    def put(self, name: str, data: bytes) -> None:
        """Keep bytes under a name; more than ``max_bytes`` are not kept."""
        if len(data) > self._max_bytes:
            return
        with suppress(OSError, StorageDownError):
            sizes = self._known()
            sizes.pop(_path(name), None)
            while sizes and sum(sizes.values()) + len(data) > self._max_bytes:
                oldest = next(iter(sizes))
                self._storage.delete(oldest)
                del sizes[oldest]
            self._storage.write(_path(name), data)
            sizes[_path(name)] = len(data)

    def _known(self) -> dict[str, int]:
        if self._sizes is None:
            there = sorted(self._storage.files(SHARDS), key=lambda entry: entry.written_at)
            self._sizes = {f"{SHARDS}/{entry.name}": entry.num_bytes for entry in there}
        return self._sizes


def _path(name: str) -> str:
    """Names may be whole addresses: a hash of them is a safe file name."""
    return f"{SHARDS}/{blake2b(name.encode(errors='surrogatepass'), digest_size=16).hexdigest()}.bin"
