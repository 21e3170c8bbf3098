"""How many videos the bookkeeping carries: a whole run through Coordination, on one core, without a model.

    python -m benchmarks.coordination -o benchmarks/results/coordination.json

Real: the ledger, the output with its lock, parts and commits in a temporary folder, the metrics. Simulated:
workers that lease four videos and hand over one after the other, with one message for each, as real ones do;
1 % of their videos fail for good, 1 % for a transient reason (and are tried again), and some workers die with
what they have started. ``--pickled`` sends all traffic through pickle, as Ray would, both ends on this core;
the workers' end is told apart. ``--listed-first`` lists all before the first lease, so that all are in memory
at once. On a real Ray: coordination_ray.py.
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
from typing import Any, Protocol

from pipeline.cluster import (
    Coordination,
    CoordinatorHandle,
    Lease,
    LeasedVideo,
    LeaseReply,
    Message,
    Metrics,
    Run,
    WorkerSeconds,
)
from pipeline.config import load_config
from pipeline.errors import Reason, Stage, VideoError
from pipeline.output import OutputLock, OutputStore
from pipeline.records import Answer, Failure, VideoRef, VideoRow

__all__ = ["AnswersWorkers", "Case", "Tally", "Workers", "corpus", "machine", "main", "measure", "save"]

_FINGERPRINT = "0123456789abcdef"
_LEASE_VIDEOS = 4


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
    messages: int = 0
    own_seconds: float = 0.0  # CPU time of the workers' end of the messages
    held: dict[str, list[LeasedVideo]] = field(default_factory=dict)  # the first one is begun


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


class AnswersWorkers(CoordinatorHandle, Protocol):
    """What the simulated workers need: the coordination, or an actor that has one."""

    def lost(self, worker_id: str, message: str) -> None: ...


class Workers:
    """Many workers in one thread, each with one lease at a time. ``name`` begins their ids."""

    def __init__(self, run: Run, coordination: AnswersWorkers, case: Case, name: str = "worker") -> None:
        self._run, self._coordination, self._case, self._name = run, coordination, case, name
        self._pack: Callable[[Any], Any] = pickle.dumps if case.pickled else lambda value: value
        self._unpack: Callable[[Any], Any] = pickle.loads if case.pickled else lambda value: value
        self._random = random.Random(name)
        self._template = dict(_template().__dict__)
        self._num_created = 0
        self._ask_at: dict[str, float] = {}
        self.tally = Tally()
        for _ in range(case.num_workers):
            self._create()

    def work(self) -> None:
        """Until nobody is left; the coordinator tells each when to go."""
        while self.tally.held:
            now = time.monotonic()
            ready = [name for name in self.tally.held if self._ask_at.get(name, 0.0) <= now]
            for worker_id in ready:
                self._step(worker_id)
            time.sleep(0.0 if ready else 0.01)

    def _create(self) -> None:
        self._num_created += 1
        worker_id = f"{self._name}-{self._num_created}"
        self._coordination.register(worker_id)
        self._coordination.ready(worker_id)
        self.tally.held[worker_id] = []

    def _step(self, worker_id: str) -> None:
        """Hand over the video in hand, and with it begin the next one, or ask for more."""
        began = time.thread_time()
        rows, failures = self._results(worker_id)
        left = self.tally.held[worker_id] = self.tally.held[worker_id][1:]
        starting, wanted = (left[0].key,) if left else (), None if left else _LEASE_VIDEOS
        message = Message(rows, failures, WorkerSeconds(0.1, 0.9), starting, wanted, room=1)
        sent = self._pack(message)
        self.tally.own_seconds += time.thread_time() - began
        answered = self._pack(self._coordination.exchange(worker_id, self._unpack(sent)))
        began = time.thread_time()
        reply = self._unpack(answered)
        self.tally.own_seconds += time.thread_time() - began
        assert reply.go_on
        self.tally.messages += 1
        if reply.work is not None:
            self._take(worker_id, reply.work)
            self._ask_at[worker_id] = time.monotonic() + (0 if reply.work.lease else reply.work.wait_seconds)

    def _take(self, worker_id: str, work: LeaseReply) -> None:
        if work.done:
            self._coordination.leave(worker_id)
            del self.tally.held[worker_id]
        elif work.lease is not None:
            self._begin(worker_id, work.lease)

    def _begin(self, worker_id: str, lease: Lease) -> None:
        self.tally.first_lease_at = self.tally.first_lease_at or time.monotonic()
        self.tally.leases += 1
        self.tally.held[worker_id] = list(lease.items)
        if self._random.random() < self._case.crash_share:
            self._coordination.lost(worker_id, "killed")
            self.tally.crashes += 1
            del self.tally.held[worker_id]
            self._create()

    def _results(self, worker_id: str) -> tuple[tuple[VideoRow, ...], tuple[Failure, ...]]:
        for item in self.tally.held[worker_id][:1]:
            luck = self._random.random()
            if luck >= 0.02:
                return (self._row(item),), ()
            reason = Reason.CORRUPT if luck < 0.01 else Reason.READ_ERROR
            self.tally.transient += reason is Reason.READ_ERROR
            return (), (self._failure(item, reason, worker_id),)
        return (), ()

    def _row(self, item: LeasedVideo) -> VideoRow:
        row = object.__new__(VideoRow)  # as unpickling makes it: half the cost of a run would be made up else
        row.__dict__.update(self._template)
        row.__dict__.update(video_id=item.ref.video_id, uri=item.ref.uri, version=item.ref.version)
        return row

    def _failure(self, item: LeasedVideo, reason: Reason, worker_id: str) -> Failure:
        return self._run.failure(item, VideoError(Stage.READING, reason, "made up"), worker_id)


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
        threading.Thread(target=lambda: coordination.list_corpus(corpus(case.num_videos)), daemon=True),
        threading.Thread(target=lambda: _every(0.5, coordination.tick, ended), daemon=True),
        threading.Thread(target=lambda: _every(0.5, coordination.watch, ended), daemon=True),
        threading.Thread(target=lambda: _every(5.0, coordination.heartbeat, ended), daemon=True),
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
        "messages_per_second": tally.messages / worked,
        "cpu_share": cpu / worked,
        "videos_per_cpu_second": case.num_videos / cpu,
        "workers_cpu_share": tally.own_seconds / worked,
        "videos_per_coordinator_cpu_second": case.num_videos / (cpu - tally.own_seconds),
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


def machine() -> dict[str, Any]:
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
    parser.add_argument("-o", "--output", type=Path, help="JSON file with one entry for each case")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    case = Case(arguments.videos, arguments.workers, arguments.pickled, arguments.listed_first)
    figures = measure(case, tuple(arguments.set))
    figures["machine"] = machine()
    for name, value in figures.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    if arguments.output:
        save(arguments.output, case.name, figures)


def save(path: Path, name: str, figures: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cases = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**cases, name: figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
