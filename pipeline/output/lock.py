"""One writer per output: a lock of numbered files, a heartbeat, and a fence for a writer that overslept.

``<output>/_lock/<number>.json`` describes one holder after another; the highest number counts. Acquiring is
creating the next number exclusively, which a released or stale holder allows; nothing is ever deleted first,
so two takers cannot both win. The highest file is never removed, only marked as released. A holder whose
right may have lapsed takes the number after its own in the same way, or finds that another one has.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

from pipeline.errors import PipelineError, UserError
from pipeline.output.process_identity import boot_id, is_alive, started_at
from pipeline.stores import Storage, steady_seconds

__all__ = ["Holder", "LockLostError", "OutputLock", "hold", "read_holder"]

_FOLDER = "_lock"
_POLL_SECONDS = 0.25
_HEARTBEAT_SECONDS = 5.0


class LockLostError(PipelineError):
    """Another run took the output over; this one must stop writing at once."""


@dataclass(frozen=True)
class Holder:
    """Who holds, or held, the output. Times are seconds since the epoch on the holder's clock."""

    token: str
    run_id: str
    host: str
    boot_id: str
    pid: int
    process_started_at: float
    driver_pid: int
    driver_started_at: float
    acquired_at: float
    heartbeat_at: float
    released: bool = False

    @property
    def is_here(self) -> bool:
        """Whether process numbers of the holder mean something in this process."""
        return (self.host, self.boot_id) == (socket.gethostname(), boot_id())

    @property
    def is_gone(self) -> bool:
        """Whether the holder's process is known to have ended; only knowable on its own host."""
        return self.is_here and not is_alive(self.pid, self.process_started_at)

    @property
    def is_dying(self) -> bool:
        """Whether the process that drives the holder has ended, so that the holder follows within seconds."""
        return self.is_here and not is_alive(self.driver_pid, self.driver_started_at)

    def __str__(self) -> str:
        age = max(0.0, time.time() - self.heartbeat_at)
        return f"run {self.run_id} (process {self.pid} on {self.host}, last heartbeat {age:.0f} s ago)"


class OutputLock:
    """The right to write to one output. One object, one acquisition at a time.

    After ``acquire``, the other methods may be called from any thread.

    stale_seconds: a holder without a heartbeat for this long has lost its right; one whose process is known
    to have ended (same host) has lost it at once.
    confirm_seconds: how long a stale heartbeat is watched before it is believed, because clocks of two hosts
    may differ; longer than the holder's heartbeat interval.
    wait_seconds: how long a live holder is waited for where it is dying or on another host.

    Exclusive as far as ``Storage.create`` is; on stores without a conditional create, ``check`` finds out,
    and ``acquire`` warns (StorageWarning).
    """

    def __init__(
        self,
        uri: str,
        stale_seconds: float = 60.0,
        confirm_seconds: float = 12.0,
        wait_seconds: float = 15.0,
    ) -> None:
        self._storage = Storage(uri)
        self._impatient = Storage(uri, retry_seconds=stale_seconds / 6)  # heartbeats come one after the other
        self._stale_seconds = stale_seconds
        self._confirm_seconds = confirm_seconds
        self._wait_seconds = wait_seconds
        self._number = 0
        self._mine: Holder | None = None
        self._good_at = 0.0  # when the last heartbeat that is known to have arrived was sent
        self._rewriting = threading.RLock()  # a heartbeat that lands after the release would take it back

    @property
    def holder(self) -> Holder | None:
        """What this object wrote as the holder; None while it holds nothing."""
        return self._mine

    def acquire(self, run_id: str, driver_pid: int | None = None) -> None:
        """Take the output, or raise UserError naming who holds it.

        driver_pid: a process of this host whose end means that this holder ends too; default this process.
        """
        deadline = time.monotonic() + self._wait_seconds
        while not self._try(run_id, driver_pid or os.getpid()):
            number, holder = _highest(self._storage)
            # Somebody who came and went, is dying, or may be dead on another host is worth another look.
            waits = holder is None or holder.released or holder.is_dying or not holder.is_here
            if not waits or time.monotonic() >= deadline:
                raise UserError(self._refusal(holder, number))
            time.sleep(_POLL_SECONDS)

    def refuse_if_held(self) -> None:
        """Raise UserError where a process that runs on this host holds the output; only reads."""
        number, holder = _highest(self._storage)
        if holder is None or holder.released or not holder.is_here or self._looks_stale(holder):
            return
        if not (holder.is_gone or holder.is_dying):
            raise UserError(self._refusal(holder, number))

    def heartbeat(self) -> None:
        """Say that this holder lives; call at least every 10 s.

        A store that fails is put up with until the right may lapse. Raises LockLostError then, and after a
        take-over.
        """
        with self._rewriting:
            try:
                self._check(self._impatient)
                self._rewrite(self._impatient, heartbeat_at=time.time())
            except LockLostError:
                raise
            except Exception as error:  # access denied for a while, and whatever stores raise
                if self._silent_seconds() > self._stale_seconds:
                    raise LockLostError(
                        f"no heartbeat reached {self._storage.uri!r} for {self._silent_seconds():.0f} s, so "
                        f"that another run may take the output; this run stops without writing ({error})"
                    ) from error

    def check(self) -> None:
        """Raise LockLostError unless this object still holds the output. Cheap; call before a commit."""
        with self._rewriting:
            self._check(self._storage)

    def release(self) -> None:
        """Give the output back. Does nothing where it is not held, or was taken over meanwhile.

        A store that does not take it, full or down, is no error: the right lapses without it too.
        """
        with self._rewriting:
            with suppress(PipelineError, OSError):
                self._check(self._storage)
                self._rewrite(self._storage, released=True)
            self._mine = None

    def _check(self, storage: Storage) -> None:
        if self._mine is None:
            raise LockLostError(f"the lock of {storage.uri!r} is not held; call acquire first")
        number, holder = _highest(storage)
        if number < self._number and holder is None:
            raise LockLostError(self._told_gone(storage))
        if number != self._number or holder is None or holder.token != self._mine.token:
            other = holder or "another run"
            raise LockLostError(f"{storage.uri!r} was taken over by {other}; this run stops without writing")
        if self._silent_seconds() > self._stale_seconds and not self._take(self._mine):
            raise LockLostError(f"{storage.uri!r} was taken over while this run was suspended")

    def _told_gone(self, storage: Storage) -> str:
        return (
            f"{storage.path(_name(self._number))!r} is gone: somebody deleted this run's lock, or the whole "
            "output, while the run was going. It stops without writing; nobody else has the output, what is "
            "left of it counts, and the same command does the rest again"
        )

    def _silent_seconds(self) -> float:
        return steady_seconds() - self._good_at

    def _try(self, run_id: str, driver_pid: int) -> bool:
        number, holder = _highest(self._storage)
        if number and not self._may_follow(number, holder):
            return False
        self._number = number
        return self._take(_myself(run_id, driver_pid))

    def _take(self, holder: Holder) -> bool:
        """Create the next number; False where another one has it."""
        number, sent_at = self._number + 1, steady_seconds()
        mine = replace(holder, token=uuid.uuid4().hex, heartbeat_at=time.time())
        if not self._storage.create(_name(number), _encode(mine)):
            return False
        # Between listing and creating, others may have come, gone and tidied up: the highest number counts.
        if _highest(self._storage)[0] != number:
            self._storage.delete(_name(number))
            return False
        self._number, self._mine, self._good_at = number, mine, sent_at
        self._tidy()
        return True

    def _may_follow(self, number: int, holder: Holder | None) -> bool:
        if holder is not None and (holder.released or holder.is_gone):
            return True
        if holder is not None and not self._looks_stale(holder):
            return False
        time.sleep(self._confirm_seconds)
        return _highest(self._storage) == (number, holder)

    def _looks_stale(self, holder: Holder) -> bool:
        # A heartbeat from the future is as suspicious as an old one: it is a wrong clock, here or there.
        return abs(time.time() - holder.heartbeat_at) > self._stale_seconds

    def _rewrite(self, storage: Storage, **changes: Any) -> None:
        assert self._mine is not None  # check() has been called
        changed, sent_at = replace(self._mine, **changes), steady_seconds()
        storage.write(_name(self._number), _encode(changed))
        self._mine, self._good_at = changed, sent_at

    def _tidy(self) -> None:
        for entry in self._storage.files(_FOLDER):
            if _number(entry.name) < self._number:
                self._storage.delete(f"{_FOLDER}/{entry.name}")
        for leftover in self._storage.leftovers(_FOLDER):
            self._storage.delete(leftover)

    def _refusal(self, holder: Holder | None, number: int) -> str:
        return (
            f"{self._storage.uri!r} is being written by {holder or 'another run'}. One run at a time: wait "
            f"for it, stop it, or choose another output.uri. If it is dead, its right lapses "
            f"{self._stale_seconds:.0f} s after its last heartbeat; to override, delete "
            f"{self._storage.path(_name(number))!r}"
        )


