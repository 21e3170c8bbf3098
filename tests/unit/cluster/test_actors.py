"""What surrounds the coordination in its process: an output that cannot be written is the user's to mend."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import actors
from pipeline.cluster.actors import Coordinator
from pipeline.cluster.protocol import Run
from pipeline.config.job import load_config
from pipeline.errors import UserError
from pipeline.output.keyset import KeySet
from pipeline.output.lock import read_holder
from pipeline.output.store import OutputStore
from pipeline.records import VideoRow


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the coordinator goes there; the other tests must not
    settings = ["corpus.uri=.", "output.uri=/proc/index", "model.name=m", "metrics.port=null"]
    run = Run("run-1", "0123456789abcdef", "r", os.getpid())
    coordinator = Coordinator(load_config(None, settings), run, str(tmp_path))
    with pytest.raises(UserError, match=r"output\.uri='/proc/index' cannot be used.*choose another"):
        coordinator.open()


class _SlowStore(OutputStore):
    """Takes as long to read back and to write as it takes until the lock has been kept twice."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.waited = 0

    def committed(self, fingerprint: str) -> KeySet:
        self._wait()
        return super().committed(fingerprint)

    def write_run(self, run_id: str, report: Mapping[str, Any]) -> str:
        self._wait()
        return super().write_run(run_id, report)

    def _wait(self) -> None:
        seen = {self._beat()}
        deadline = time.monotonic() + 20.0
        while len(seen) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            seen.add(self._beat())
        self.waited += len(seen) == 3

    def _beat(self) -> float:
        holder = read_holder(self.storage)
        return holder.heartbeat_at if holder is not None else 0.0


def test_the_lock_is_kept_while_the_output_is_read_back_and_while_the_last_parts_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(actors, "_HEARTBEAT_SECONDS", 0.02)
    (tmp_path / "videos").mkdir()
    settings = ["corpus.uri=videos", f"output.uri={tmp_path}/out", "model.name=m", "metrics.port=null"]
    run = Run("run-1", "0123456789abcdef", "r", os.getpid())
    coordinator = Coordinator(load_config(None, settings), run, str(tmp_path))
    store = _SlowStore(f"{tmp_path}/out")
    monkeypatch.setattr(coordinator, "_store", store)
    coordinator.open()
    assert store.waited == 1
    coordinator.finish()
    assert store.waited == 2
    assert read_holder(store.storage) is None


class _StuckStore(OutputStore):
    """A write takes until it is told to go on."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.writing, self.go_on = threading.Event(), threading.Event()

    def write_rows(self, rows: Sequence[VideoRow]) -> str | None:
        self.writing.set()
        assert self.go_on.wait(20.0)
        return super().write_rows(rows)


def test_silent_workers_are_given_up_while_the_store_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a store that is slow each time would hide for ever that a worker hangs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(actors, "TICK_SECONDS", 0.02)
    (tmp_path / "videos").mkdir()
    settings = ["corpus.uri=videos", f"output.uri={tmp_path}/out", "model.name=m", "metrics.port=null"]
    run = Run("run-1", "0123456789abcdef", "r", os.getpid())
    config = load_config(None, [*settings, "limits.worker_silence_seconds=0.2"])
    coordinator = Coordinator(config, run, str(tmp_path))
    store = _StuckStore(f"{tmp_path}/out")
    monkeypatch.setattr(coordinator._results._committer, "_store", store)
    coordinator.open()
    coordinator.register("w")
    assert store.writing.wait(20.0)
    coordinator.ready("w")
    deadline = time.monotonic() + 20.0
    while not coordinator.status().lost_workers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert coordinator.status().lost_workers == ("w",)
    store.go_on.set()
    coordinator.finish()
