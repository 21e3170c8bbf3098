"""What travels through the pipeline: plain frozen values.

Rows and failures are small and may cross processes; ``Frames`` stay on the host that decoded them. How rows
look in Parquet: output/schemas.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import Reason, Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "VIDEO_COLUMNS",
    "Answer",
    "Failure",
    "Frames",
    "Problem",
    "Question",
    "Segment",
    "VideoRef",
    "VideoRow",
    "Window",
]


@dataclass(frozen=True)
class Question:
    """One question asked of every video. ``question_id`` is the stable key in ``answers``."""

    question_id: str
    text: str


@dataclass(frozen=True)
class Problem:
    """Why an input cannot be tried at all: it is listed, and fails at once."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class VideoRef:
    """One input video: an address and the version of its content, no bytes.

    ``version`` is the etag where the store has one, else ``size-mtime``; a clip or questions of its own are
    part of it. A member of a tar shard has the uri ``tar://member::archive``; ``archive`` is then the shard,
    in which it lies at [``offset``, ``offset`` + ``num_bytes``). ``start_seconds`` and ``end_seconds``
    (half-open, None: from the start, to the end) say which part of the video is meant. ``extra``: values
    for ``corpus.columns``, as (name, value).
    """

    video_id: str
    uri: str
    version: str
    size_bytes: int
    archive: str | None = None
    offset: int | None = None
    num_bytes: int | None = None
    questions: tuple[Question, ...] = ()
    start_seconds: float | None = None
    end_seconds: float | None = None
    extra: tuple[tuple[str, Any], ...] = ()
    problem: Problem | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What "exactly once" is about, within one fingerprint: (video_id, version)."""
        return (self.video_id, self.version)


@dataclass(frozen=True)
class Window:
    """One part of a video that is looked at on its own: start <= t < end, seconds from the video's start.

    ``number`` counts from 0; ``total`` windows make up the video. Without windows: one, the whole clip.
    """

    number: int
    total: int
    start_seconds: float
    end_seconds: float

    @property
    def is_last(self) -> bool:
        return self.number == self.total - 1


@dataclass(frozen=True)
class Frames:
    """Sampled frames of one video, at model resolution.

    data: uint8 (T, H, W, 3), RGB of BT.709, upright. pts_seconds: float64 (T,), increasing.
    ``duration_seconds``, ``width``, ``height`` (as shown: upright, pixels square) and ``source_fps`` describe
    the source file.
    ``damage`` says what was wrong with a file that was read all the same ("ends at 43.8 s of 80.0 s").
    """

    data: NDArray[np.uint8]
    pts_seconds: NDArray[np.float64]
    source_fps: float
    source_num_frames: int
    duration_seconds: float
    width: int
    height: int
    codec: str
    decoder: str
    decode_seconds: float
    damage: str | None = None

    @property
    def seconds_per_frame(self) -> float:
        """Mean spacing of the sampled frames, in seconds; from real timestamps. One frame: its duration."""
        num = len(self.pts_seconds)
        if num < 2:
            return max(self.duration_seconds, 1.0 / self.source_fps if self.source_fps > 0 else 1.0)
        return float(self.pts_seconds[-1] - self.pts_seconds[0]) / (num - 1)

    @property
    def num_bytes(self) -> int:
        """Bytes of pixel data held."""
        return int(self.data.nbytes)


@dataclass(frozen=True)
class Answer:
    """One answered question. ``finish_reason`` is ``stop`` or ``length``."""

    question_id: str
    question: str
    answer: str
    finish_reason: str
    output_tokens: int


@dataclass(frozen=True)
class Segment:
    """A time-coded part of a video, half-open: start <= t < end. Empty list where windows are off."""

    start_seconds: float
    end_seconds: float
    caption: str
    answers: tuple[Answer, ...]

    def to_record(self) -> dict[str, Any]:
        return {**self.__dict__, "answers": [dict(answer.__dict__) for answer in self.answers]}


@dataclass(frozen=True)
class VideoRow:
    """One indexed video: one row of ``videos/``. Fields are its columns, in order; ``extra`` follows them.

    ``visual_tokens_budget`` is the most that the settings let in, ``visual_tokens_after`` what came in; fewer
    only with adaptive retention. ``retention_ratio`` is the setting; the share kept is after / before.
    """

    video_id: str
    uri: str
    version: str
    caption: str
    caption_finish_reason: str
    answers: tuple[Answer, ...]
    segments: tuple[Segment, ...]
    duration_seconds: float
    width: int
    height: int
    fps: float
    codec: str
    decoder: str
    num_frames: int
    baseline_frames: int
    baseline_visual_tokens: int
    visual_tokens_before: int
    visual_tokens_budget: int
    visual_tokens_after: int
    visual_tokens_mean: float
    retention_ratio: float
    output_tokens: int
    degraded: str | None
    decode_seconds: float
    encode_seconds: float
    compress_seconds: float
    prefill_seconds: float
    text_decode_seconds: float
    model: str
    model_revision: str
    fingerprint: str
    run_id: str
    attempt: int
    indexed_at_us: int  # microseconds since the epoch, UTC
    extra: tuple[tuple[str, Any], ...] = ()  # columns carried over from a manifest

    @property
    def key(self) -> tuple[str, str]:
        return (self.video_id, self.version)

    def to_record(self) -> dict[str, Any]:
        """The row as a plain mapping in the shape ``video_schema`` takes."""
        record = dict(self.__dict__)
        record["answers"] = [dict(answer.__dict__) for answer in self.answers]
        record["segments"] = [segment.to_record() for segment in self.segments]
        record["indexed_at"] = record.pop("indexed_at_us")
        return record | dict(record.pop("extra"))


# The names that columns carried over from a manifest cannot have.
VIDEO_COLUMNS = tuple(each.name.removesuffix("_us") for each in fields(VideoRow) if each.name != "extra")


@dataclass(frozen=True)
class Failure:
    """One failed attempt at one video: one row of ``failures/``.

    ``is_final`` is False where another attempt follows within the same run.
    """

    video_id: str
    uri: str
    version: str
    stage: Stage
    reason: Reason
    message: str
    attempt: int
    is_final: bool
    fingerprint: str
    run_id: str
    failed_at_us: int
    worker_id: str = ""
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return (self.video_id, self.version)

    def to_record(self) -> dict[str, Any]:
        """The row as a plain mapping in the shape FAILURE_SCHEMA takes."""
        record = dict(self.__dict__)
        record["stage"], record["reason"] = self.stage.value, self.reason.value
        record["details"] = list(self.details.items())
        record["failed_at"] = record.pop("failed_at_us")
        return record
