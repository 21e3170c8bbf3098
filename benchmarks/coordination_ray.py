"""The same as benchmarks/coordination.py, with the coordinator as an actor on a real Ray.

    python -m benchmarks.coordination_ray --videos 50000 --clients 4 -o benchmarks/results/coordination.json

The simulated workers are shared out among client actors; every call waits for its answer, as those of real
workers do, and each client has ``--threads`` calls under way. One machine carries all of it, so the clients
take from the coordinator's time.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.coordination import Case, Workers, corpus, machine, save
from pipeline.cluster import Coordinator, Message, RemoteCoordinator, Run, ray_session
from pipeline.config import JobConfig, load_config
from pipeline.records import VideoRef

import ray  # isort: skip  # after the settings that session.py makes for it

__all__ = ["main", "measure"]

_CALLS_AT_ONCE = 32  # as job.py has it


class _Books(Coordinator):
    """A coordinator with a made-up corpus, which tells what it has cost."""

    def __init__(self, config: JobConfig, run: Run, folder: str, num_videos: int) -> None:
        super().__init__(config, run, folder)
        self._num_videos = num_videos

    def _listing(self) -> Iterator[VideoRef]:
        return corpus(self._num_videos)

    def cost(self) -> tuple[float, int]:
        """CPU seconds and peak bytes of this process."""
        return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Handle(RemoteCoordinator):
    def __init__(self, actor: Any) -> None:
        super().__init__(actor)
        self._books = actor

    def lost(self, worker_id: str, message: str) -> None:
        ray.get(self._books.lost.remote(worker_id, message))


class _Client:
    """Some of the workers, in threads."""

    def __init__(self, run: Run, books: Any, case: Case, name: str) -> None:
        self._run, self._handle, self._case, self._name = run, _Handle(books), case, name

    def work(self, num_threads: int) -> dict[str, float]:
        """Until nobody is left: how many messages, and the seconds that one took on average."""
        share = Case(self._case.num_videos, self._case.num_workers // num_threads)
        workers = [Workers(self._run, self._handle, share, f"{self._name}.{n}") for n in range(num_threads)]
        threads = [threading.Thread(target=each.work) for each in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {
            "messages": sum(each.tally.messages for each in workers),
            "leases": sum(each.tally.leases for each in workers),
        }

    def round_trip(self, calls: int = 200) -> float:
        """Seconds of one message without contents, alone."""
        self._handle.register("alone")
        self._handle.ready("alone")
        began = time.monotonic()
        for _ in range(calls):
            self._handle.exchange("alone", Message())
        took = (time.monotonic() - began) / calls
        self._handle.leave("alone")
        return took


def measure(num_videos: int, num_workers: int, num_clients: int, num_threads: int) -> dict[str, Any]:
    """Run them all on a Ray of their own; figures by name. AssertionError where the sum does not close."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["corpus.uri=/none", f"output.uri={folder}/index", "model.name=demo/model"]
        settings += ["workers.num_gpus=0", "ray.num_cpus=2", "metrics.port=null", "limits.retry_seconds=0.1"]
        config = load_config(None, settings)
        run = Run("bench", "0123456789abcdef", "abc", os.getpid())
        with ray_session(config):
            case = Case(num_videos, num_workers // num_clients)
            return _measured(config, run, case, num_clients, num_threads)


def _measured(config: JobConfig, run: Run, case: Case, num_clients: int, num_threads: int) -> dict[str, Any]:
    books = ray.remote(_Books).options(num_cpus=0, max_concurrency=_CALLS_AT_ONCE)
    actor = books.remote(config, run, os.getcwd(), case.num_videos)
    ray.get(actor.open.remote())
    client = ray.remote(_Client).options(num_cpus=0)
    clients = [client.remote(run, actor, case, f"client{number}") for number in range(num_clients)]
    alone = ray.get(clients[0].round_trip.remote())
    before, _ = ray.get(actor.cost.remote())
    began = time.monotonic()
    done = ray.get([each.work.remote(num_threads) for each in clients])
    worked = time.monotonic() - began
    after, peak_bytes = ray.get(actor.cost.remote())
    report = ray.get(actor.finish.remote())
    assert report.error is None, report.error
    assert (report.exit_status, report.closes, report.counts.listed) == (0, True, case.num_videos), report
    messages = sum(each["messages"] for each in done)
    return {
        "videos": case.num_videos,
        "workers": case.num_workers * num_clients,
        "clients": num_clients,
        "threads_per_client": num_threads,
        "seconds": worked,
        "videos_per_second": case.num_videos / worked,
        "leases_per_second": sum(each["leases"] for each in done) / worked,
        "messages_per_second": messages / worked,
        "round_trip_alone_seconds": alone,
        "cpu_share": (after - before) / worked,
        "videos_per_cpu_second": case.num_videos / (after - before),
        "peak_rss_bytes": peak_bytes,
        "failed_attempts": report.totals.failed_attempts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="calls under way at a time in each client")
    parser.add_argument("-o", "--output", type=Path, help="JSON file with one entry for each case")
    options = parser.parse_args()
    figures = measure(options.videos, options.workers, options.clients, options.threads)
    figures["machine"] = machine()
    for name, value in figures.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    if options.output:
        save(
            options.output,
            "ray" if options.threads == 1 else f"ray, {options.threads} calls per client",
            figures,
        )


if __name__ == "__main__":
    main()
