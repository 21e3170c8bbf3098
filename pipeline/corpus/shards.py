"""Tar shards (WebDataset): every video in them as a range of bytes, found without unpacking anything."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pipeline.config import VIDEO_SUFFIXES, CorpusConfig
from pipeline.corpus.entries import Entry, PassedOver
from pipeline.corpus.fields import FieldError, Fields
from pipeline.corpus.identity import Found, derived_id, own_version
from pipeline.corpus.map_ahead import map_ahead
from pipeline.corpus.ranges import Opener, range_opener
from pipeline.corpus.shard_index import (
    IndexCache,
    Indexed,
    ShardIndex,
    build_index,
    cache_name,
    from_bytes,
    is_json,
    json_members,
    metadata_of,
    to_bytes,
)
from pipeline.errors import Reason
from pipeline.records import Problem, VideoRef
from pipeline.stores import (
    NO_VERSION,
    TAR_URI,
    StorageDownError,
    is_passing,
    reason_of,
)

__all__ = ["SHARD_SUFFIXES", "IndexCache", "list_shards", "member_uri"]

# Compressed ones are listed, and fail with the reason.
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_NUM_AT_ONCE = 16
_VIDEO_SUFFIXES = tuple(f".{suffix}" for suffix in VIDEO_SUFFIXES)
_CACHE_ERRORS = (OSError, StorageDownError)
# What would end the member's name, or break a line: everything else stays readable.
_UNSAFE = re.compile(r"[%\x00-\x1f\x7f\ud800-\udfff]|:(?=:)|:$")


def list_shards(
    config: CorpusConfig,
    shards: Iterable[Entry],
    admits: Callable[[str], bool],
    wants: Callable[[str], bool],
    *,
    cache: IndexCache | None = None,
    passed_over: PassedOver | None = None,
) -> Iterator[Found]:
    """The videos in tar shards: members whose name ``admits`` takes, in the order of the archives.

    ``wants`` is asked about the ids. Where ``corpus.columns`` or ``corpus.manifest`` is set, the .json member
    beside a video is read as a manifest's row is. A shard that cannot be read to its end is listed
    itself, with the problem, after the members found. 16 shards are indexed at once; what ``cache`` holds is
    not read again. ``passed_over`` counts AppleDouble files among the members, and JSON of no video.
    """
    fields = Fields(config)
    wanted = _wanted(config)
    passed = passed_over or PassedOver()
    kept = _Kept(cache)

    def indexed(item: tuple[Entry, Opener]) -> tuple[Entry, ShardIndex]:
        shard, opener = item
        return shard, _index_of(shard, opener, wanted, kept)

    opened = ((shard, range_opener(shard)) for shard in shards)
    for shard, index in map_ahead(indexed, opened, _NUM_AT_ONCE):
        for ref in _refs(shard, index, fields, admits, passed):
            if wants(ref.video_id):
                yield Found(ref)


def member_uri(member: str, archive: str) -> str:
    """``tar://member::archive``; "::", "%", control and non-UTF-8 bytes of the member are percent-encoded."""
    safe = _UNSAFE.sub(lambda found: quote(os.fsencode(found[0]), safe=""), member)
    return f"{TAR_URI}{safe}::{archive}"


def _wanted(config: CorpusConfig) -> frozenset[str]:
    """The fields to read of a sample's JSON; none: it is not read. Its address and size are the shard's."""
    if not config.columns and "manifest" not in config.model_fields_set:
        return frozenset()
    names = config.manifest
    usual = (names.questions_column, names.start_column, names.end_column)
    is_set = "id_column" in names.model_fields_set
    return frozenset({*config.columns, *usual, *((names.id_column,) if is_set else ())})


class _Kept:
    """The cache of indexes, if there is one. A cache that fails or is damaged costs time, nothing else."""

    def __init__(self, cache: IndexCache | None) -> None:
        self._cache = cache
        self._writing = threading.Lock()

    def get(self, name: str, shard: Entry) -> ShardIndex | None:
        if self._cache is None or _is_unknown(shard):
            return None
        try:
            data = self._cache.get(name)
        except _CACHE_ERRORS:
            return None
        return from_bytes(data, shard.size_bytes) if data is not None else None

    def put(self, name: str, shard: Entry, index: ShardIndex) -> None:
        if self._cache is None or _is_unknown(shard):
            return
        data = to_bytes(index)
        with self._writing, contextlib.suppress(*_CACHE_ERRORS):
            self._cache.put(name, data)


