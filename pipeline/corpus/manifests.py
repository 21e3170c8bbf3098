"""Manifests: one video, or one clip of a video, per row of a Parquet, CSV or JSONL file."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

from pipeline.config import CorpusConfig, ManifestConfig
from pipeline.corpus.entries import Entry
from pipeline.corpus.fields import FieldError, Fields
from pipeline.corpus.identity import Found, derived_id, own_version
from pipeline.corpus.local import local_entry
from pipeline.corpus.manifest_files import Row, Wanted, read_rows
from pipeline.corpus.map_ahead import map_ahead
from pipeline.errors import Reason
from pipeline.records import Problem, VideoRef
from pipeline.stores import (
    NO_VERSION,
    Hosts,
    content_version,
    local_path_of,
    open_store,
    remote_uri,
    text_of_path,
    without_query,
)

__all__ = ["list_manifest"]

_NUM_LOOK_UPS = 32  # at once
_T = TypeVar("_T")


def list_manifest(
    config: CorpusConfig,
    files: Iterable[Entry],
    admits: Callable[[str], bool],
    wants: Callable[[str], bool],
    look_up: bool = True,
) -> Iterator[Found]:
    """The videos that the manifests name, in their order.

    ``admits`` is asked about the uri as written, ``wants`` about the id. A row with a bad value is listed
    with the problem. Version and size come from the row, else from the file itself (remote ones: 32 are
    asked for at once); ``look_up`` False leaves them open. A file that is not there, or must not be looked
    at, has the version "0-0". Raises UserError as ``read_rows`` does.
    """
    wanted = _wanted(config)
    fields = Fields(config)
    needs_size = config.min_video_bytes > 0
    hosts = Hosts()

    def rows() -> Iterator[_Pending]:
        for file in files:
            manifest = _Manifest(file.uri, fields, hosts)
            for row in read_rows(file.uri, wanted):
                pending = manifest.pending(row, admits, needs_size)
                if pending is not None and wants(pending.found.ref.video_id):
                    yield pending

    if look_up:
        yield from map_ahead(_look_up, rows(), _NUM_LOOK_UPS, lambda pending: pending.is_quick)
    else:
        yield from (pending.found for pending in rows())


def _wanted(config: CorpusConfig) -> Wanted:
    """Columns the user named must be there; those with default names may be."""
    needed = {config.manifest.uri_column: "corpus.manifest.uri_column"}
    needed |= dict.fromkeys(config.columns, "corpus.columns")
    optional = set()
    for field in ManifestConfig.model_fields:
        name = getattr(config.manifest, field)
        if field in config.manifest.model_fields_set:
            needed.setdefault(name, f"corpus.manifest.{field}")
        else:
            optional.add(name)
    return Wanted(needed, frozenset(optional - needed.keys()))


_State = tuple[str, int, Problem | None]  # version, size in bytes


class _Pending(NamedTuple):
    """A row's ref, and how to find out the state of the file where that is still to be done."""

    found: Found
    ask: Callable[[], _State] | None = None
    is_quick: bool = True


