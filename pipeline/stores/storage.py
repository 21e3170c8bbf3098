"""One folder on any fsspec filesystem, written so that no reader ever sees half a file.

The only file that knows how output becomes visible. Local: a dot-prefixed temporary name, fsync, rename,
fsync of the folder. Object storage: one PUT, or one multipart upload, repeated under its name until it is
known to have arrived. What may be done twice is tried again for about a minute: see retrying.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, cast

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UserError
from pipeline.stores.filesystems import RangeFile, open_filesystem
from pipeline.stores.local_files import create_file, is_temporary, make_folder, sync_folder, write_file
from pipeline.stores.retrying import RETRY_SECONDS, StorageDownError, is_passing, retry

__all__ = ["Storage", "StorageWarning", "StoredFile"]

_S3 = {"s3", "s3a"}
_WRITTEN = ("mtime", "LastModified", "last_modified", "created")
_MAY_BE_CONDITIONAL = {*_S3, "gs", "gcs", "abfs", "abfss", "az"}
_S3_CHUNK_BYTES = 50 * 2**20  # from twice this on an upload goes in chunks, and appears when it is complete

T = TypeVar("T")


class StorageWarning(UserWarning):
    """What a store cannot promise."""


def _ready() -> None:
    """Nothing to wait for."""


@dataclass(frozen=True)
class StoredFile:
    """One file in a folder: base name, size in bytes, and when it was written (epoch seconds, 0: unknown)."""

    name: str
    num_bytes: int
    written_at: float = 0.0


class Storage:
    """A root folder and the few operations the output needs; names are relative, parted by ``/``.

    settle_seconds: pause before ``create`` looks again who won, on stores without a conditional create.
    retry_seconds: how long an operation is tried again after errors that pass.
    Raises UserError for an address that no installed filesystem understands, and where access is denied;
    StorageDownError when an object store has failed for that long.
    """

    def __init__(self, uri: str, settle_seconds: float = 1.0, retry_seconds: float = RETRY_SECONDS) -> None:
        self.uri = uri
        is_name = "::" in uri and "://" not in uri  # part of a name, which fsspec would take for a chain
        self._fs, self._root = (LocalFileSystem(), os.path.abspath(uri)) if is_name else open_filesystem(uri)
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.retry_seconds = retry_seconds
        self._settle_seconds = settle_seconds
        self._is_conditional = None if self._protocols & _MAY_BE_CONDITIONAL else False

    @property
    def _protocols(self) -> set[str]:
        protocol = self._fs.protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

    def path(self, name: str) -> str:
        """The full path of a file, as its filesystem writes it."""
        return f"{self._root.rstrip('/')}/{name}"

    def address(self, name: str) -> str:
        """The full address of a file, as other tools take it: a path here, a URL elsewhere."""
        return self.path(name) if self.is_local else str(self._fs.unstrip_protocol(self.path(name)))

    def exists(self) -> bool:
        """Whether the root holds anything."""
        return bool(self._try(lambda: self._fs.exists(self._root)))

    def files(self, folder: str) -> list[StoredFile]:
        """The files of a folder, by name, temporary ones left out; empty where there is no such folder."""
        return [entry for entry in self._list(folder) if not is_temporary(entry.name)]

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly under the root, or under a folder of it."""
        return sorted(_base(str(item["name"])) for item in self._ls(folder) if item["type"] == "directory")

    def leftovers(self, folder: str) -> list[str]:
        """Names of temporary files that a killed writer left in a folder."""
        return [f"{folder}/{entry.name}" for entry in self._list(folder) if is_temporary(entry.name)]

    def read(self, name: str) -> bytes | None:
        """All bytes of a file; None where there is none."""
        try:
            return cast(bytes, self._try(lambda: self._fs.cat_file(self.path(name))))
        except FileNotFoundError:
            return None

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes [start, end) of a file, which must be there; raises FileNotFoundError, or OSError."""
        return self._try(partial(self._range, self.path(name), start, end))

    def _range(self, path: str, start: int, end: int) -> bytes:
        data = cast(bytes, self._fs.cat_file(path, start=start, end=end)) if end > start else b""
        if len(data) != end - start:
            raise ConnectionError(f"{path}: {len(data)} of {end - start} bytes came")
        return data

    @contextlib.contextmanager
    def open(self, name: str, num_bytes: int) -> Iterator[Any]:
        """A seekable binary file of known size, for reading by range."""
        if self.is_local:
            with pa.OSFile(self.path(name)) as file:
                yield file
        else:
            yield RangeFile(partial(self.read_range, name), num_bytes)

    def write(self, name: str, data: bytes, ready: Callable[[], None] = _ready) -> str:
        """Make a file visible, whole or not at all, in place of one of that name; returns its path.

        A failed PUT is tried again under the same name, so that one whose answer got lost cannot double a
        part. Callers must not repeat a failed write under another name.

        ready: called right before each try, on this machine when the temporary file is complete: who removes
        temporary files after a take-over leaves nothing that a writer who overslept could rename.
        """
        if self.is_local:
            write_file(self.path(name), data, ready)
        else:
            self._try_when(ready, lambda: self._fs.pipe_file(self.path(name), data))
        return self.path(name)

    def upload(self, name: str, source: str, ready: Callable[[], None] = _ready) -> str:
        """As ``write``, from a file of this machine, which may be large and is gone or left as it was."""
        target = self.path(name)
        if not self.is_local:
            options = {"chunksize": _S3_CHUNK_BYTES} if self._protocols & _S3 else {}
            self._try_when(ready, lambda: self._fs.put_file(source, target, **options))
            return target
        make_folder(os.path.dirname(target))
        ready()
        os.replace(source, target)  # same file system: ``local_scratch``
        sync_folder(os.path.dirname(target))
        return target

    def create(self, name: str, data: bytes) -> bool:
        """Create a file only if there is none of that name; False if another one was first.

        Exactly one caller wins on local filesystems (link of a complete file) and on AWS S3, Google Cloud
        Storage and Azure (conditional PUT). Other stores have only "look, then write": there the last writer
        wins and the others find out after ``settle_seconds``; a writer slower than that goes unnoticed here,
        so callers must keep checking, and a StorageWarning says so.

        An answer that got lost is found out by reading back, so ``data`` must differ between callers.
        """
        if self.is_local:
            return create_file(self.path(name), data)
        return self._try(lambda: self._create_once(name, data))

    def _create_once(self, name: str, data: bytes) -> bool:
        failure: Exception | None = None
        try:
            self._fs.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            pass  # perhaps our own, from a try whose answer got lost
        except Exception as error:  # some stores answer a lost race, or a won one, with another error
            failure = error
        seen = self.read(name)
        if seen is None and failure is not None:
            raise failure
        if seen != data or self._refuses_second(name, data):
            return seen == data
        time.sleep(self._settle_seconds)
        return self.read(name) == data

    def _refuses_second(self, name: str, data: bytes) -> bool:
        """Whether the store does not let a file be created twice; tried once, with the very same bytes.

        Servers that speak S3, and older clients of other stores, may not know the condition and overwrite.
        """
        if self._is_conditional is None:
            try:
                self._fs.pipe_file(self.path(name), data, mode="create")
                self._is_conditional = False
            except FileExistsError:
                self._is_conditional = True
            except Exception as error:
                if is_passing(error):
                    raise
                self._is_conditional = True  # refused, in other words
        if not self._is_conditional and "memory" not in self._protocols:  # which one process has to itself
            warnings.warn(
                f"{self.uri!r}: this store has no conditional create, so two runs that start there within "
                f"{self._settle_seconds:g} s of each other cannot be kept apart: start one at a time",
                StorageWarning,
                stacklevel=2,
            )
        return self._is_conditional

    def delete(self, name: str) -> None:
        """Remove a file; no error where there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._try(lambda: self._fs.rm_file(self.path(name)))

    def delete_folder(self, folder: str) -> None:
        """Remove a folder of this machine and all that is in it; elsewhere folders go with their files."""
        if self.is_local:
            shutil.rmtree(self.path(folder), ignore_errors=True)

    def abort_uploads(self, folders: Iterable[str]) -> int:
        """End multipart uploads that killed writers left in some folders; returns how many. S3 only.

        They are invisible but cost money. Call it while holding the output. Where that is not allowed, or not
        to be had, they stay: no run should fail for it.
        """
        if not self._protocols & _S3:
            return 0
        ended = 0
        for folder in folders:
            bucket, _, prefix = self.path(folder).partition("/")
            page = {"Bucket": bucket, "Prefix": f"{prefix}/"}
            with contextlib.suppress(Exception):  # whatever botocore and its transports raise
                for upload in self._fs.call_s3("list_multipart_uploads", **page).get("Uploads", []):
                    self._fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
                    ended += 1
        return ended

    def _ls(self, folder: str) -> list[dict[str, Any]]:
        path = self.path(folder) if folder else self._root
        try:
            return self._try(lambda: self._listing(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _listing(self, path: str) -> list[dict[str, Any]]:
        self._fs.invalidate_cache(path)
        return cast("list[dict[str, Any]]", self._fs.ls(path, detail=True))

    def _list(self, folder: str) -> list[StoredFile]:
        files = [item for item in self._ls(folder) if _is_file(item)]
        return sorted(map(_entry, files), key=lambda entry: entry.name)

    def _try_when(self, ready: Callable[[], None], work: Callable[[], T]) -> T:
        def once() -> T:
            ready()
            return work()

        return self._try(once)

    def _try(self, work: Callable[[], T]) -> T:
        if self.is_local:
            return work()
        try:
            return retry(work, self.retry_seconds)
        except PermissionError as error:
            raise UserError(
                f"access to {self.uri!r} is denied ({error}); check the credentials in the environment"
            ) from error
        except Exception as error:
            if not is_passing(error):
                raise
            raise StorageDownError(
                f"{self.uri!r} failed for {self.retry_seconds:.0f} s, the last time with: {error!r}"
            ) from error


def _is_file(item: dict[str, Any]) -> bool:
    linked = bool(item.get("islink")) and os.path.isfile(item["name"])  # parts that were moved and linked
    return item["type"] == "file" or linked


def _entry(item: dict[str, Any]) -> StoredFile:
    written = next((item[key] for key in _WRITTEN if item.get(key) is not None), 0.0)
    if isinstance(written, datetime):
        written = written.timestamp()
    return StoredFile(
        _base(str(item["name"])),
        int(item["size"] or 0),
        float(written) if isinstance(written, int | float) else 0.0,
    )


def _base(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
