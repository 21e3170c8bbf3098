"""The output lock: one writer, a dead one replaced at once, a slow one fenced off."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.output.lock import LockLostError, OutputLock, read_holder
from pipeline.stores.storage import Storage

ROUNDS = 20
RACERS = ("left", "middle", "right")


def quick(uri: str, **settings: Any) -> OutputLock:
    """A lock that waits for nobody and believes a stale heartbeat after 50 ms."""
    lock = OutputLock(uri, **{"confirm_seconds": 0.05, "wait_seconds": 0.0, **settings})
    lock._storage._settle_seconds = 0.0
    return lock


def rewrite_lock(uri: str, **changes: Any) -> None:
    """Make the lock look as if another process or host had written it."""
    storage = Storage(uri)
    name = f"_lock/{storage.files('_lock')[-1].name}"
    data = storage.read(name)
    assert data is not None
    storage.write(name, json.dumps({**json.loads(data), **changes}).encode())


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_second_is_refused_and_told_by_whom(uri: str) -> None:
    first = quick(uri)
    first.acquire("run-1")
    with pytest.raises(UserError, match=rf"run run-1 \(process {os.getpid()} on .*choose another output.uri"):
        quick(uri).acquire("run-2")
    first.check()


def test_released_is_free_again(uri: str) -> None:
    first, second = quick(uri), quick(uri)
    first.acquire("run-1")
    first.release()
    assert read_holder(Storage(uri)) is None
    second.acquire("run-2")
    holder = read_holder(Storage(uri))
    assert holder is not None
    assert holder.run_id == "run-2"
    with pytest.raises(LockLostError):
        first.check()


def test_a_live_holder_here_is_refused_at_once(uri: str) -> None:
    quick(uri).acquire("run-1")
    started = time.monotonic()
    with pytest.raises(UserError):
        quick(uri, wait_seconds=30.0).acquire("run-2")
    assert time.monotonic() - started < 5.0


def test_a_dead_process_here_is_replaced_at_once(uri: str) -> None:
    quick(uri).acquire("run-1")
    rewrite_lock(uri, pid=dead_pid())
    assert read_holder(Storage(uri)) is None
    quick(uri, confirm_seconds=1000.0).acquire("run-2")


def test_a_reused_process_number_is_not_the_holder(uri: str) -> None:
    quick(uri).acquire("run-1")
    rewrite_lock(uri, process_started_at=time.time() - 1e6)
    quick(uri, confirm_seconds=1000.0).acquire("run-2")


def test_a_fresh_heartbeat_from_another_host_is_respected(uri: str) -> None:
    quick(uri).acquire("run-1")
    rewrite_lock(uri, host="elsewhere", pid=dead_pid())
    with pytest.raises(UserError, match="on elsewhere"):
        quick(uri).acquire("run-2")


@pytest.mark.parametrize("skew_seconds", [-61.0, +3600.0])
def test_a_stale_heartbeat_from_another_host_lapses(uri: str, skew_seconds: float) -> None:
    quick(uri).acquire("run-1")
    rewrite_lock(uri, host="elsewhere", heartbeat_at=time.time() + skew_seconds)
    quick(uri).acquire("run-2")


def test_a_wrong_clock_does_not_cost_a_live_holder_its_lock(tmp_path: Path) -> None:
    """Its heartbeats look an hour old but still change, so it lives."""
    uri = str(tmp_path)
    quick(uri).acquire("run-1")
    rewrite_lock(uri, host="elsewhere", heartbeat_at=time.time() - 3600)
    beat = (
        "import sys, time; from tests.unit.output.test_lock import rewrite_lock\n"
        "print('up', flush=True)\n"
        "while True: rewrite_lock(sys.argv[1], heartbeat_at=time.time() - 3600); time.sleep(0.05)"
    )
    child = subprocess.Popen([sys.executable, "-c", beat, uri], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(UserError, match="run run-1"):
            quick(uri, confirm_seconds=1.5).acquire("run-2")
    finally:
        child.kill()
        child.wait()


def test_the_overslept_holder_is_fenced_off(uri: str) -> None:
    sleeper, taker = quick(uri), quick(uri)
    sleeper.acquire("run-1")
    sleeper.heartbeat()
    rewrite_lock(uri, heartbeat_at=time.time() - 61)
    taker.acquire("run-2")
    with pytest.raises(LockLostError, match="taken over by run run-2"):
        sleeper.heartbeat()
    sleeper.release()
    taker.heartbeat()
    holder = read_holder(Storage(uri))
    assert holder is not None
    assert holder.run_id == "run-2"


def test_a_holder_that_overslept_while_nobody_came_goes_on(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its right lapsed, so it takes the output anew, which only one can: who looked before is too late."""
    now = [1000.0]
    monkeypatch.setattr("pipeline.output.lock.steady_seconds", lambda: now[0])
    sleeper, late = quick(uri), quick(uri)
    sleeper.acquire("run-1")
    before = [entry.name for entry in Storage(uri).files("_lock")]
    now[0] += 61
    sleeper.check()
    assert [entry.name for entry in Storage(uri).files("_lock")] == ["00000002.json"] != before
    late._number = 1  # it had seen the stale holder, and would now create number 2
    assert not late._take(sleeper.holder)  # type: ignore[arg-type]
    sleeper.heartbeat()


