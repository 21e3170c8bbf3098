"""How many videos the bookkeeping carries: a whole run through Coordination, on one core, without a model.

    python -m benchmarks.coordination --videos 1000000 --workers 200

Real: the ledger, the output with its lock, parts and commits in a temporary folder, the metrics. Simulated:
workers that lease four videos, start and push each; 1 % of their videos fail for good, 1 % for a transient
reason (and are tried again), and some workers die with what they have started. ``--pickled`` sends all
traffic through pickle, as Ray would; ``--listed-first`` lists all before the first lease, so that all of them
are held in memory at once. Prints figures; benchmarks/results/coordination.json holds one set for each case.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import random
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import load_config
from pipeline.coordination import Coordination
from pipeline.ledger import LeasedVideo
from pipeline.lock import OutputLock
from pipeline.metrics import Metrics
from pipeline.protocol import Run, WorkerSeconds
from pipeline.records import Answer, Failure, Reason, Stage, VideoError, VideoRef, VideoRow
from pipeline.store import OutputStore

__all__ = ["Case", "Tally", "Workers", "corpus", "main", "measure"]

RESULT = Path(__file__).parent / "results" / "coordination.json"
_FINGERPRINT = "0123456789abcdef"
_LEASE_VIDEOS = 4
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """What is measured."""

    num_videos: int
    num_workers: int
    pickled: bool = False
    listed_first: bool = False
    crash_share: float = 0.0005  # of leases

    @property
    def name(self) -> str:
        named = [name for name in ("pickled", "listed_first") if getattr(self, name)]
        return ", ".join(named) or "plain"


@dataclass
class Tally:
    """What the simulated workers did."""

    leases: int = 0
    crashes: int = 0
    transient: int = 0
    first_lease_at: float | None = None
    held: dict[str, list[LeasedVideo]] = field(default_factory=dict)


def corpus(num_videos: int) -> Iterator[VideoRef]:
    """Made-up refs with names as long as real ones."""
    for number in range(num_videos):
        name = f"bucket/some-corpus/2026/part-{number % 1000:04d}/video-{number:09d}.mp4"
        yield VideoRef(name, f"s3://{name}", f"{number:032x}", 10_000_000 + number % 9973 * 1000)


def _template() -> VideoRow:
    answer = Answer("q1", "What happens in this video?", "Somebody opens a door and walks out.", "stop", 9)
    text = "A person in a red coat walks along a street, opens a door and waves at the camera. " * 4
    seconds: dict[str, Any] = {
        f"{stage}_seconds": 0.2 for stage in ("decode", "encode", "compress", "prefill", "text_decode")
    }
    counts: dict[str, Any] = dict.fromkeys(
        ("baseline_frames", "baseline_visual_tokens", "visual_tokens_before", "visual_tokens_budget"), 16
    )
    return VideoRow(
        video_id="", uri="", version="", caption=text, caption_finish_reason="stop", answers=(answer,) * 2,
        segments=(), duration_seconds=30.0, width=1280, height=720, fps=25.0, codec="h264", decoder="decord",
        num_frames=160, visual_tokens_after=3000, visual_tokens_mean=300.0, retention_ratio=0.1,
        output_tokens=80, degraded=None, model="demo/model", model_revision="abc", fingerprint=_FINGERPRINT,
        run_id="bench", attempt=1, indexed_at_us=time.time_ns() // 1000, **counts, **seconds,
    )  # fmt: skip


class Workers:
    """Many workers in one thread, each with one lease at a time."""

    def __init__(self, run: Run, coordination: Coordination, case: Case) -> None:
        self._run, self._coordination, self._case = run, coordination, case
        self._pass: Callable[[Any], Any] = _through_pickle if case.pickled else lambda value: value
        self._random = random.Random(0)
        self._template = dict(_template().__dict__)
        self._num_created = 0
        self.tally = Tally()
        for _ in range(case.num_workers):
            self._create()

    def work(self) -> None:
        """Until nobody is left; the coordinator tells each when to go."""
        while self.tally.held:
            num_leases = self.tally.leases
            for worker_id in list(self.tally.held):
                self._step(worker_id)
            if self.tally.leases == num_leases:
                time.sleep(0.01)

    def _create(self) -> None:
        self._num_created += 1
        worker_id = f"worker-{self._num_created}"
        self._coordination.register(worker_id)
        self._coordination.ready(worker_id)
        self.tally.held[worker_id] = []

    def _step(self, worker_id: str) -> None:
        held = self.tally.held[worker_id]
        if held:
            self._push(worker_id, held)
        reply = self._pass(self._coordination.lease(worker_id, _LEASE_VIDEOS))
        if reply.done:
            self._coordination.leave(worker_id)
            del self.tally.held[worker_id]
        elif reply.lease is not None:
            self._begin(worker_id, reply.lease.items)

    def _begin(self, worker_id: str, items: tuple[LeasedVideo, ...]) -> None:
        self.tally.first_lease_at = self.tally.first_lease_at or time.monotonic()
        self.tally.leases += 1
        for item in items:
            assert self._coordination.started(worker_id, item.key)
        self.tally.held[worker_id] = list(items)
        if self._random.random() < self._case.crash_share:
            self._coordination.lost(worker_id, "killed")
            self.tally.crashes += 1
            del self.tally.held[worker_id]
            self._create()

    def _push(self, worker_id: str, items: list[LeasedVideo]) -> None:
        rows, failures = [], []
        for item in items:
            luck = self._random.random()
            if luck >= 0.02:
                rows.append(self._row(item))
                continue
            reason = Reason.CORRUPT if luck < 0.01 else Reason.READ_ERROR
            self.tally.transient += reason is Reason.READ_ERROR
            failures.append(self._failure(item, reason, worker_id))
        self.tally.held[worker_id] = []
        rows, failures = self._pass((rows, failures))
        assert self._coordination.push(worker_id, rows, failures, WorkerSeconds(0.1, 0.9))

    def _row(self, item: LeasedVideo) -> VideoRow:
        row = object.__new__(VideoRow)  # as unpickling makes it: half the cost of a run would be made up else
        row.__dict__.update(self._template)
        row.__dict__.update(video_id=item.ref.video_id, uri=item.ref.uri, version=item.ref.version)
        return row

    def _failure(self, item: LeasedVideo, reason: Reason, worker_id: str) -> Failure:
        return self._run.failure(item, VideoError(Stage.READING, reason, "made up"), worker_id)


def _through_pickle(value: T) -> T:
    copy: T = pickle.loads(pickle.dumps(value, protocol=5))
    return copy


def measure(case: Case, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run them all; figures by name. Raises AssertionError where the sum does not close."""
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/index"
        settings = ("corpus.uri=/none", f"output.uri={output}", "model.name=demo/model", *overrides)
        config = load_config(None, settings)
        run = Run("bench", _FINGERPRINT, "abc", os.getpid())
        output_lock = OutputLock(output)
        store = OutputStore(output, fence=output_lock.check)
        coordination = Coordination(config, run, store, output_lock, Metrics())
        coordination.open()
        return _measured(run, coordination, case)


