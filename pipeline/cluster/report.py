"""What a run tells about itself: Progress while it goes, RunReport when it ends. Plain values, JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pipeline.cluster.backlog import Counts
from pipeline.records import Failure, VideoRow

if TYPE_CHECKING:
    from pipeline.cluster.protocol import Run

__all__ = [
    "STATUS_INCOMPLETE",
    "STATUS_INTERRUPTED",
    "STATUS_OK",
    "Progress",
    "RunReport",
    "Totals",
]

STATUS_OK = 0
STATUS_INCOMPLETE = 3
STATUS_INTERRUPTED = 130


@dataclass
class Totals:
    """Sums over the rows and failures of one run (not of earlier runs). Seconds are summed over workers.

    Reports written before there were ``baseline_*`` and ``visual_tokens_mean`` have 0 there.
    """

    frames: int = 0
    baseline_frames: int = 0
    baseline_visual_tokens: int = 0
    visual_tokens_before: int = 0
    visual_tokens_after: int = 0
    visual_tokens_mean: float = 0.0
    output_tokens: int = 0
    gpu_wait_seconds: float = 0.0
    gpu_busy_seconds: float = 0.0
    failed_attempts: int = 0
    rows_committed: int = 0
    failures_by_reason: dict[str, int] = field(default_factory=dict)  # videos, by the reason that was final

    def add_row(self, row: VideoRow) -> None:
        """Count one indexed video."""
        self.frames += row.num_frames
        self.baseline_frames += row.baseline_frames
        self.baseline_visual_tokens += row.baseline_visual_tokens
        self.visual_tokens_before += row.visual_tokens_before
        self.visual_tokens_after += row.visual_tokens_after
        self.visual_tokens_mean += row.visual_tokens_mean
        self.output_tokens += row.output_tokens

    def add_failure(self, failure: Failure) -> None:
        """Count one failed attempt."""
        self.failed_attempts += 1
        if failure.is_final:
            before = self.failures_by_reason.get(failure.reason.value, 0)
            self.failures_by_reason[failure.reason.value] = before + 1

    @property
    def gpu_wait_share(self) -> float:
        """Share of the workers' working time spent waiting for frames, 0..1; 0 where nothing ran."""
        total = self.gpu_wait_seconds + self.gpu_busy_seconds
        return self.gpu_wait_seconds / total if total > 0 else 0.0


@dataclass(frozen=True)
class Progress:
    """Where a run is. ``listing_done`` False: ``counts.listed`` still grows.

    ``error`` says why the run cannot go on; ``is_user_error`` whether the user can mend it.
    ``worker_losses``: how many workers were lost, by why. ``warnings``: what output or rows cannot promise.
    """

    run_id: str
    counts: Counts
    totals: Totals
    listing_done: bool
    seconds: float
    videos_per_second: float
    workers: Mapping[str, int]
    metrics_url: str | None
    lost_workers: tuple[str, ...] = ()
    error: str | None = None
    is_user_error: bool = False
    worker_losses: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    not_videos: int = 0
    unused_metadata: int = 0

    @property
    def is_done(self) -> bool:
        """Whether every listed video has a final state."""
        return self.listing_done and self.counts.closes

    @property
    def num_settled(self) -> int:
        """Videos with a row or a final failure of this run."""
        return self.counts.indexed + self.counts.failed

    @property
    def num_waiting(self) -> int:
        """Videos that no worker holds."""
        return self.counts.pending + self.counts.suspect


@dataclass(frozen=True)
class RunReport:
    """One finished, failed or interrupted run. ``exit_status`` is that of ``flashvid index``.

    0 every input accounted for; 3 the sum does not close or the run could not finish; 130 interrupted.
    ``heal``: the reasons that were healed, empty for any; only videos that had failed for them are listed
    then. None: an ordinary run. ``worker_losses``: how many workers died or did not start, by why.
    ``not_videos``, ``unused_metadata``: what the listing passed over, as in ``PassedOver``; in no sum.
    """

    run_id: str
    fingerprint: str
    model_revision: str
    config: Mapping[str, Any]
    counts: Counts
    totals: Totals
    started_at: str
    finished_at: str
    seconds: float
    videos_per_second: float
    exit_status: int
    error: str | None = None
    heal: tuple[str, ...] | None = None
    worker_losses: Mapping[str, int] = field(default_factory=dict)
    not_videos: int = 0
    unused_metadata: int = 0

    @classmethod
    def of(
        cls,
        run: Run,
        config: Mapping[str, Any],
        progress: Progress,
        started_at: datetime,
        *,
        interrupted: bool,
        error: str | None,
    ) -> RunReport:
        """The report of a run that ends now. ``error``: why the driver ended it, where it is not done."""
        error = progress.error or error or _lost_rows(progress)
        return cls(
            run_id=run.run_id,
            fingerprint=run.fingerprint,
            model_revision=run.model_revision,
            config=config,
            counts=progress.counts,
            totals=progress.totals,
            started_at=started_at.isoformat(timespec="seconds"),
            finished_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seconds=progress.seconds,
            videos_per_second=progress.videos_per_second,
            exit_status=_exit_status(progress, interrupted, error),
            error=error,
            heal=run.heal,
            worker_losses=progress.worker_losses,
            not_videos=progress.not_videos,
            unused_metadata=progress.unused_metadata,
        )

    @property
    def closes(self) -> bool:
        """Whether listed = indexed + failed + skipped."""
        return self.counts.closes

    @property
    def did_nothing(self) -> bool:
        """Whether earlier runs had settled every video."""
        return self.exit_status == STATUS_OK and self.counts.indexed == 0 and self.counts.failed == 0

    def to_record(self) -> dict[str, Any]:
        """Plain JSON values; ``closes`` and ``gpu_wait_share`` are written out for other readers."""
        record = asdict(self)
        record["closes"] = self.closes
        record["totals"]["gpu_wait_share"] = self.totals.gpu_wait_share
        return record

    def to_json(self) -> str:
        return json.dumps(self.to_record(), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> RunReport:
        """Read back what ``to_json`` wrote."""
        record = json.loads(text)
        record.pop("closes", None)
        record["totals"].pop("gpu_wait_share", None)
        record["counts"] = Counts(**record["counts"])
        record["totals"] = Totals(**record["totals"])
        heal = record.get("heal")
        record["heal"] = tuple(heal) if heal is not None else None
        return cls(**record)


def _exit_status(progress: Progress, interrupted: bool, error: str | None) -> int:
    if error is None and progress.is_done:
        return STATUS_OK
    return STATUS_INTERRUPTED if interrupted else STATUS_INCOMPLETE


def _lost_rows(progress: Progress) -> str | None:
    """The second half of the sum check: what was counted as indexed has been committed."""
    indexed, committed = progress.counts.indexed, progress.totals.rows_committed
    return None if indexed == committed else f"{indexed} videos were indexed, but {committed} rows committed"
