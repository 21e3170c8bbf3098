"""Filesystems, one by one. For the output: fresh listings, sockets that do not hang, retries in one place."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import fsspec

from pipeline.errors import UserError
from pipeline.stores.addresses import is_layered

__all__ = ["RangeFile", "open_filesystem", "open_single"]

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
}
_S3 = {"s3", "s3a"}
# A stalled socket ends; retrying is ours, so that all of it together has one limit.
_S3_CONFIG: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "max_pool_connections": 32,
    "retries": {"total_max_attempts": 1},
}


class RangeFile(io.RawIOBase):
    """Reads a remote file range by range, exactly what is asked for."""

    def __init__(self, read_range: Callable[[int, int], bytes], num_bytes: int) -> None:
        self._read_range = read_range
        self._num_bytes = num_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._num_bytes if size is None or size < 0 else min(self._position + size, self._num_bytes)
        data = self._read_range(self._position, end) if end > self._position else b""
        self._position += len(data)
        return data


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The filesystem of an address, and the path on it; UserError where none is installed that knows it."""
    protocol = uri.partition("://")[0] if "://" in uri else "file"
    try:
        filesystem, root = open_single(uri, _options(protocol))
    except ImportError as error:
        raise UserError(f"{uri!r} cannot be opened: {error}") from None
    except ValueError as error:
        raise UserError(f"{uri!r} is not an address fsspec understands: {error}") from None
    if protocol in _S3:
        filesystem.retries = 1  # of its own: retrying.py does it
    return filesystem, root


def open_single(uri: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The filesystem that an address names, and the path on it; "::" is a part of a name.

    Raises ImportError or ValueError where there is none, and for one filesystem upon another.
    """
    if is_layered(uri):
        raise ValueError(
            "filesystems upon filesystems ('::') are not used: name the store itself; videos are copied into "
            "a cache of our own, and tar shards need no tar://"
        )
    protocol = uri.partition("://")[0] if "://" in uri else "file"
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        way_out = f'pip install -e ".[{extra}]" in the clone' if extra else str(error)
        raise ImportError(f"{protocol}:// needs a filesystem that is not installed: {way_out}") from error
    filesystem = fsspec.filesystem(protocol, **{**kind._get_kwargs_from_urls(uri), **options})
    return filesystem, str(kind._strip_protocol(uri))


def _options(protocol: str) -> dict[str, Any]:
    """What we ask of a filesystem; what the user's fsspec configuration says comes first."""
    if protocol not in _S3:
        return {}
    users = {**fsspec.config.conf.get("s3", {}), **fsspec.config.conf.get(protocol, {})}
    config = {**_S3_CONFIG, **users.get("config_kwargs", {})}
    return {"use_listings_cache": users.get("use_listings_cache", False), "config_kwargs": config}
