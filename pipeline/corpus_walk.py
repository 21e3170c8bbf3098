"""Local files below a place, with the version of each one's content; corpus_remote.py has all others."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import quote, unquote_to_bytes

from fsspec.utils import glob_translate

from pipeline.errors import UserError
from pipeline.identity import NO_VERSION, IdSet
from pipeline.records import Problem

__all__ = [
    "Entry",
    "Listing",
    "canonical_uri",
    "glob_pattern",
    "has_wildcard",
    "is_layered",
    "local_entry",
    "local_path_of",
    "open_listing",
    "remote_uri",
    "split_glob",
    "text_of_path",
    "without_query",
]

_GLOB = re.compile(r"[*?\[]")
# Filesystems upon filesystems: copies that nobody bounds, or members without an address of their own.
_LAYERS = frozenset(
    {
        "blockcache",
        "cached",
        "dir",
        "filecache",
        "generic",
        "libarchive",
        "reference",
        "simplecache",
        "tar",
        "zip",
    }
)
_SAME_SCHEME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


class Entry(NamedTuple):
    """One file: its canonical uri, its path relative to the root, and what tells two contents apart.

    ``problem``: why that could not be found out, where reading the file would not tell.
    """

    uri: str
    relative: str
    version: str
    size_bytes: int
    problem: Problem | None = None


class Listing(Protocol):
    """A place that can be listed. ``names_suffix``: the user said which files, so no other filter is due.

    ``num_other`` counts pipes, sockets and devices passed over so far.
    """

    root: str
    names_suffix: bool
    num_other: int

    def entries(self, admits: Callable[[str], bool]) -> Iterator[Entry]:
        """Every file below the root whose relative path ``admits`` takes; no other is looked at closely."""
        ...


def local_path_of(uri: str) -> str | None:
    """The path of a local uri (plain, or ``file://`` percent-encoded), else None."""
    if uri.startswith("file://"):
        path = uri.removeprefix("file://localhost" if uri.startswith("file://localhost/") else "file://")
        return os.fsdecode(unquote_to_bytes(path))
    if uri.startswith("/") or not ("://" in uri or is_layered(uri)):
        return uri
    return None


def is_layered(uri: str) -> bool:
    """Whether a uri names one filesystem upon another, as ``simplecache::s3://…`` and ``zip://…::…`` do."""
    scheme, mark, _ = uri.partition("://")
    first, layers, _ = scheme.partition("::")
    return bool((mark or layers) and first in _LAYERS) or bool(mark and layers)


def canonical_uri(uri: str) -> str:
    """One spelling per file. Local: an absolute path, its folder's links resolved; else a scheme per store.

    A local name that is not UTF-8 becomes a percent-encoded ``file://`` uri, because rows hold text.
    """
    path = local_path_of(uri)
    if path is None:
        return remote_uri(uri)
    folder, name = os.path.split(os.path.expanduser(path))
    return text_of_path(os.path.join(os.path.realpath(folder or "."), name))


def remote_uri(uri: str) -> str:
    """A uri that is not local, with one scheme per store: ``s3a://`` is ``s3://``, ``abfs://`` is ``az://``."""
    scheme, mark, rest = uri.partition("://")
    return f"{_SAME_SCHEME.get(scheme, scheme)}{mark}{rest}"


def without_query(uri: str) -> str:
    """The uri up to a web server's "?": in other stores that is a part of the name."""
    return uri.partition("?")[0] if uri.startswith(("http://", "https://")) else uri


def text_of_path(path: str) -> str:
    """An absolute path as a uri that is text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def has_wildcard(path: str) -> bool:
    """Whether a path has one of ``* ? [``."""
    return _GLOB.search(path) is not None


def split_glob(path: str) -> tuple[str, str]:
    """The folder above the first part with a wildcard, and the rest."""
    parts = path.split("/")
    at = next(number for number, part in enumerate(parts) if has_wildcard(part))
    return "/".join(parts[:at]) or "/", "/".join(parts[at:])


def glob_pattern(path: str) -> tuple[re.Pattern[str], int | None]:
    """What a whole path must match, and how many folders below ``split_glob``'s can match; None: any number.

    Raises UserError for a pattern that is none.
    """
    _, rest = split_glob(path)
    try:
        return re.compile(glob_translate(path)), None if "**" in rest else rest.count("/")
    except ValueError as error:
        raise UserError(f"corpus.uri: {path!r} is no pattern: {error}") from None


def open_listing(uri: str, is_pruned: Callable[[str], bool], skip: Sequence[str] = ()) -> Listing:
    """What to list for a folder, prefix, glob or single file. Raises UserError where there is none.

    ``is_pruned`` says of a relative folder whether to leave it out unentered; folders at the uris ``skip``
    are left out too, unless one of them is where listing starts, or is above that.
    """
    if "\0" in uri:
        raise UserError(f"corpus.uri={uri!r}: no place has a NUL in its name")
    path = local_path_of(uri)
    if path is None:
        from pipeline.corpus_remote import open_remote

        return open_remote(uri, is_pruned, skip)
    path = os.path.expanduser(path)
    if uri.startswith("file://") and not os.path.lexists(path):
        path = uri.removeprefix("file://")  # written without percent-encoding
    return _LocalListing(path, is_pruned, skip)


def local_entry(path: str, uri: str, relative: str) -> Entry:
    """The entry of a file whose canonical uri is known; one that cannot be looked at has no version."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a dangling link is an input too: it ends as a failure
        return Entry(uri, relative, NO_VERSION, 0)
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return Entry(uri, relative, f"{size}-{status.st_mtime_ns}", size)


class _Folder(NamedTuple):
    path: str  # by way of the links that led there
    relative: str  # "" or with a slash at its end
    real: str  # without links


class _LocalListing:
    def __init__(self, path: str, is_pruned: Callable[[str], bool], skip: Sequence[str]) -> None:
        self.num_other = 0
        self._is_pruned = is_pruned
        self._glob: re.Pattern[str] | None = None
        self._max_depth: int | None = None
        self._file: str | None = None
        folder = path
        if not os.path.lexists(path) and has_wildcard(path):
            folder, last = split_glob(os.path.abspath(path))
            self._glob, self._max_depth = glob_pattern(os.path.join(os.path.realpath(folder), last))
        elif os.path.lexists(path) and not os.path.isdir(path):
            folder, self._file = os.path.split(path)
        self.root = os.path.realpath(folder or ".")
        self.names_suffix = self._file is not None or (
            self._glob is not None and "." in os.path.basename(path)
        )
        if not os.path.isdir(self.root):
            raise UserError(f"corpus.uri={path!r}: there is no file or folder {self.root!r}")
        local = (local_path_of(uri) for uri in skip)
        self._skip = {os.path.realpath(os.path.expanduser(each)) for each in local if each is not None}

    def entries(self, admits: Callable[[str], bool]) -> Iterator[Entry]:
        if self._file is not None:
            path = os.path.join(self.root, self._file)
            if admits(self._file):
                yield local_entry(path, text_of_path(path), self._file)
            return
        seen: dict[int, IdSet] = {}
        stack = [self._visit(_Folder(self.root, "", self.root), admits, seen)]
        while stack:  # not by recursion: folders may be nested deeper than Python's stack
            for item in stack[-1]:
                if isinstance(item, _Folder):
                    stack.append(self._visit(item, admits, seen))
                    break
                yield item
            else:
                stack.pop()

    def _visit(
        self, folder: _Folder, admits: Callable[[str], bool], seen: dict[int, IdSet]
    ) -> Iterator[Entry | _Folder]:
        """Files of one folder and folders to enter, by name. Links are followed, but no folder twice."""
        path, relative, real = folder
        if self._is_left_out(folder, seen):
            return
        names, special = _scan(real, is_root=not relative)
        uri_of = _uris_in(real)
        for name in names:
            full = f"{path.rstrip('/')}/{name}"
            kind = _kind(f"{real.rstrip('/')}/{name}") if name in special else stat.S_IFREG
            if kind == stat.S_IFDIR:
                yield _Folder(full, f"{relative}{name}/", _real_path(real, name))
            elif kind != stat.S_IFREG:
                self.num_other += 1
            elif (self._glob is None or self._glob.match(full)) and admits(relative + name):
                yield local_entry(full, uri_of(name), relative + name)

    def _is_left_out(self, folder: _Folder, seen: dict[int, IdSet]) -> bool:
        _, relative, real = folder
        if relative:
            is_too_deep = self._max_depth is not None and relative.count("/") > self._max_depth
            if is_too_deep or real in self._skip or self._is_pruned(relative[:-1]):
                return True
        try:
            status = os.stat(real)
        except OSError:
            return False  # listing it says why
        return not seen.setdefault(status.st_dev, IdSet()).add(status.st_ino)


def _uris_in(real_folder: str) -> Callable[[str], str]:
    base = real_folder.rstrip("/") + "/"
    return lambda name: text_of_path(base + name)


def _real_path(real_folder: str, name: str) -> str:
    path = f"{real_folder.rstrip('/')}/{name}"
    return os.path.realpath(path) if os.path.islink(path) else path


def _kind(path: str) -> int:
    """The kind of what a name leads to; a link that leads nowhere counts as a file."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except OSError:
        return stat.S_IFREG


def _scan(folder: str, is_root: bool) -> tuple[list[str], set[str]]:
    """The names in a folder, sorted, and which are no plain files. A million names take some 80 MB."""
    names: list[str] = []
    special: set[str] = set()
    try:
        with os.scandir(folder) as items:
            for item in items:
                names.append(item.name)
                if not item.is_file(follow_symlinks=False):
                    special.add(item.name)
    except FileNotFoundError:
        if is_root:
            raise UserError(f"corpus.uri: {folder!r} is gone") from None
        return [], set()  # removed while its parent was being listed
    except OSError as error:
        name = os.path.basename(folder)
        raise UserError(
            f"cannot list {folder!r}: {error.strerror}; make it readable or leave it out with "
            f"corpus.exclude=[{name!r}]"
        ) from None
    names.sort()
    return names, special
