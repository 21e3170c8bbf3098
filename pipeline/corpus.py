"""What there is to index: videos in a folder, prefix, glob or single file on any fsspec URL, as a stream."""

from __future__ import annotations

import fnmatch
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.config import CorpusConfig
from pipeline.corpus_walk import Listing, canonical_uri, open_listing
from pipeline.errors import UserError
from pipeline.records import VideoRef

__all__ = ["list_videos", "video_id_for"]

MAX_SLUG_CHARS = 40


def list_videos(config: CorpusConfig) -> Iterator[VideoRef]:
    """The corpus, one reference at a time; no video is opened. Sorted within each folder.

    ``include`` and ``exclude`` match the path relative to the root or the base name, whatever the case; a
    folder that ``exclude`` matches is not entered. A single file, or a glob that names a suffix, stands in
    place of ``include``. Empty files and files that only look like videos are listed: they end as failures.

    Raises UserError where the place does not exist or cannot be listed, where nothing matches (with what was
    passed over, and by which rule), and where two files would have the same id.
    """
    excluded = _Patterns(config.exclude)
    listing = open_listing(config.uri, excluded.match)
    included = _Patterns(() if listing.names_suffix else config.include)
    tally = _Tally()
    ids: set[str] = set()
    for entry in listing.entries():
        if not tally.admits(entry.relative, included, excluded):
            continue
        video_id = video_id_for(entry.uri)
        if video_id in ids:
            raise UserError(f"{entry.uri!r} is listed twice, or shares its id {video_id!r} with another file")
        ids.add(video_id)
        yield VideoRef(video_id, entry.uri, entry.version, entry.size_bytes)
        if config.limit is not None and len(ids) >= config.limit:
            return
    if not ids:
        raise UserError(tally.explain(listing, config))


def video_id_for(uri: str) -> str:
    """A stable, readable id: slug of the file's stem, "-", 16 hex digits of the canonical uri's hash.

    A local file has the same id whether it was given absolutely, relatively or as ``file://``.
    """
    canonical = canonical_uri(uri)
    digest = hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
    stem = PurePosixPath(canonical.rsplit("/", 1)[-1]).stem
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain.lower())[:MAX_SLUG_CHARS].strip("-")
    return f"{slug or 'video'}-{digest}"


class _Patterns:
    """Shell patterns, matched against a relative path or its base name. No patterns match nothing."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.is_empty = not patterns
        joined = "|".join(fnmatch.translate(pattern.lower().rstrip("/")) for pattern in patterns)
        self._regex = re.compile(joined or r"(?!)")

    def match(self, relative: str) -> bool:
        lowered = relative.lower()
        return bool(self._regex.match(lowered) or self._regex.match(lowered.rsplit("/", 1)[-1]))

    def match_folders(self, relative: str) -> bool:
        """Whether a folder on the way to the file matches."""
        parents = PurePosixPath(relative).parents
        return any(self.match(str(folder)) for folder in parents if folder.name)


@dataclass
class _Tally:
    """What was passed over and why: an empty corpus must explain itself."""

    num_seen: int = 0
    num_excluded: int = 0
    not_included: int = 0
    examples: list[str] = field(default_factory=list)

    def admits(self, relative: str, included: _Patterns, excluded: _Patterns) -> bool:
        self.num_seen += 1
        if excluded.match_folders(relative) or excluded.match(relative):
            self.num_excluded += 1
        elif not included.is_empty and not included.match(relative):
            self.not_included += 1
        else:
            return True
        if len(self.examples) < 3:
            self.examples.append(relative)
        return False

    def explain(self, listing: Listing, config: CorpusConfig) -> str:
        head = f"no video in {config.uri!r} (looked at {listing.root}): "
        if self.num_seen == 0:
            return head + "there is no file at all"
        reasons = []
        if self.not_included:
            reasons.append(f"{self.not_included} match none of corpus.include ({', '.join(config.include)})")
        if self.num_excluded:
            reasons.append(f"{self.num_excluded} match corpus.exclude ({', '.join(config.exclude)})")
        if listing.num_other:
            reasons.append(f"{listing.num_other} are pipes, sockets or devices")
        return f"{head}{self.num_seen} files, of which {'; '.join(reasons)}; e.g. {', '.join(self.examples)}"
