"""Every Prometheus metric, declared once. Label values come from closed sets only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, start_http_server

from pipeline.errors import Reason, UserError
from pipeline.records import Failure, VideoRow

if TYPE_CHECKING:
    from pipeline.cluster.backlog import Counts
    from pipeline.config import MetricsConfig

__all__ = ["QUEUE_STATES", "STAGES", "WORKER_STATES", "Metrics"]

STAGES = ("decode", "encode", "compress", "prefill", "text_decode")
QUEUE_STATES = ("pending", "waiting", "leased", "suspect")
WORKER_STATES = ("starting", "ready", "left", "lost")
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """The metrics of one run, in a registry of their own: two runs in one process do not mix.

    ``failures_total`` counts attempts (rows of ``failures/``); ``videos_total`` counts videos, once each.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._server: Any = None
        self._declare_counters()
        self._declare_gauges()

    def _declare_counters(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"flashvid_{name}", text, labels, registry=self.registry)

        self.videos = counter("videos", "Videos with a final state", "status")
        self.failures = counter("failures", "Failed attempts", "reason")
        self.retries = counter("retries", "Failed attempts that are followed by another", "reason")
        self.frames_decoded = counter("frames_decoded", "Frames that reached the model")
        self.visual_tokens = counter("visual_tokens", "Visual tokens, before and after compression", "stage")
        self.output_tokens = counter("output_tokens", "Generated tokens")
        self.gpu_wait_seconds = counter("gpu_wait_seconds", "Workers waiting for decoded frames")
        self.gpu_busy_seconds = counter("gpu_busy_seconds", "Workers running the model")
        self.stage_seconds = Histogram(
            "flashvid_stage_duration_seconds",
            "Time per video and stage",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        reasons = tuple(reason.value for reason in Reason)
        for metric, values in (
            (self.videos, ("indexed", "failed", "skipped")),
            (self.failures, reasons),
            (self.retries, reasons),
            (self.visual_tokens, ("before", "after")),
            (self.stage_seconds, STAGES),
        ):
            for value in values:  # a series that exists from the start can be used in rate()
                metric.labels(value)

        # Looking a series up by its labels costs more than counting in it.
        self._indexed = self.videos.labels("indexed")
        self._tokens_before, self._tokens_after = map(self.visual_tokens.labels, ("before", "after"))
        self._stages = [
            (self.stage_seconds.labels(stage).observe, attrgetter(f"{stage}_seconds")) for stage in STAGES
        ]

    def _declare_gauges(self) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"flashvid_{name}", text, labels, registry=self.registry)

        self.queue_videos = gauge("queue_videos", "Videos not final yet", "state")
        self.listing_done = gauge("listing_done", "1 once the whole corpus is listed")
        self.workers = gauge("workers", "Workers", "state")
        self.lease_age_seconds = gauge("lease_age_seconds", "Age of the oldest lease held")
        self.part_rows = gauge("part_rows", "Rows in the last committed part")
        self.last_commit = gauge("last_commit_timestamp_seconds", "Unix time of the last committed part")
        self.last_success = gauge("last_success_timestamp_seconds", "Unix time of the last indexed video")
        self.info = Info("flashvid", "The run", registry=self.registry)

    def rows(self, rows: Sequence[VideoRow]) -> None:
        """Count indexed videos."""
        if not rows:
            return
        self._indexed.inc(len(rows))
        self.frames_decoded.inc(sum(row.num_frames for row in rows))
        self._tokens_before.inc(sum(row.visual_tokens_before for row in rows))
        self._tokens_after.inc(sum(row.visual_tokens_after for row in rows))
        self.output_tokens.inc(sum(row.output_tokens for row in rows))
        self.last_success.set(max(row.indexed_at_us for row in rows) / 1e6)
        for observe, seconds in self._stages:
            for row in rows:
                observe(seconds(row))

    def failure(self, failure: Failure) -> None:
        """Count one failed attempt, and the video where it was the last."""
        self.failures.labels(failure.reason.value).inc()
        if failure.is_final:
            self.videos.labels("failed").inc()
        else:
            self.retries.labels(failure.reason.value).inc()

    def skipped(self) -> None:
        """Count one video that an earlier run settled."""
        self.videos.labels("skipped").inc()

    def committed(self, num_rows: int, unix_seconds: float) -> None:
        """Note a part that was committed."""
        self.part_rows.set(num_rows)
        self.last_commit.set(unix_seconds)

    def observe(
        self,
        counts: Counts,
        workers: Mapping[str, int],
        oldest_lease_seconds: float,
        listing_done: bool = False,
    ) -> None:
        """Set what is a level rather than a count."""
        levels = {state: getattr(counts, state) for state in QUEUE_STATES}
        levels["pending"] -= counts.waiting  # each video in one series, so that their sum is what is not done
        for state, level in levels.items():
            self.queue_videos.labels(state).set(level)
        for state in WORKER_STATES:
            self.workers.labels(state).set(workers.get(state, 0))
        self.lease_age_seconds.set(oldest_lease_seconds)
        self.listing_done.set(listing_done)

    def open(self, names: Mapping[str, str], wanted: MetricsConfig) -> str | None:
        """Say what the run is called, and serve; the endpoint's address, None where it is switched off."""
        self.info.info(dict(names))
        if wanted.port is None:
            return None
        return f"http://{wanted.host}:{self.serve(wanted.host, wanted.port)}/metrics"

    def serve(self, host: str, port: int) -> int:
        """Start the endpoint; the port it listens on (port 0 takes a free one). UserError if it is taken."""
        try:
            self._server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise UserError(
                f"cannot serve metrics on metrics.host={host} metrics.port={port}: {error}; "
                "metrics.port=0 takes a free port, metrics.port=null switches the endpoint off"
            ) from None
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop the endpoint. May be called again."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
