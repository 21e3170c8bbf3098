"""Files below a place on any fsspec store. S3 is listed page by page, others folder by folder.

web.py has web servers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.corpus.entries import Entry, Listing
from pipeline.corpus.web import WebListing
from pipeline.errors import UserError
from pipeline.stores import (
    ask_store,
    content_version,
    glob_pattern,
    has_wildcard,
    open_store,
    remote_uri,
    split_glob,
)

__all__ = ["open_remote"]

_S3 = ("s3://", "s3a://")
_HTTP = ("http://", "https://")


def open_remote(uri: str, is_pruned: Callable[[str], bool], skip: Sequence[str]) -> Listing:
    """As ``open_listing``, for a uri that is not local. Raises UserError."""
    try:
        store, path = open_store(uri)
    except Exception as error:  # every store has errors of its own
        raise UserError(f"corpus.uri={uri!r} cannot be opened: {type(error).__name__}: {error}") from None
    if uri.startswith(_HTTP):
        return WebListing(uri, store, is_pruned)
    if uri.startswith(_S3) and (not path or has_wildcard(path.partition("/")[0])):
        raise UserError(f"corpus.uri={uri!r}: name one bucket, e.g. s3://bucket/videos")
    kind = _PagedListing if uri.startswith(_S3) and hasattr(store, "call_s3") else _WalkedListing
    return kind(uri, store, path, is_pruned, skip)


def _ask(uri: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    try:
        return ask_store(method, *arguments, **named)
    except FileNotFoundError:
        raise UserError(f"corpus.uri={uri!r}: there is nothing there") from None
    except PermissionError as error:
        raise UserError(f"corpus.uri={uri!r} may not be listed: {error}; are the credentials set?") from error
    except Exception as error:  # every store has errors of its own
        raise UserError(f"corpus.uri={uri!r} cannot be listed: {type(error).__name__}: {error}") from error


class _RemoteListing:
    """What the two ways to list have in common: where to start, and what to take."""

    def __init__(
        self, uri: str, store: Any, path: str, is_pruned: Callable[[str], bool], skip: Sequence[str]
    ) -> None:
        self.root, self.num_other = uri, 0
        self._uri, self._store, self._path = uri, store, path
        self._is_pruned = is_pruned
        self._account = _account_in(uri)
        self._glob: re.Pattern[str] | None = None
        self._max_depth: int | None = None
        self._info: Mapping[str, Any] | None = None
        if has_wildcard(path) and not _ask(uri, store.exists, path):
            self._glob, self._max_depth = glob_pattern(path)
        elif not uri.endswith("/"):
            self._info = self._file_info()
        # Without a glob the path may be a prefix that ends within a name, as object stores know it.
        # One slash at its end is the folder's; what is before that, a slash too, is a part of its name.
        self._folder = (split_glob(path)[0] if self._glob else path).removesuffix("/")
        self.names_suffix = self._info is not None or (
            self._glob is not None and "." in path.rsplit("/", 1)[-1]
        )
        self._skip = [
            each for each in map(self._skipped, skip) if each and not f"{self._folder}/".startswith(each)
        ]

    def entries(self, admits: Callable[[str], bool]) -> Iterator[Entry]:
        if self._info is None:
            yield from self._below(admits)
            return
        name = self._path.rsplit("/", 1)[-1]
        if admits(name):
            yield self._entry(self._path, self._info, name)

    def _below(self, admits: Callable[[str], bool]) -> Iterator[Entry]:
        raise NotImplementedError

    def _file_info(self) -> Mapping[str, Any] | None:
        def info() -> Mapping[str, Any] | None:
            try:
                found: Mapping[str, Any] = self._store.info(self._path)
            except FileNotFoundError:
                return None
            return found if found.get("type") == "file" else None

        asked: Mapping[str, Any] | None = _ask(self._uri, info) if self._path.strip("/") else None
        return asked

    def _skipped(self, uri: str) -> str | None:
        """The path that a uri has on this store, with a slash at its end; None where it is on another."""
        scheme = uri.partition("://")[0]
        protocols = self._store.protocol
        if "://" not in uri or scheme not in ((protocols,) if isinstance(protocols, str) else protocols):
            return None
        return open_store(uri)[1].rstrip("/") + "/"

    def _is_skipped(self, path: str) -> bool:
        return any(path.startswith(each) for each in self._skip)

    def _entry(self, path: str, info: Mapping[str, Any], relative: str) -> Entry:
        size = int(info.get("size") or 0)
        return Entry(self._uri_of(path), relative, content_version(info, size), size)

    def _uri_of(self, path: str) -> str:
        uri = remote_uri(str(self._store.unstrip_protocol(path)))
        return uri if self._account is None else uri.replace(*self._account, 1)


def _account_in(uri: str) -> tuple[str, str] | None:
    """How addresses begin without and with the account that a user's names: az://container@account.….net/."""
    authority = remote_uri(uri).partition("://")[2].partition("/")[0]
    container, at, _ = authority.partition("@")
    is_azure = at and remote_uri(uri).startswith("az://")
    return (f"az://{container}/", f"az://{authority}/") if is_azure else None