class _Manifest:
    """One manifest: where its relative uris start, and how its rows are named."""

    def __init__(self, uri: str, fields: Fields, hosts: Hosts) -> None:
        self._uri, self._fields, self._hosts = uri, fields, hosts
        path = local_path_of(uri)
        self._is_local = path is not None
        place = path if path is not None else without_query(uri)
        self._folder = place.rpartition("/")[0]
        self._real_folder = lru_cache(4096)(os.path.realpath)

    def pending(self, row: Row, admits: Callable[[str], bool], needs_size: bool) -> _Pending | None:
        values, fields = row.values, self._fields
        try:
            if row.fault is not None:
                return self._bad(row, row.fault)
            written = fields.address(values)
            if not admits(written):
                return None
            uri, path = self._resolve(written)
            clip, questions = fields.clip(values), fields.questions(values)
            video_id = fields.video_id(values) or derived_id(uri, *clip)
            version, size = fields.version(values), fields.size_bytes(values)
            is_complete = version is not None and not (size is None and needs_size)
            ref = VideoRef(
                video_id,
                uri,
                own_version(version, questions, *clip) if version is not None else "",
                size or 0,
                questions=questions,
                start_seconds=clip[0],
                end_seconds=clip[1],
                extra=fields.extra(values),
            )
        except FieldError as bad:
            return self._bad(row, str(bad))
        found = Found(ref, self._uri, row.number)
        if is_complete:
            return _Pending(found)
        return _Pending(found, _asking(uri, path, self._hosts), is_quick=path is not None)

    def _resolve(self, written: str) -> tuple[str, str | None]:
        """The canonical uri, and the path where it is local. Relative uris start at the manifest's folder."""
        path = local_path_of(written)
        if path is None:
            return remote_uri(written), None
        if not path.startswith(("/", "~")) and not self._is_local:
            return self._join(path), None
        folder, name = os.path.split(os.path.join(self._folder or ".", os.path.expanduser(path)))
        full = os.path.join(self._real_folder(folder), name)
        return text_of_path(full), full

    def _join(self, relative: str) -> str:
        if ".." not in relative.split("/") and not relative.startswith("./"):
            return f"{self._folder}/{relative}"
        scheme, _, folder = self._folder.partition("://")
        bucket, _, rest = folder.partition("/")
        return f"{scheme}://{bucket}{posixpath.normpath(posixpath.join('/', rest, relative))}"

    def _bad(self, row: Row, rule: str) -> _Pending:
        """A row that cannot be tried: under the id it would have, else under the row's number."""
        values, fields = row.values, self._fields
        address = _if_good(lambda: self._resolve(fields.address(values))[0])
        place = f"{self._uri}#row={row.number}"
        video_id = _if_good(
            lambda: fields.video_id(values) or derived_id(address or place, *fields.clip(values))
        )
        message = f"{self._uri} row {row.number}: {rule}"
        problem = Problem(Reason.INVALID_INPUT, message)
        ref = VideoRef(video_id or derived_id(place), address or place, NO_VERSION, 0, problem=problem)
        return _Pending(Found(ref, self._uri, row.number))


def _if_good(value: Callable[[], _T]) -> _T | None:
    try:
        return value()
    except FieldError:
        return None


def _look_up(pending: _Pending) -> Found:
    """The ref with version and size."""
    found, ask, _ = pending
    if ask is None:
        return found
    ref = found.ref
    version, size, problem = ask()
    if problem is not None:
        problem = Problem(problem.reason, f"{found.origin} row {found.row}: {problem.message}")
    version = ref.version or own_version(version, ref.questions, ref.start_seconds, ref.end_seconds)
    return found._replace(
        ref=replace(ref, version=version, size_bytes=size or ref.size_bytes, problem=problem)
    )


def _asking(uri: str, path: str | None, hosts: Hosts) -> Callable[[], _State]:
    """Opens the store here: one per thread of those who ask would be many."""
    if path is not None:
        return partial(_ask_disk, path)
    try:
        return partial(_ask_store, hosts, uri, *open_store(uri))
    except Exception as error:  # every store has errors of its own
        reason = Reason.READ_ERROR if isinstance(error, OSError) else Reason.INVALID_INPUT
        problem = Problem(reason, f"{uri!r} cannot be opened: {type(error).__name__}: {error}"[:500])
        return lambda: (NO_VERSION, 0, problem)


def _ask_disk(path: str) -> _State:
    entry = local_entry(path, path, path)
    if entry.size_bytes == 0 and _is_folder(path):
        return NO_VERSION, 0, _not_one(path)
    return entry.version, entry.size_bytes, None


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _not_one(uri: str) -> Problem:
    return Problem(Reason.INVALID_INPUT, f"{uri!r} is a folder: a manifest names videos one by one")


def _ask_store(hosts: Hosts, uri: str, store: Any, path: str) -> _State:
    try:
        info: Mapping[str, Any] = hosts.ask(uri, store.info, path)
    except (FileNotFoundError, PermissionError):
        return NO_VERSION, 0, None  # reading it says the same, in its own time
    except Exception as error:  # every store has errors of its own
        message = f"{uri!r} cannot be looked up: {type(error).__name__}: {error}"
        return NO_VERSION, 0, Problem(Reason.READ_ERROR, message[:500])
    if info.get("type") == "directory":
        return NO_VERSION, 0, _not_one(uri)
    size = int(info.get("size") or 0)
    return content_version(info, size), size, None