def test_heartbeat_keeps_the_lock_fresh(uri: str) -> None:
    lock = quick(uri)
    lock.acquire("run-1")
    rewrite_lock(uri, heartbeat_at=0.0)
    lock.heartbeat()
    holder = read_holder(Storage(uri))
    assert holder is not None
    assert time.time() - holder.heartbeat_at < 5.0


def test_without_acquire_nothing_is_held(uri: str) -> None:
    with pytest.raises(LockLostError, match="call acquire first"):
        quick(uri).check()
    quick(uri).release()


def test_an_unreadable_lock_blocks_only_until_it_is_confirmed(uri: str) -> None:
    Storage(uri).write("_lock/00000004.json", b"{half")
    lock = quick(uri)
    lock.acquire("run-1")
    lock.check()


def test_a_full_disk_does_not_keep_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(target: str, data: bytes, ready: object = None) -> None:
        raise OSError(28, "No space left on device")

    lock = quick(str(tmp_path))
    lock.acquire("run-1")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stores.storage.write_file", full)
        lock.release()
    assert lock.holder is None


@pytest.mark.parametrize("gone", ["_lock", "."])
def test_a_lock_that_was_deleted_is_not_told_as_a_take_over(tmp_path: Path, gone: str) -> None:
    lock = quick(str(tmp_path / "out"))
    lock.acquire("run-1")
    shutil.rmtree(tmp_path / "out" / gone)
    for look in (lock.check, lock.heartbeat):
        with pytest.raises(
            LockLostError, match=r"_lock/00000001.json' is gone: somebody deleted this run's lock"
        ) as told:
            look()
        assert "was taken over" not in str(told.value)
    assert not (tmp_path / "out" / "_lock").exists()


def test_a_take_over_after_the_lock_was_deleted_is_one(tmp_path: Path) -> None:
    """As the refusal offers: numbers begin anew then."""
    for number in range(3):
        lock = quick(str(tmp_path))
        lock.acquire(f"run-{number}")
        if number < 2:
            lock.release()
    shutil.rmtree(tmp_path / "_lock")
    quick(str(tmp_path)).acquire("run-9")
    with pytest.raises(LockLostError, match="taken over by run run-9"):
        lock.check()


def test_locks_do_not_pile_up(uri: str) -> None:
    for number in range(5):
        lock = quick(uri)
        lock.acquire(f"run-{number}")
        lock.release()
    assert len(Storage(uri).files("_lock")) == 1


def test_a_slow_racer_that_reuses_a_tidied_number_loses(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It listed, slept while two others came and one went, and then creates a number that is free again."""
    first = quick(uri)
    first.acquire("run-1")
    first.release()
    slow, create = quick(uri), Storage.create
    others = [quick(uri), quick(uri)]

    def sleep_then_create(storage: Storage, name: str, data: bytes) -> bool:
        if storage is slow._storage and others:
            others[0].acquire("run-2")
            others.pop(0).release()
            others[0].acquire("run-3")
            others.clear()
        return create(storage, name, data)

    monkeypatch.setattr(Storage, "create", sleep_then_create)
    with pytest.raises(UserError, match="run run-3"):
        slow.acquire("run-slow")
    assert [entry.name for entry in Storage(uri).files("_lock")] == ["00000003.json"]


def test_waits_for_a_holder_whose_driver_died(tmp_path: Path) -> None:
    """The driver was killed; its coordinator holds the lock for another moment, then ends."""
    uri = str(tmp_path)
    code = (
        "import sys, time; from pipeline.output.lock import OutputLock\n"
        "OutputLock(sys.argv[1]).acquire('run-1', driver_pid=int(sys.argv[2]))\n"
        "print('held', flush=True); time.sleep(1.0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, uri, str(dead_pid())], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        quick(uri, wait_seconds=20.0).acquire("run-2")


def test_sigkill_of_the_holder_frees_the_output(tmp_path: Path) -> None:
    uri = str(tmp_path)
    code = (
        "import sys, time; from pipeline.output.lock import OutputLock\n"
        "OutputLock(sys.argv[1]).acquire('run-1'); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(UserError, match=f"process {child.pid}"):
            quick(uri).acquire("run-2")
        child.send_signal(signal.SIGKILL)
        child.wait()
        quick(uri).acquire("run-2")


def _race(name: str, uris: list[str], barrier: Any, wins: Any) -> None:
    for number, uri in enumerate(uris):
        lock = quick(uri)
        barrier.wait(60)
        try:
            lock.acquire(f"{name}-{number}")
            wins.put((number, name))
        except UserError:
            pass
        barrier.wait(60)  # the winner holds it until both have tried
        lock.release()


@pytest.mark.slow
@pytest.mark.parametrize("left_by", ["nobody", "released", "dead"])
def test_processes_race_and_exactly_one_wins(tmp_path: Path, left_by: str) -> None:
    uris = [str(tmp_path / f"{number}") for number in range(ROUNDS)]
    for uri in uris if left_by != "nobody" else []:
        lock = quick(uri)
        lock.acquire("before")
        lock.release() if left_by == "released" else rewrite_lock(uri, pid=dead_pid_once())
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(len(RACERS)), context.Queue()
    racers = [context.Process(target=_race, args=(name, uris, barrier, wins)) for name in RACERS]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
        assert racer.exitcode == 0
    winners = [wins.get(timeout=10) for _ in range(ROUNDS)]
    assert sorted(number for number, _ in winners) == list(range(ROUNDS))
    assert wins.empty()


_DEAD: list[int] = []


def dead_pid_once() -> int:
    if not _DEAD:
        _DEAD.append(dead_pid())
    return _DEAD[0]
