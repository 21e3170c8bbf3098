"""Files below a place, local or on any fsspec store, with the version of each file's content."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote_to_bytes

import fsspec
from fsspec.utils import glob_translate

from pipeline.errors import UserError

__all__ = ["Entry", "Listing", "canonical_uri", "local_path_of", "open_listing"]

_GLOB = re.compile(r"[*?\[]")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "checksum")


class Entry(NamedTuple):
    """One file: its canonical uri, its path relative to the root, and what tells two contents apart."""

    uri: str
    relative: str
    version: str
    size_bytes: int


class Listing(Protocol):
    """A place that can be listed. ``names_suffix``: the user said which files, so no other filter is due."""

    root: str
    names_suffix: bool
    num_other: int

    def entries(self) -> Iterator[Entry]:
        """Every file below the root."""
        ...


def local_path_of(uri: str) -> str | None:
    """The path of a local uri (plain, or ``file://`` percent-encoded), else None."""
    if uri.startswith("file://"):
        return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
    if uri.startswith("/") or not ("://" in uri or "::" in uri):
        return uri
    return None


def canonical_uri(uri: str) -> str:
    """One spelling per file. Local: an absolute path with its folder's links resolved; else the uri itself.

    A local name that is not UTF-8 becomes a percent-encoded ``file://`` uri, because rows hold text.
    """
    path = local_path_of(uri)
    if path is None:
        return uri
    folder, name = os.path.split(os.path.expanduser(path))
    full = os.path.join(os.path.realpath(folder or "."), name)
    try:
        full.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(full))
    return full


def open_listing(uri: str, is_pruned: Callable[[str], bool]) -> Listing:
    """What to list for a folder, prefix, glob or single file. Raises UserError where there is none.

    ``is_pruned`` says of a relative folder whether to leave it out unentered.
    """
    path = local_path_of(uri)
    if path is None:
        return _RemoteListing(uri)
    path = os.path.expanduser(path)
    if uri.startswith("file://") and not os.path.lexists(path):
        path = uri.removeprefix("file://")  # written without percent-encoding
    return _LocalListing(path, is_pruned)


class _LocalListing:
    def __init__(self, path: str, is_pruned: Callable[[str], bool]) -> None:
        self.num_other = 0
        self._is_pruned = is_pruned
        self._glob: re.Pattern[str] | None = None
        self._file: str | None = None
        folder = path
        if not os.path.lexists(path) and _GLOB.search(path):
            folder, last = _split_glob(os.path.abspath(path))
            self._glob = re.compile(glob_translate(os.path.join(os.path.realpath(folder), last)))
        elif os.path.lexists(path) and not os.path.isdir(path):
            folder, self._file = os.path.split(path)
        self.root = os.path.realpath(folder or ".")
        self.names_suffix = self._file is not None or (
            self._glob is not None and "." in os.path.basename(path)
        )
        if not os.path.isdir(self.root):
            raise UserError(f"corpus.uri={path!r}: there is no file or folder {self.root!r}")

    def entries(self) -> Iterator[Entry]:
        if self._file is not None:
            yield self._entry(os.path.join(self.root, self._file), self._file)
            return
        yield from self._walk(self.root, "", set())

    def _walk(self, folder: str, relative: str, seen: set[tuple[int, int]]) -> Iterator[Entry]:
        """Links to folders are followed, each folder is visited once: loops end."""
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for item in _scan(folder):
            name = f"{relative}{item.name}"
            if item.is_dir():
                if not self._is_pruned(name):
                    yield from self._walk(item.path, f"{name}/", seen)
            elif not (item.is_file() or item.is_symlink()):
                self.num_other += 1
            elif self._glob is None or self._glob.match(item.path):
                yield self._entry(item.path, name)

    @staticmethod
    def _entry(path: str, relative: str) -> Entry:
        try:
            status = os.stat(path)
        except OSError:  # a dangling link is an input too: it ends as a failure
            return Entry(canonical_uri(path), relative, "0-0", 0)
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        return Entry(canonical_uri(path), relative, f"{size}-{status.st_mtime_ns}", size)


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return sorted(items, key=lambda item: item.name)
    except OSError as error:
        name = os.path.basename(folder)
        raise UserError(
            f"cannot list {folder!r}: {error.strerror}; make it readable or leave it out with "
            f"corpus.exclude=[{name!r}]"
        ) from None


class _RemoteListing:
    def __init__(self, uri: str) -> None:
        self.root, self.num_other = uri, 0
        self._uri = uri
        self._glob: re.Pattern[str] | None = None
        try:
            self._store, self._path = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise UserError(f"corpus.uri={uri!r} cannot be opened: {error}") from None
        if _GLOB.search(self._path) and not self._ask(self._store.exists, self._path):
            self._glob = re.compile(glob_translate(self._path))
            self._path, _ = _split_glob(self._path)
        self._is_file = self._glob is None and bool(self._ask(self._store.isfile, self._path))
        self.names_suffix = self._is_file or (self._glob is not None and _names_suffix(uri))

    def entries(self) -> Iterator[Entry]:
        if self._is_file:
            yield self._entry(
                self._path, self._ask(self._store.info, self._path), self._path.rsplit("/", 1)[-1]
            )
            return
        is_folder = self._glob is not None or self._ask(self._store.isdir, self._path)
        # Else it is a prefix that ends within a name, as object stores know it.
        folder = self._path if is_folder else self._path.rstrip("/").rsplit("/", 1)[0]
        yield from self._walk(folder, self._path)

    def _walk(self, folder: str, prefix: str) -> Iterator[Entry]:
        """Folder by folder, so that a large store is never held in memory whole."""
        start = folder.rstrip("/")
        folders = iter(self._store.walk(folder, detail=True, on_error="raise"))
        while (step := self._ask(next, folders, None)) is not None:
            for info in sorted(step[2].values(), key=lambda info: str(info["name"])):
                path = str(info["name"])
                if path.startswith(prefix) and (self._glob is None or self._glob.match(path)):
                    yield self._entry(path, info, path.removeprefix(start).lstrip("/"))

    def _entry(self, path: str, info: Mapping[str, Any], relative: str) -> Entry:
        size = int(info.get("size") or 0)
        return Entry(str(self._store.unstrip_protocol(path)), relative, _version(info, size), size)

    def _ask(self, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return method(*arguments)
        except FileNotFoundError:
            raise UserError(f"corpus.uri={self._uri!r}: there is nothing there") from None
        except Exception as error:  # every store has errors of its own
            raise UserError(
                f"corpus.uri={self._uri!r} cannot be listed: {type(error).__name__}: {error}"
            ) from error


def _version(info: Mapping[str, Any], size: int) -> str:
    for name in _ETAGS:
        if info.get(name):
            return str(info[name]).strip('"')
    moment = next((info[name] for name in _TIMES if info.get(name)), 0)
    if isinstance(moment, datetime):
        moment = moment.timestamp()
    if isinstance(moment, int | float):
        moment = int(moment * 1_000_000)
    return f"{size}-{moment}"


def _names_suffix(pattern: str) -> bool:
    return "." in pattern.rsplit("/", 1)[-1]


def _split_glob(path: str) -> tuple[str, str]:
    """The folder above the first part with a wildcard, and the rest."""
    parts = path.split("/")
    at = next(number for number, part in enumerate(parts) if _GLOB.search(part))
    return "/".join(parts[:at]) or "/", "/".join(parts[at:])
