"""Ranges of one file that was listed: on disk, or by range requests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.corpus.entries import Entry
from pipeline.corpus.tar_headers import RangeReader
from pipeline.stores import ask_store, local_path_of, open_store

__all__ = ["Opener", "range_opener"]

_RETRY_SECONDS = 30.0

Opener = Callable[[], contextlib.AbstractContextManager[RangeReader]]


def range_opener(entry: Entry) -> Opener:
    """How to open a file to read ranges of it; its store is opened here, once for all threads."""
    path = local_path_of(entry.uri)
    if path is not None:
        return partial(_local_reader, path, entry.size_bytes)
    store, place = open_store(entry.uri)
    return partial(_remote_reader, store, place, entry.size_bytes)


@contextlib.contextmanager
def _local_reader(path: str, num_bytes: int) -> Iterator[RangeReader]:
    with open(path, "rb", buffering=0) as file:
        yield RangeReader(lambda offset, length: os.pread(file.fileno(), length, offset), num_bytes)


@contextlib.contextmanager
def _remote_reader(store: Any, path: str, num_bytes: int) -> Iterator[RangeReader]:
    """By range requests and nothing else; a server that knows none raises ValueError."""
    with ask_store(store.open, path, "rb", cache_type="none", seconds=_RETRY_SECONDS) as file:

        def fetch(offset: int, length: int) -> bytes:
            file.seek(offset)
            return bytes(file.read(length))

        yield RangeReader(
            lambda offset, length: bytes(ask_store(fetch, offset, length, seconds=_RETRY_SECONDS)), num_bytes
        )
