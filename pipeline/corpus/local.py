"""Local files below a place, with the version of each one's content; remote.py has all others."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pipeline.corpus.entries import Entry, Listing
from pipeline.corpus.identity import IdSet
from pipeline.errors import UserError
from pipeline.stores import NO_VERSION, glob_pattern, has_wildcard, local_path_of, split_glob, text_of_path

__all__ = ["local_entry", "open_local"]


def open_local(uri: str, is_pruned: Callable[[str], bool], skip: Sequence[str]) -> Listing:
    """As ``open_listing``, for a plain path or a ``file://`` uri. Raises UserError."""
    path = os.path.expanduser(local_path_of(uri) or uri)
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
