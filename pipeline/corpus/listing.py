"""What there is to index, as a stream: files, rows of manifests, members of tar shards, on any fsspec URL."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from pipeline.config import CorpusConfig
from pipeline.corpus.apple_double import MAGIC_BYTES, is_apple_double, may_be_apple_double
from pipeline.corpus.entries import Entry, Listing, PassedOver
from pipeline.corpus.identity import Found, IdSet, derived_id, id_hash, is_in_slice
from pipeline.corpus.local import open_local
from pipeline.corpus.manifest_files import MANIFEST_SUFFIXES
from pipeline.corpus.manifests import list_manifest
from pipeline.corpus.map_ahead import map_ahead
from pipeline.corpus.ranges import Opener, range_opener
from pipeline.corpus.remote import open_remote
from pipeline.corpus.shard_index import IndexCache
from pipeline.corpus.shards import SHARD_SUFFIXES, list_shards
from pipeline.errors import Reason, UserError
from pipeline.records import Problem, VideoRef
from pipeline.stores import NO_VERSION, TAR_URI, canonical_uri, local_path_of, without_query

__all__ = ["IndexCache", "corpus_format", "list_videos", "open_listing", "video_id_for"]

_NUM_LOOKS = 16  # at once, at first bytes
_NO_VIDEOS = (".tsv", ".json", ".xlsx", ".xls", ".zip", ".csv.bz2", ".csv.xz")
_NAMES = {"files": "files", "manifest": "rows", "tar": "members"}


def list_videos(
    config: CorpusConfig,
    *,
    index_cache: IndexCache | None = None,
    skip: Sequence[str] = (),
    passed_over: PassedOver | None = None,
) -> Iterator[VideoRef]:
    """The corpus, one reference at a time; no video is opened.

    ``include`` and ``exclude`` match the path relative to the root or the base name, whatever the case; a
    folder that ``exclude`` matches is not entered. A single file, or a glob that names a suffix, stands in
    place of ``include``; so does a manifest, unless ``include`` is set. In tar shards they match the members.
    Then ``slice``, ``min_video_bytes``, ``limit``. What cannot be tried at all (a bad row, a file above
    ``max_video_bytes``, a broken shard) is listed with its problem; empty files are listed too.

    ``index_cache`` keeps the indexes of tar shards. Folders at the uris ``skip`` are not entered.
    ``passed_over`` counts what is no input: AppleDouble files, and JSON in shards that belongs to no video.
    Raises UserError where the place does not exist or cannot be listed, where nothing matches (with what was
    passed over, and by which rule), and where two videos would have the same id.
    """
    corpus = _Corpus(config, index_cache, skip, passed_over or PassedOver())
    ids = IdSet()
    num_listed = 0
    for found in corpus.found():
        if corpus.is_too_small(found.ref):
            continue
        if not ids.add(id_hash(found.ref.video_id)):
            corpus.check_differs(found)
        yield _checked(found.ref, config)
        num_listed += 1
        if config.limit is not None and num_listed >= config.limit:
            return
    if num_listed == 0 and not corpus.is_in_other_slices:
        raise UserError(corpus.explain())


def video_id_for(uri: str) -> str:
    """A stable, readable id: slug of the file's stem, "-", 16 hex digits of the canonical uri's hash.

    A local file has the same id whether it was given absolutely, relatively or as ``file://``.
    """
    return derived_id(canonical_uri(uri))


def corpus_format(config: CorpusConfig) -> str:
    """``files``, ``manifest`` or ``tar``; ``auto`` goes by the suffix of the uri."""
    if config.format != "auto":
        return config.format
    place = without_query(config.uri.lower()).rstrip("/")
    if place.endswith(MANIFEST_SUFFIXES):
        return "manifest"
    return "tar" if place.endswith(SHARD_SUFFIXES) else "files"


def _checked(ref: VideoRef, config: CorpusConfig) -> VideoRef:
    if ref.problem is not None or ref.size_bytes <= config.max_video_bytes:
        return ref
    message = (
        f"{ref.size_bytes} bytes exceed corpus.max_video_bytes={config.max_video_bytes}; raise it and run "
        "`flashvid heal CONFIG --reason too_large`"
    )
    return replace(ref, problem=Problem(Reason.TOO_LARGE, message))


def open_listing(uri: str, is_pruned: Callable[[str], bool], skip: Sequence[str] = ()) -> Listing:
    """What to list for a folder, prefix, glob or single file. Raises UserError where there is none.

    ``is_pruned`` says of a relative folder whether to leave it out unentered; folders at the uris ``skip``
    are left out too, unless one of them is where listing starts, or is above that.
    """
    if "\0" in uri:
        raise UserError(f"corpus.uri={uri!r}: no place has a NUL in its name")
    open_place = open_remote if local_path_of(uri) is None else open_local
    return open_place(uri, is_pruned, skip)


class _Corpus:
    """The inputs of one configuration before limits on size and number; may be gone through again."""

    def __init__(
        self, config: CorpusConfig, cache: IndexCache | None, skip: Sequence[str], passed_over: PassedOver
    ) -> None:
        self._config, self._cache = config, cache
        self._passed_over = passed_over
        self._excluded = _Patterns(config.exclude)
        self._format = corpus_format(config)
        if self._format == "files" and config.columns:
            raise UserError(
                f"corpus.columns={list(config.columns)} are a manifest's, but corpus.uri={config.uri!r} is "
                "listed as plain files: name a manifest or tar shards, or say corpus.format=manifest"
            )
        if self._format == "tar" and config.uri.startswith(TAR_URI):
            raise UserError(
                f"corpus.uri={config.uri!r} is a member of a tar shard: name the shard, which stands after "
                "'::', and the member in corpus.include"
            )
        self._listing = open_listing(config.uri, self._excluded.match, skip)
        is_named = config.format == "auto" and self._listing.names_suffix
        if is_named and without_query(config.uri.lower()).endswith(_NO_VIDEOS):
            raise UserError(
                f"corpus.uri={config.uri!r} is no video by its name, nor a list that is read: save a list as "
                f"{', '.join(MANIFEST_SUFFIXES[:3])} …, pack videos as tar; else say corpus.format=files"
            )
        self._files, self._inputs = _Tally(), _Tally()
        self._num_small = 0
        self.is_in_other_slices = False

    def found(self, look_up: bool = True) -> Iterator[Found]:
        """Every input of this slice, in order. ``look_up`` False may leave versions and sizes open."""
        if self._format == "files":
            for entry in self._entries(self._admits(self._inputs, self._file_patterns())):
                video_id = derived_id(entry.uri)
                if self._wants(video_id):
                    ref = VideoRef(video_id, entry.uri, entry.version, entry.size_bytes)
                    yield Found(ref if entry.problem is None else replace(ref, problem=entry.problem))
        elif self._format == "manifest":
            is_set = "include" in self._config.model_fields_set
            admits = self._admits(self._inputs, self._config.include if is_set else ())
            manifests = self._files_named(MANIFEST_SUFFIXES)
            yield from list_manifest(self._config, manifests, admits, self._wants, look_up)
        else:
            admits = self._admits(self._inputs, self._config.include)
            shards = self._files_named(SHARD_SUFFIXES)
            passed = self._passed_over
            yield from list_shards(
                self._config, shards, admits, self._wants, cache=self._cache, passed_over=passed
            )

    def is_too_small(self, ref: VideoRef) -> bool:
        """Whether the video is passed over for its size; never one whose size could not be found out."""
        is_known = ref.problem is None and ref.version.partition("~")[0] != NO_VERSION
        is_small = is_known and ref.size_bytes < self._config.min_video_bytes
        self._num_small += is_small
        return is_small

    def check_differs(self, found: Found) -> None:
        """Lists again up to the one whose id has the same hash. Raises UserError where it is the same id."""
        video_id = found.ref.video_id
        counted, self._passed_over = self._passed_over, PassedOver()  # nothing is counted twice
        for earlier in self.found(look_up=False):
            if earlier.ref.video_id == video_id:
                raise UserError(
                    f"{earlier.describe()} and {found.describe()} have the same id {video_id!r}: "
                    "list each video once, or give each row of the manifest an id of its own"
                )
            if id_hash(earlier.ref.video_id) == id_hash(video_id):
                break
        self._passed_over = counted

    def explain(self) -> str:
        """Why there is nothing to index."""
        head = f"no video in {self._config.uri!r} (looked at {self._listing.root}): "
        if self._format != "files" and self._files.num_admitted == 0:
            kind, suffixes = (
                ("manifest", MANIFEST_SUFFIXES)
                if self._format == "manifest"
                else ("tar shard", SHARD_SUFFIXES)
            )
            return (
                f"{head}no {kind} among {self._files.num_seen} files; names must end in {', '.join(suffixes)}"
            )
        noun = _NAMES[self._format]
        if self._inputs.num_seen == 0 and self._listing.num_other == 0:
            return head + ("there is no file at all" if self._format == "files" else f"there are no {noun}")
        config, small = self._config, self._num_small
        others = self._listing.num_other
        reasons = self._inputs.reasons(config)
        reasons += [f"{small} have fewer bytes than corpus.min_video_bytes={config.min_video_bytes}"] * bool(
            small
        )
        reasons += [f"{others} are pipes, sockets or devices"] * bool(others)
        apple = self._passed_over.not_videos
        reasons += [f"{apple} are AppleDouble files, which macOS puts beside others"] * bool(apple)
        examples = "".join(f", {name}" for name in self._inputs.examples)
        eg = f"; e.g. {examples[2:]}" if examples else ""
        hint = self._inputs.hint() if self._format == "files" else ""
        return f"{head}{self._inputs.num_seen} {noun}, of which {'; '.join(reasons)}{eg}{hint}"

    def _wants(self, video_id: str) -> bool:
        if self._config.slice is None:
            return True
        wants = is_in_slice(id_hash(video_id), self._config.slice)
        self.is_in_other_slices |= not wants
        return wants

    def _file_patterns(self) -> Sequence[str]:
        return () if self._listing.names_suffix else self._config.include

    def _admits(self, tally: _Tally, include: Sequence[str]) -> Callable[[str], bool]:
        included = _Patterns(include)
        return lambda relative: tally.admits(relative, included, self._excluded)

    def _files_named(self, suffixes: Sequence[str]) -> Iterator[Entry]:
        patterns = () if self._listing.names_suffix else [f"*{suffix}" for suffix in suffixes]
        return self._entries(self._admits(self._files, patterns))

    def _entries(self, admits: Callable[[str], bool]) -> Iterator[Entry]:
        """What the place has of the names asked for, without AppleDouble files under them."""
        found = ((each, _head_opener(each)) for each in self._listing.entries(admits))
        for entry, is_none in map_ahead(_looked_at, found, _NUM_LOOKS, lambda item: item[1] is None):
            if is_none:
                self._passed_over.not_videos += 1
            else:
                yield entry


def _head_opener(entry: Entry) -> Opener | None:
    """How to look at a file's first bytes, where its name calls for that."""
    may_be = may_be_apple_double(entry.relative) and entry.problem is None and entry.size_bytes > 0
    return range_opener(entry) if may_be else None