def _is_unknown(shard: Entry) -> bool:
    """Whether the store tells nothing that would differ once the shard has other content of the same size."""
    return shard.version == f"{shard.size_bytes}-0"


def _index_of(shard: Entry, opener: Opener, wanted: frozenset[str], kept: _Kept) -> ShardIndex:
    if shard.problem is not None:
        return ShardIndex((), shard.problem)
    if shard.size_bytes == 0 and shard.version != NO_VERSION:
        return ShardIndex((), Problem(Reason.EMPTY_FILE, "is empty"))
    name = cache_name(shard, wanted)
    known = kept.get(name, shard)
    if known is not None:
        return known
    try:
        with opener() as reader:
            index = build_index(reader, wanted)
    except Exception as error:  # every store has errors of its own
        return ShardIndex((), _problem(error))
    kept.put(name, shard, index)
    return index


def _problem(error: Exception) -> Problem:
    again = " (after trying again)" if is_passing(error) else ""
    return Problem(reason_of(error), f"cannot be read: {type(error).__name__}: {error}"[:500] + again)


def _refs(
    shard: Entry, index: ShardIndex, fields: Fields, admits: Callable[[str], bool], passed: PassedOver
) -> Iterator[VideoRef]:
    named = {one.member.name: one for one in index.members if not one.is_apple_double}
    metadata = json_members(named)
    unused = {name for name in named if is_json(name)}
    for one in index.members:
        name = one.member.name
        is_asked_for = admits(name)
        if is_asked_for or name.lower().endswith(_VIDEO_SUFFIXES):
            beside = metadata_of(name, metadata)
            unused -= {name, beside}
        if is_asked_for and one.is_apple_double:
            passed.not_videos += 1
        elif is_asked_for:
            yield _ref(shard, one, named[beside] if beside else None, fields)
    passed.unused_metadata += len(unused)
    if index.problem is not None:
        problem = Problem(index.problem.reason, f"shard {shard.uri!r} {index.problem.message}")
        yield VideoRef(derived_id(shard.uri), shard.uri, shard.version, shard.size_bytes, problem=problem)


def _ref(shard: Entry, one: Indexed, beside: Indexed | None, fields: Fields) -> VideoRef:
    member = one.member
    uri = member_uri(member.name, shard.uri)
    values: Mapping[str, Any] = beside.fields if beside is not None and beside.fields is not None else {}
    problem = _member_problem(shard, one, beside)
    try:
        clip, questions, extra = fields.clip(values), fields.questions(values), fields.extra(values)
        video_id = fields.video_id(values) if "id_column" in fields.names.model_fields_set else None
    except FieldError as bad:
        clip, questions, extra, video_id = (None, None), (), (), None
        problem = problem or _invalid(f"{_label(beside)} in {shard.uri!r}: {bad}")
    return VideoRef(
        video_id or derived_id(uri, *clip),
        uri,
        own_version(shard.version, questions, *clip),
        member.num_bytes,
        archive=shard.uri,
        offset=member.offset,
        num_bytes=member.num_bytes,
        questions=questions,
        start_seconds=clip[0],
        end_seconds=clip[1],
        extra=extra,
        problem=problem,
    )


def _label(beside: Indexed | None) -> str:
    return repr(beside.member.name) if beside is not None else "the sample"


def _member_problem(shard: Entry, one: Indexed, beside: Indexed | None) -> Problem | None:
    member = one.member
    if member.offset + member.num_bytes > shard.size_bytes:
        last = member.offset + member.num_bytes
        return Problem(
            Reason.CORRUPT,
            f"ends at byte {last} of {shard.uri!r}, which has {shard.size_bytes}: it is cut short",
        )
    if member.is_sparse:
        return _invalid(f"is stored sparse in {shard.uri!r}: make the shard without --sparse")
    if beside is not None and beside.fault is not None:
        return _invalid(f"{beside.fault} (in {shard.uri!r})")
    return None


def _invalid(message: str) -> Problem:
    return Problem(Reason.INVALID_INPUT, message.encode("utf-8", "backslashreplace").decode())
