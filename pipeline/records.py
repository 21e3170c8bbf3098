"""What travels through the pipeline: plain frozen values, and the Parquet schemas written by hand.

Rows and failures are small and may cross processes; ``Frames`` stay on the host that decoded them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.errors import PipelineError, Reason, Stage, UserError, VideoError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FAILURE_SCHEMA",
    "VIDEO_SCHEMA",
    "Answer",
    "Failure",
    "Frames",
    "PipelineError",
    "Question",
    "Reason",
    "Segment",
    "Stage",
    "UserError",
    "VideoError",
    "VideoRef",
    "VideoRow",
]


@dataclass(frozen=True)
class Question:
    """One question asked of every video. ``question_id`` is the stable key in ``answers``."""

    question_id: str
    text: str


@dataclass(frozen=True)
class VideoRef:
    """One input video: an address and the version of its content, no bytes.

    ``version`` is the etag where the store has one, else ``size-mtime``. ``offset`` and
    ``num_bytes`` locate a member of a tar shard; both None for a whole file.
    """

    video_id: str
    uri: str
    version: str
    size_bytes: int
    offset: int | None = None
    num_bytes: int | None = None
    questions: tuple[Question, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What "exactly once" is about, within one fingerprint: (video_id, version)."""
        return (self.video_id, self.version)


@dataclass(frozen=True)
class Frames:
    """Sampled frames of one video, at model resolution.

    data: uint8 (T, H, W, 3), RGB, upright (rotation applied). pts_seconds: float64 (T,), increasing.
    ``duration_seconds``, ``width``, ``height`` (upright) and ``source_fps`` describe the source file.
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
    """One indexed video: one row of ``videos/``. Field order and names are those of VIDEO_SCHEMA.

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

    @property
    def key(self) -> tuple[str, str]:
        return (self.video_id, self.version)

    def to_record(self) -> dict[str, Any]:
        """The row as a plain mapping in the shape VIDEO_SCHEMA takes."""
        record = dict(self.__dict__)
        record["answers"] = [dict(answer.__dict__) for answer in self.answers]
        record["segments"] = [segment.to_record() for segment in self.segments]
        record["indexed_at"] = record.pop("indexed_at_us")
        return record


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


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_ANSWER = pa.struct(
    [
        _required("question_id", pa.string()),
        _required("question", pa.string()),
        _required("answer", pa.string()),
        _required("finish_reason", pa.string()),
        _required("output_tokens", pa.int32()),
    ]
)
_ANSWERS = pa.list_(pa.field("item", _ANSWER, nullable=False))
_SEGMENT = pa.struct(
    [
        _required("start_seconds", pa.float64()),
        _required("end_seconds", pa.float64()),
        _required("caption", pa.string()),
        _required("answers", _ANSWERS),
    ]
)
_TIMESTAMP = pa.timestamp("us", tz="UTC")

VIDEO_SCHEMA = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("uri", pa.string()),
        _required("version", pa.string()),
        _required("caption", pa.string()),
        _required("caption_finish_reason", pa.string()),
        _required("answers", _ANSWERS),
        _required("segments", pa.list_(pa.field("item", _SEGMENT, nullable=False))),
        _required("duration_seconds", pa.float64()),
        _required("width", pa.int32()),
        _required("height", pa.int32()),
        _required("fps", pa.float64()),
        _required("codec", pa.string()),
        _required("decoder", pa.string()),
        _required("num_frames", pa.int32()),
        _required("baseline_frames", pa.int32()),
        _required("baseline_visual_tokens", pa.int64()),
        _required("visual_tokens_before", pa.int64()),
        _required("visual_tokens_budget", pa.int64()),
        _required("visual_tokens_after", pa.int64()),
        _required("visual_tokens_mean", pa.float64()),
        _required("retention_ratio", pa.float64()),
        _required("output_tokens", pa.int32()),
        pa.field("degraded", pa.string()),
        _required("decode_seconds", pa.float64()),
        _required("encode_seconds", pa.float64()),
        _required("compress_seconds", pa.float64()),
        _required("prefill_seconds", pa.float64()),
        _required("text_decode_seconds", pa.float64()),
        _required("model", pa.string()),
        _required("model_revision", pa.string()),
        _required("fingerprint", pa.string()),
        _required("run_id", pa.string()),
        _required("attempt", pa.int32()),
        _required("indexed_at", _TIMESTAMP),
    ]
)

FAILURE_SCHEMA = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("uri", pa.string()),
        _required("version", pa.string()),
        _required("stage", pa.string()),
        _required("reason", pa.string()),
        _required("message", pa.string()),
        _required("attempt", pa.int32()),
        _required("is_final", pa.bool_()),
        _required("fingerprint", pa.string()),
        _required("run_id", pa.string()),
        _required("failed_at", _TIMESTAMP),
        _required("worker_id", pa.string()),
        _required("details", pa.map_(pa.string(), pa.string())),
    ]
)
