"""What a place that can be listed gives: one entry per file, whatever the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipeline.records import Problem

__all__ = ["Entry", "Listing", "PassedOver"]


class Entry(NamedTuple):
    """One file: its canonical uri, its path relative to the root, and what tells two contents apart.

    ``problem``: why that could not be found out, where reading the file would not tell.
    """

    uri: str
    relative: str
    version: str
    size_bytes: int
    problem: Problem | None = None


@dataclass
class PassedOver:
    """What was seen and is no input, so that it is in no sum; counted while listing goes on.

    ``not_videos``: AppleDouble files under the names of videos, shards or manifests. ``unused_metadata``:
    .json members of tar shards that belong to no video.
    """

    not_videos: int = 0
    unused_metadata: int = 0


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