def _measured(run: Run, coordination: Coordination, case: Case) -> dict[str, Any]:
    ended = threading.Event()
    began, cpu_began = time.monotonic(), time.process_time()
    threads = [
        threading.Thread(target=lambda: coordination.list_corpus(corpus(case.num_videos))),
        threading.Thread(target=lambda: _every(0.5, coordination.tick, ended)),
        threading.Thread(target=lambda: _every(5.0, coordination.heartbeat, ended)),
    ]
    for thread in threads:
        thread.start()
    if case.listed_first:
        threads[0].join()
    workers = Workers(run, coordination, case)
    workers.work()
    worked, cpu = time.monotonic() - began, time.process_time() - cpu_began
    ended.set()
    finishing = time.monotonic()
    report = coordination.finish()
    finish_seconds = time.monotonic() - finishing
    for thread in threads:
        thread.join()
    counts, tally = report.counts, workers.tally
    assert report.error is None, report.error
    assert (report.exit_status, report.closes, counts.listed) == (0, True, case.num_videos), report
    assert report.totals.rows_committed == counts.indexed
    return {
        "videos": case.num_videos,
        "workers": case.num_workers,
        "seconds": worked,
        "videos_per_second": case.num_videos / worked,
        "leases_per_second": tally.leases / worked,
        "cpu_share": cpu / worked,
        "videos_per_cpu_second": case.num_videos / cpu,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "first_lease_seconds": (tally.first_lease_at or began) - began,
        "finish_seconds": finish_seconds,
        "indexed": counts.indexed,
        "failed": counts.failed,
        "failed_attempts": report.totals.failed_attempts,
        "transient_failures": tally.transient,
        "crashed_workers": tally.crashes,
    }


def _every(seconds: float, call: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(seconds):
        call()


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores_used": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "pyarrow": version("pyarrow"),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--pickled", action="store_true", help="all traffic through pickle, as with Ray")
    parser.add_argument("--listed-first", action="store_true", help="no lease before all are listed")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the job")
    parser.add_argument("--no-save", action="store_true", help="only print")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    case = Case(arguments.videos, arguments.workers, arguments.pickled, arguments.listed_first)
    figures = measure(case, tuple(arguments.set))
    figures["machine"] = _machine()
    for name, value in figures.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    if not arguments.no_save:
        _save(case.name, figures)


def _save(name: str, figures: dict[str, Any]) -> None:
    cases = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**cases, name: figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