class _WalkedListing(_RemoteListing):
    """Folder by folder, sorted: as much is held in memory as the largest folder needs."""

    def _below(self, admits: Callable[[str], bool]) -> Iterator[Entry]:
        start, prefix = self._folder, self._path
        if self._glob is None and not _ask(self._uri, self._store.isdir, start):
            if self._uri.endswith("/"):
                raise UserError(f"corpus.uri={self._uri!r}: there is nothing there")
            start = start.rpartition("/")[0]
        elif self._glob is None:
            prefix = f"{start}/" if start else ""
        stack = [iter([(start, True)])]
        while stack:
            folder, is_start = next(stack[-1], (None, False))
            if folder is None:
                stack.pop()
                continue
            folders = []
            for info in self._list(folder, is_start):
                path = str(info["name"]).rstrip("/")
                relative = path.removeprefix(start).lstrip("/")
                if info.get("type") == "directory":
                    if path != folder and self._is_entered(path, relative, prefix):
                        folders.append((path, False))
                elif self._is_asked_for(path, prefix) and admits(relative):
                    yield self._entry(path, info, relative)
            stack.append(iter(folders))

    def _list(self, folder: str, is_start: bool) -> list[Mapping[str, Any]]:
        try:
            infos: list[Mapping[str, Any]] = ask_store(self._store.ls, folder, detail=True)
        except FileNotFoundError:
            if is_start:
                raise UserError(f"corpus.uri={self._uri!r}: there is nothing there") from None
            return []  # removed while its parent was being listed
        except Exception as error:  # every store has errors of its own
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"corpus.uri={self._uri!r} cannot be listed: {what}") from error
        self._store.invalidate_cache(folder)  # else the store keeps every listing
        return sorted(infos, key=lambda info: str(info["name"]))

    def _is_entered(self, path: str, relative: str, prefix: str) -> bool:
        if self._max_depth is not None and relative.count("/") >= self._max_depth:
            return False
        is_on_the_way = (
            self._glob is not None or f"{path}/".startswith(prefix) or prefix.startswith(f"{path}/")
        )
        return is_on_the_way and not self._is_skipped(f"{path}/") and not self._is_pruned(relative)

    def _is_asked_for(self, path: str, prefix: str) -> bool:
        return self._glob.match(path) is not None if self._glob else path.startswith(prefix)


class _PagedListing(_RemoteListing):
    """S3: every key under a prefix, 1000 at a time, in the store's order, no request per folder.

    Nothing is kept of a page once it is passed on. A glob's text before its first wildcard is the prefix.
    """

    def _below(self, admits: Callable[[str], bool]) -> Iterator[Entry]:
        bucket, _, key = self._path.partition("/")
        if self._glob is not None:
            yield from self._matching(bucket, re.split(r"[*?\[]", key, maxsplit=1)[0], admits)
            return
        prefix = key if self._path.endswith("/") or not key else f"{key}/"
        if key and not self._uri.endswith("/") and not self._has_any(bucket, prefix):
            self._folder, prefix = self._path.rpartition("/")[0], key
        yield from self._matching(bucket, prefix, admits)

    def _matching(self, bucket: str, prefix: str, admits: Callable[[str], bool]) -> Iterator[Entry]:
        named = {"Delimiter": "/"} if self._max_depth == 0 else {}
        cut = len(self._folder) + 1
        for item in self._items(Bucket=bucket, Prefix=prefix, **named):
            path = f"{bucket}/{item['Key']}"
            is_marker = path.endswith("/") and not item["Size"]  # what consoles make for a folder
            if is_marker or (self._skip and self._is_skipped(path)):
                continue
            relative = path[cut:].rstrip("/") or path.rstrip("/").rpartition("/")[2]  # the key asked for
            if (self._glob is None or self._glob.match(path)) and admits(relative):
                yield self._entry(path, {"size": item["Size"], **item}, relative)

    def _items(self, **named: Any) -> Iterator[Mapping[str, Any]]:
        while True:
            page = _ask(self._uri, self._store.call_s3, "list_objects_v2", **named)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            named["ContinuationToken"] = page["NextContinuationToken"]

    def _has_any(self, bucket: str, prefix: str) -> bool:
        page = _ask(
            self._uri, self._store.call_s3, "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1
        )
        return bool(page.get("Contents"))