def _looked_at(item: tuple[Entry, Opener | None]) -> tuple[Entry, bool]:
    """The entry, and whether it is an AppleDouble file; what cannot be read says why when it is tried."""
    entry, opener = item
    if opener is None:
        return entry, False
    try:
        with opener() as reader:
            return entry, is_apple_double(reader.read(0, MAGIC_BYTES, ahead=MAGIC_BYTES))
    except Exception:  # every store has errors of its own
        return entry, False


class _Patterns:
    """Shell patterns, matched against a relative path or its base name. No patterns match nothing."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.is_empty = not patterns
        lowered = {variant for pattern in patterns for variant in _variants(pattern.lower().rstrip("/"))}
        joined = "|".join(map(fnmatch.translate, sorted(lowered)))
        self._regex = re.compile(joined or r"(?!)")
        self._folder, self._folder_matches = "", False

    def match(self, relative: str) -> bool:
        lowered = relative.lower()
        return bool(self._regex.match(lowered) or self._regex.match(lowered.rsplit("/", 1)[-1]))

    def match_folders(self, relative: str) -> bool:
        """Whether a folder on the way to the file matches. Files of one folder mostly follow each other."""
        folder = relative.rpartition("/")[0]
        if folder != self._folder:
            above = (folder, *map(str, PurePosixPath(folder).parents)) if folder else ()
            self._folder, self._folder_matches = folder, any(map(self.match, above))
        return self._folder_matches


def _variants(pattern: str, at: int = 0) -> list[str]:
    """The pattern with and without each of its "**/": that means any number of folders, none too."""
    at = pattern.find("**/", at)
    if at < 0:
        return [pattern]
    found = _variants(pattern, at + 3)
    if at == 0 or pattern[at - 1] == "/":
        found += _variants(pattern[:at] + pattern[at + 3 :], at)
    return found


@dataclass
class _Tally:
    """What was passed over and why: an empty corpus must explain itself."""

    num_seen: int = 0
    num_excluded: int = 0
    not_included: int = 0
    num_manifests: int = 0
    num_shards: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def num_admitted(self) -> int:
        return self.num_seen - self.num_excluded - self.not_included

    def admits(self, relative: str, included: _Patterns, excluded: _Patterns) -> bool:
        self.num_seen += 1
        if not excluded.is_empty and (excluded.match_folders(relative) or excluded.match(relative)):
            self.num_excluded += 1
        elif not included.is_empty and not included.match(relative):
            self.not_included += 1
            self.num_manifests += relative.lower().endswith(MANIFEST_SUFFIXES)
            self.num_shards += relative.lower().endswith(SHARD_SUFFIXES)
        else:
            return True
        if len(self.examples) < 3:
            self.examples.append(relative.encode("utf-8", "backslashreplace").decode())
        return False

    def reasons(self, config: CorpusConfig) -> list[str]:
        found = []
        if self.not_included:
            found.append(f"{self.not_included} match none of corpus.include ({', '.join(config.include)})")
        if self.num_excluded:
            found.append(f"{self.num_excluded} match corpus.exclude ({', '.join(config.exclude)})")
        return found

    def hint(self) -> str:
        """What a folder of lists or shards needs to be read as one."""
        kinds = ((self.num_manifests, "manifests", "manifest"), (self.num_shards, "tar shards", "tar"))
        return "".join(
            f"; {number} look like {noun}: for those say corpus.format={name}"
            for number, noun, name in kinds
            if number
        )
