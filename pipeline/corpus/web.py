"""Files on a web server: one by its address, or all that its directory pages name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from pipeline.corpus.entries import Entry
from pipeline.corpus.map_ahead import map_ahead
from pipeline.errors import Reason, UserError
from pipeline.records import Problem
from pipeline.stores import NO_VERSION, Hosts, ask_store, content_version, glob_pattern

__all__ = ["WebListing"]

MAX_DEPTH = 64  # folders: a server follows links that lead back, and nothing tells
_NUM_LOOK_UPS = 32  # at once: a page names files, but not their versions
_GLOB_PART = re.compile(r"[*\[]")


class WebListing:
    """A file, a folder or a glob (only with "*": "?" begins the query of an address). Raises UserError."""

    num_other = 0

    def __init__(self, uri: str, store: Any, is_pruned: Callable[[str], bool]) -> None:
        self.root = uri
        self._store, self._is_pruned = store, is_pruned
        self._hosts = Hosts()
        self._glob: re.Pattern[str] | None = None
        self._max_depth: int | None = None
        self._info: Mapping[str, Any] | None = None
        place = re.split(r"[?#]", uri, maxsplit=1)[0]
        self._name = place.rsplit("/", 1)[-1]
        self._folder = f"{place.rstrip('/')}/"
        if "*" in place:
            self._folder, pattern = _split(place)
            self._glob, self._max_depth = glob_pattern(unquote(pattern))
        elif self._name:
            info = self._ask(store.info, uri)
            self._info = None if info.get("mimetype") == "text/html" else info
        self.names_suffix = self._info is not None or (self._glob is not None and "." in self._name)

    def entries(self, admits: Callable[[str], bool]) -> Iterator[Entry]:
        """The file itself, or every file below the folder; 32 are looked up at once."""
        if self._info is None:
            yield from map_ahead(self._entry, self._found(admits), _NUM_LOOK_UPS)
        elif admits(self._name):
            yield _entry(self.root, self._name, self._info)

    def _found(self, admits: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
        """Address and relative path of the files asked for, folder by folder, by name."""
        stack = [iter([self._folder])]
        while stack:
            folder = next(stack[-1], None)
            if folder is None:
                stack.pop()
                continue
            if len(stack) > MAX_DEPTH:
                raise UserError(f"corpus.uri={self.root!r}: {folder!r} is too deep; does a link lead back?")
            folders = []
            for uri, relative in self._links(folder):
                if relative.endswith("/"):
                    if self._is_entered(relative[:-1]):
                        folders.append(uri)
                elif (self._glob is None or self._glob.match(relative)) and admits(relative):
                    yield uri, relative
            stack.append(iter(folders))

    def _links(self, folder: str) -> list[tuple[str, str]]:
        """What a directory page names below its folder. Its links to sort or to go up are none of these."""
        infos = self._ask(self._store.ls, folder, detail=True)
        below = sorted(uri for uri in (str(info["name"]) for info in infos) if uri.startswith(folder))
        found = [uri for uri in below if re.match(r"[^?#/]+/?$", uri.removeprefix(folder))]
        if not found and folder == self._folder:
            raise UserError(
                f"corpus.uri={self.root!r}: the server shows no list of its files there; name one file, or "
                "give a manifest (CSV, JSONL or Parquet) that names them in its column 'uri'"
            )
        return [(uri, unquote(uri.removeprefix(self._folder))) for uri in found]

    def _is_entered(self, relative: str) -> bool:
        is_too_deep = self._max_depth is not None and relative.count("/") >= self._max_depth
        return not is_too_deep and not self._is_pruned(relative)

    def _entry(self, found: tuple[str, str]) -> Entry:
        uri, relative = found
        try:
            info: Mapping[str, Any] = self._hosts.ask(uri, self._store.info, uri)
        except (FileNotFoundError, PermissionError):
            return Entry(uri, relative, NO_VERSION, 0)  # reading it says the same, in its own time
        except Exception as error:  # every store has errors of its own
            message = f"{uri!r} cannot be looked up: {type(error).__name__}: {error}"[:500]
            return Entry(uri, relative, NO_VERSION, 0, Problem(Reason.READ_ERROR, message))
        return _entry(uri, relative, info)

    def _ask(self, method: Callable[..., Any], uri: str, **named: Any) -> Any:
        try:
            return ask_store(method, uri, **named)
        except FileNotFoundError:
            raise UserError(f"corpus.uri={self.root!r}: there is nothing there") from None
        except PermissionError as error:
            what = f"may not be listed: {error}; are the credentials set?"
            raise UserError(f"corpus.uri={self.root!r} {what}") from error
        except Exception as error:  # every store has errors of its own
            what = f"cannot be listed: {type(error).__name__}: {error}"
            raise UserError(f"corpus.uri={self.root!r} {what}") from error


def _entry(uri: str, relative: str, info: Mapping[str, Any]) -> Entry:
    size = int(info.get("size") or 0)
    return Entry(uri, relative, content_version(info, size), size)


def _split(place: str) -> tuple[str, str]:
    """The folder above the first part with a wildcard, with a slash at its end, and the rest."""
    scheme, _, rest = place.partition("://")
    host, *parts = rest.split("/")
    at = next(number for number, part in enumerate(parts) if _GLOB_PART.search(part))
    return "/".join([f"{scheme}://{host}", *parts[:at], ""]), "/".join(parts[at:])
