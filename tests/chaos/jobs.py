"""The cheapest job that goes through every part, and the driver's process that runs it as a user would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests import ROOT
from tests.chaos.corpus import BAD_DECODERS

__all__ = [
    "Driver",
    "clean_environment",
    "end_tree",
    "is_foreign",
    "settings",
    "title_of",
    "wait_until",
]


_SETTINGS: dict[str, object] = {
    "model.engine": "tests.chaos.stub_engine:load",
    "compression.retention_ratio": 0.5,
    "frames.baseline": 2,
    "frames.min_pixels": 56 * 56,
    "frames.max_pixels": 56 * 56,
    "prompts.caption": "which colour",
    "prompts.questions": ["which colour again"],
    "workers.count": 2,
    "workers.num_gpus": 0,
    "workers.num_cpus": 1,
    "workers.threads": 1,
    "decoding.timeout_seconds": 20.0,  # of an innocent video on a busy machine
    "decoding.memory_bytes": 2**30,
    "limits.retry_seconds": 0.2,
    "limits.retry_max_seconds": 1.0,
    "output.part_rows": 16,
    "output.part_seconds": 0.5,
    "metrics.port": None,
    "ray.object_store_bytes": 80 * 2**20,
}


_OURS = ("ray::Coordinator", "ray::GpuWorker", "pipeline.", "tests.chaos")


def settings(
    corpus: str | Path, output: str | Path, model: Path, more: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The settings of one job, by dotted key."""
    places = {"corpus.uri": str(corpus), "output.uri": str(output), "model.name": str(model)}
    return {**_SETTINGS, **places, **(more or {})}


def is_foreign(name: str) -> bool:
    """Whether a variable of the environment would lead elsewhere: another Ray, store, account or proxy."""
    return name.upper().startswith(("RAY_", "AWS_", "FSSPEC_", "BOTO_")) or name.lower().endswith("_proxy")


def clean_environment(scratch: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a driver gets: a home and a folder for temporary files of its own, and nobody else's Ray."""
    kept = {name: value for name, value in os.environ.items() if not is_foreign(name)}
    for name in ("home", "tmp"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    own = {
        "HOME": str(scratch / "home"),
        "TMPDIR": str(scratch / "tmp"),
        "RAY_TMPDIR": str(scratch),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(BAD_DECODERS))),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return {**kept, **own, **(more or {})}


def wait_until(
    condition: Callable[[], object], seconds: float, what: str, process: Driver | None = None
) -> None:
    """Look ten times a second. Raises TimeoutError that says what did not happen.

    ``process``: nobody else can bring it about; AssertionError with what it said last, once it has ended.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and not process.running and not condition():
            raise AssertionError(f"{what}: the process has ended; it said: {process.tail()}")
        if time.monotonic() > deadline:
            said = "" if process is None else f"; it said: {process.tail()}"
            raise TimeoutError(f"not within {seconds:g} s: {what}{said}")
        time.sleep(0.1)


def end_tree(processes: list[psutil.Process], seconds: float) -> list[str]:
    """Wait until these processes are gone; kill those that stay, and say which of ours they were.

    Ray's own agents, which may notice only after half a minute that their node is gone, are not waited for.
    """
    deadline = time.monotonic() + seconds
    while (ours := _ours_among(processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # does nothing to a newer process of the same number
    return ours


def _ours_among(processes: list[psutil.Process]) -> list[str]:
    titles = [title_of(process) for process in processes if _is_alive(process)]
    return [title for title in titles if any(word in title for word in _OURS)]


def title_of(process: psutil.Process) -> str:
    """Its command line, or what it has put in its place; empty once it has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def _is_alive(process: psutil.Process) -> bool:
    """Whether it runs, and its number is not another's by now."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Driver:
    """One ``python -m tests.chaos.driver`` with what it has said so far; a context manager that ends it.

    ``command``: another program in its place, whose output is then only kept. ``patient`` False: what the
    program has started is left to die on its own.
    """

    def __init__(
        self,
        job: Mapping[str, object],
        environment: Mapping[str, str],
        *,
        heal: bool = False,
        command: list[str] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        request = json.dumps({"values": dict(job), "heal": heal})
        self.started_at = time.monotonic()
        self.patient = True
        self.lines: list[str] = []
        self.events: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            command or [sys.executable, "-m", "tests.chaos.driver", request],
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._itself = psutil.Process(self._process.pid)  # knows it from a later process of its number
        self._seen: dict[int, psutil.Process] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        processes = self.descendants()
        if self.running:
            self._process.kill()
        self._process.wait()
        if self.patient:
            end_tree(processes, 20.0)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def settled(self) -> int:
        """Videos with a row or a final failure in this run, as last heard."""
        last = self.last("progress")
        return int(last["indexed"] + last["failed"]) if last else 0

    def last(self, name: str) -> dict[str, Any] | None:
        """The latest event of a name."""
        return next((event for event in reversed(self.events) if event["event"] == name), None)

    def say(self, line: str) -> None:
        """Write a line to the process's standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals, *, whole_group: bool = False) -> None:
        """To the process, or to its whole group, as ``timeout`` and a terminal do."""
        if whole_group:
            os.killpg(self.pid, number)
        else:
            self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit status. Raises TimeoutError with the last lines of output."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"still running after {seconds:g} s; said: {self.tail()}") from None
        self._reader.join(5.0)
        return status

    def tail(self) -> str:
        return "\n".join(self.lines[-15:])

    def descendants(self) -> list[psutil.Process]:
        """Every process it has started, as far as ever seen: a parent that dies hides its children."""
        try:
            for process in self._itself.children(recursive=True):
                if self._seen.get(process.pid) != process:
                    self._seen[process.pid] = process
        except psutil.NoSuchProcess:
            pass
        return list(self._seen.values())

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith('{"event"'):
                self.events.append(json.loads(line))
