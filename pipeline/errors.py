"""The exception tree, and the closed sets of stages and reasons that a failure is described by."""

from __future__ import annotations

from enum import Enum

__all__ = ["DecoderStartError", "PipelineError", "Reason", "Stage", "UserError", "VideoError"]


class PipelineError(Exception):
    """Base of every error this package raises.

    PipelineError
    ├── UserError           the user's own mistake: printed without a traceback, exit status 2
    ├── DecoderStartError   no decode child can be started: the worker ends, no video is blamed
    └── VideoError          one video could not be indexed: becomes a Failure row
    """


class UserError(PipelineError):
    """A mistake in configuration or input that the user can mend; its text says how."""


class DecoderStartError(PipelineError):
    """No decode child can be started: a fault of the installation or the machine, not of a video."""


class Stage(str, Enum):
    """Where in the life of a video a failure happened."""

    LISTING = "listing"
    READING = "reading"
    DECODING = "decoding"
    GENERATION = "generation"
    WORKER = "worker"


class Reason(str, Enum):
    """The closed set of reasons why a video has no row. Never parse messages; switch on this."""

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    READ_ERROR = "read_error"
    INVALID_INPUT = "invalid_input"
    EMPTY_FILE = "empty_file"
    TOO_LARGE = "too_large"
    UNSUPPORTED_CODEC = "unsupported_codec"
    CORRUPT = "corrupt"
    NO_FRAMES = "no_frames"
    DECODE_TIMEOUT = "decode_timeout"
    DECODE_CRASHED = "decode_crashed"
    OUT_OF_MEMORY = "out_of_memory"
    GENERATION_FAILED = "generation_failed"
    GENERATION_TIMEOUT = "generation_timeout"
    CRASHED_WORKER = "crashed_worker"

    @property
    def is_transient(self) -> bool:
        """Whether another attempt in the same run may succeed."""
        return self in _TRANSIENT


_TRANSIENT = frozenset(
    {
        Reason.READ_ERROR,
        Reason.CRASHED_WORKER,
        Reason.DECODE_CRASHED,
        Reason.OUT_OF_MEMORY,
        Reason.GENERATION_TIMEOUT,
    }
)


class VideoError(PipelineError):
    """One video failed. ``stage`` and ``reason`` are from closed sets; the message is for people.

    Pickles across processes (decode children raise it in their parent).
    """

    def __init__(self, stage: Stage, reason: Reason, message: str) -> None:
        super().__init__(stage, reason, message)
        self.stage = stage
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason.value} during {self.stage.value}: {self.message}"
