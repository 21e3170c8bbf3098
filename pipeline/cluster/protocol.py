"""What the coordinator and its workers say to each other: plain values, and the calls as a Protocol."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.cluster.backlog import Lease, LeasedVideo
from pipeline.errors import Reason, Stage, VideoError
from pipeline.output import Key
from pipeline.records import Failure, Problem, VideoRef, VideoRow

__all__ = ["TELL_SECONDS", "CoordinatorHandle", "LeaseReply", "Message", "Reply", "Run", "WorkerSeconds"]

TELL_SECONDS = 10.0  # as often a worker lists what it holds

_MESSAGE_CHARS = 2000  # libraries put whole dumps into their errors; a row stays small


@dataclass(frozen=True)
class Run:
    """What names a run: its id, its job's fingerprint, its model's revision, the process that drives it.

    heal: None for an ordinary run; else only videos that failed for good in earlier ones, for one of these
    reasons, or for any where it is empty.
    """

    run_id: str
    fingerprint: str
    model_revision: str
    driver_pid: int
    heal: tuple[str, ...] | None = None

    def failure(
        self, item: LeasedVideo, error: VideoError, worker_id: str, *, is_final: bool = False
    ) -> Failure:
        """One failed attempt, as of now. Only the coordinator knows whether it is final."""
        return Failure(
            video_id=item.ref.video_id,
            uri=item.ref.uri,
            version=item.ref.version,
            stage=error.stage,
            reason=error.reason,
            message=error.message[:_MESSAGE_CHARS],
            attempt=item.attempt,
            is_final=is_final,
            fingerprint=self.fingerprint,
            run_id=self.run_id,
            failed_at_us=time.time_ns() // 1000,
            worker_id=worker_id,
        )

    def rejection(self, ref: VideoRef, attempt: int, problem: Problem) -> Failure:
        """The failure of a video that was listed with a problem; nobody tried it."""
        item = LeasedVideo(ref, attempt)
        stage = Stage.LISTING if problem.reason is Reason.INVALID_INPUT else Stage.READING
        return self.failure(item, VideoError(stage, problem.reason, problem.message), "", is_final=True)


@dataclass(frozen=True)
class LeaseReply:
    """Work, or none: ``done`` says that none will come, else ask again after ``wait_seconds``."""

    lease: Lease | None
    done: bool = False
    wait_seconds: float = 0.5


@dataclass(frozen=True)
class WorkerSeconds:
    """Seconds since the worker's last push that it waited for frames, and that it ran the model.

    busy_now: seconds that the engine call of this moment has taken so far; 0 between calls. busy_with: the
    video it is for.
    """

    gpu_wait: float = 0.0
    gpu_busy: float = 0.0
    busy_now: float = 0.0
    busy_with: Key | None = None


@dataclass(frozen=True)
class Message:
    """All that a worker has to say at a time, in one call: results, what it begins, what it would take.

    starting: videos it holds and is about to touch. wanted: how many more it would take, None for none; of
    those it gets, it touches the first ``room`` at once. holds: all that it has in hand; None: not listed.
    """

    rows: tuple[VideoRow, ...] = ()
    failures: tuple[Failure, ...] = ()
    seconds: WorkerSeconds = field(default_factory=WorkerSeconds)
    starting: tuple[Key, ...] = ()
    wanted: int | None = None
    room: int = 0
    holds: tuple[Key, ...] | None = None


@dataclass(frozen=True)
class Reply:
    """go_on False: start nothing more and leave. refused: not to be started. work: what was asked for."""

    go_on: bool
    refused: tuple[Key, ...] = ()
    work: LeaseReply | None = None


class CoordinatorHandle(Protocol):
    """What a worker may ask of the coordinator. Calls block, and raise where the coordinator is gone."""

    def register(self, worker_id: str) -> None:
        """The process has started and loads the model."""

    def ready(self, worker_id: str) -> None:
        """The model is loaded."""

    def exchange(self, worker_id: str, message: Message) -> Reply:
        """Hand results over, say what is begun, get work; also the heartbeat.

        What is begun counts once the answer is there: the worker touches nothing before.
        """
        ...

    def leave(self, worker_id: str) -> None:
        """The worker ends of its own accord."""
