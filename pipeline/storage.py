"""One folder on any fsspec filesystem, written so that no reader ever sees half a file.

The only file that knows how output becomes visible. Local: a dot-prefixed temporary name, fsync, rename,
fsync of the folder. Object storage: one PUT.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UserError

__all__ = ["Entry", "Storage"]

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
}
_ATOMIC_CREATE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
_TEMPORARY_SUFFIX = ".tmp"
_PUT_TRIES = 3


@dataclass(frozen=True)
class Entry:
    """One file in a folder: base name and size in bytes."""

    name: str
    num_bytes: int


class Storage:
    """A root folder and the few operations the output needs; names are relative, parted by ``/``.

    settle_seconds: pause before ``create`` looks again who won, on stores without a conditional create.
    Raises UserError for an address that no installed filesystem understands.
    """

    def __init__(self, uri: str, settle_seconds: float = 1.0) -> None:
        self.uri = uri
        self._fs, self._root = _open_filesystem(uri)
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._settle_seconds = 0.0 if self._protocols & _ATOMIC_CREATE else settle_seconds

    @property
    def _protocols(self) -> set[str]:
        protocol = self._fs.protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

    def path(self, name: str) -> str:
        """The full path of a file, as its filesystem writes it."""
        return f"{self._root.rstrip('/')}/{name}"

    def exists(self) -> bool:
        """Whether the root holds anything."""
        return bool(self._fs.exists(self._root))

    def files(self, folder: str) -> list[Entry]:
        """The files of a folder, by name, temporary ones left out; empty where there is no such folder."""
        return [entry for entry in self._list(folder) if not _is_temporary(entry.name)]

    def folders(self) -> list[str]:
        """Names of the folders directly under the root."""
        return sorted(_base(str(item["name"])) for item in self._ls("") if item["type"] == "directory")

    def leftovers(self, folder: str) -> list[str]:
        """Names of temporary files that a killed writer left in a folder."""
        return [f"{folder}/{entry.name}" for entry in self._list(folder) if _is_temporary(entry.name)]

    def read(self, name: str) -> bytes | None:
        """All bytes of a file; None where there is none."""
        try:
            return cast(bytes, self._fs.cat_file(self.path(name)))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """A seekable binary file for reading by range."""
        with self._fs.open(self.path(name), "rb") as file:
            yield file

    def write(self, name: str, data: bytes) -> str:
        """Make a file visible, whole or not at all, in place of one of that name; returns its path.

        A failed PUT is tried again under the same name, so that one whose answer got lost cannot double a
        part. Callers must not repeat a failed write under another name.
        """
        if self._is_local:
            self._write_local(name, data)
        else:
            self._put(name, data)
        return self.path(name)

    def create(self, name: str, data: bytes) -> bool:
        """Create a file only if there is none of that name; False if another one was first.

        Exactly one caller wins on local filesystems (link of a complete file) and on AWS S3, Google Cloud
        Storage and Azure (conditional PUT; s3fs from 2024.12). Other stores have only "look, then write":
        there the last writer wins and the others find out after ``settle_seconds``; a writer slower than
        that goes unnoticed here, so callers must keep checking.
        """
        if self._is_local:
            return self._link_local(name, data)
        failure: OSError | None = None
        try:
            self._fs.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:  # some stores answer a lost race, or a won one, with another error
            failure = error
        time.sleep(self._settle_seconds)
        seen = self.read(name)
        if seen is None and failure is not None:
            raise failure
        return seen == data

    def delete(self, name: str) -> None:
        """Remove a file; no error where there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self.path(name))

    def _ls(self, folder: str) -> list[dict[str, Any]]:
        path = self.path(folder) if folder else self._root
        self._fs.invalidate_cache(path)
        try:
            return cast("list[dict[str, Any]]", self._fs.ls(path, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _list(self, folder: str) -> list[Entry]:
        files = [item for item in self._ls(folder) if item["type"] == "file"]
        return sorted(
            (Entry(_base(str(item["name"])), int(item["size"] or 0)) for item in files), key=lambda e: e.name
        )

    def _put(self, name: str, data: bytes) -> None:
        for attempt in range(1, _PUT_TRIES + 1):
            try:
                self._fs.pipe_file(self.path(name), data)
                return
            except OSError:
                if attempt == _PUT_TRIES:
                    raise
                time.sleep(0.5 * 2**attempt)

    def _write_local(self, name: str, data: bytes) -> None:
        target = self.path(name)
        with _temporary_beside(target, data) as temporary:
            os.replace(temporary, target)
        _sync_folder(os.path.dirname(target))

    def _link_local(self, name: str, data: bytes) -> bool:
        target = self.path(name)
        with _temporary_beside(target, data) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError:  # no hard links here (FAT, some network mounts)
                return _create_plainly(target, data)
        _sync_folder(os.path.dirname(target))
        return True


def _open_filesystem(uri: str) -> tuple[Any, str]:
    protocol = uri.partition("://")[0] if "://" in uri else "file"
    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        way_out = f'pip install "flashvid-index[{extra}]"' if extra else str(error)
        raise UserError(f"{uri!r} needs a filesystem that is not installed: {way_out}") from None
    except ValueError as error:
        raise UserError(f"{uri!r} is not an address fsspec understands: {error}") from None
    return filesystem, str(root)


def _base(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX)


@contextlib.contextmanager
def _temporary_beside(target: str, data: bytes) -> Iterator[str]:
    """A complete, synced file under a name that readers ignore; gone afterwards, moved or not."""
    folder, base = os.path.split(target)
    _make_folder(folder)
    temporary = os.path.join(folder, f".{base}.{uuid.uuid4().hex[:8]}{_TEMPORARY_SUFFIX}")
    try:
        _create_plainly(temporary, data)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _create_plainly(path: str, data: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def _make_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folder(parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise UserError(f"{folder!r} must be a folder to write to, but it is a file") from None
        return
    except PermissionError:
        raise UserError(
            f"cannot create the folder {folder!r}: permission denied; choose another output"
        ) from None
    _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