def read_holder(storage: Storage) -> Holder | None:
    """Who holds an output now; None where nobody does, as far as can be told without waiting."""
    _, holder = _highest(storage)
    return None if holder is None or holder.released or holder.is_gone else holder


def _highest(storage: Storage) -> tuple[int, Holder | None]:
    """The highest number and its holder; (0, None) without a lock, holder None for an unreadable file."""
    number = max((_number(entry.name) for entry in storage.files(_FOLDER)), default=0)
    data = storage.read(_name(number)) if number else None
    if data is None:
        return number, None
    try:
        return number, Holder(**json.loads(data))
    except (ValueError, TypeError):
        return number, None


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:08d}.json"


def _number(name: str) -> int:
    stem = name.removesuffix(".json")
    return int(stem) if stem.isdecimal() else 0


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


def _myself(run_id: str, driver_pid: int) -> Holder:
    now = time.time()
    return Holder(
        token=uuid.uuid4().hex,
        run_id=run_id,
        host=socket.gethostname(),
        boot_id=boot_id(),
        pid=os.getpid(),
        process_started_at=started_at(os.getpid()),
        driver_pid=driver_pid,
        driver_started_at=started_at(driver_pid),
        acquired_at=now,
        heartbeat_at=now,
    )


@contextmanager
def hold(uri: str, what: str) -> Iterator[OutputLock]:
    """Hold the output inside the ``with``; ``what`` names the holder to others, who are refused.

    Raises UserError where somebody else holds it. ``lock.check`` inside tells whether it is still held.
    """
    lock = OutputLock(uri)
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    lock.acquire(f"{what}-{stamp}-{uuid.uuid4().hex[:4]}")
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(lock, ended), daemon=True)
    beating.start()
    try:
        yield lock
    finally:
        ended.set()
        beating.join()
        lock.release()


def _beat(lock: OutputLock, ended: threading.Event) -> None:
    while not ended.wait(_HEARTBEAT_SECONDS):
        try:
            lock.heartbeat()
        except LockLostError:  # the one who writes finds out by himself, in ``lock.check``
            return
