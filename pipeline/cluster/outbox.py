"""All that one worker says to the coordinator: results, what it begins, that it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from pipeline.cluster.protocol import TELL_SECONDS, CoordinatorHandle, Message, Reply, WorkerSeconds
from pipeline.output import Key
from pipeline.records import Failure, VideoRow

__all__ = ["PUSH_SECONDS", "Outbox"]

PUSH_SECONDS = 1.0  # also the heartbeat


class Outbox:
    """All that goes to the coordinator, one message at a time; results travel with the next one.

    Where the loop says nothing for a second, a thread does, also while the model works on a long video: the
    heartbeat. ``holds``: what the loop has in hand, named now and then.
    """

    def __init__(self, coordinator: CoordinatorHandle, worker_id: str) -> None:
        self._coordinator, self._worker_id = coordinator, worker_id
        self._rows: list[VideoRow] = []
        self._failures: list[Failure] = []
        self._wait = self._busy = 0.0
        self._working: tuple[float, Key] | None = None
        self._contents, self._pushing = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._go_on = True
        self._said_at = self._told_at = -inf
        self.holds: tuple[Key, ...] = ()
        self._thread = threading.Thread(target=self._push_often, name="outbox", daemon=True)

    def __enter__(self) -> Outbox:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def add(self, result: VideoRow | Failure) -> None:
        """Queue one row or failure."""
        with self._contents:
            if isinstance(result, VideoRow):
                self._rows.append(result)
            else:
                self._failures.append(result)

    def add_seconds(self, wait: float = 0.0, busy: float = 0.0) -> None:
        """Add to what the next push reports."""
        with self._contents:
            self._wait, self._busy = self._wait + wait, self._busy + busy

    @contextmanager
    def working_on(self, key: Key) -> Iterator[None]:
        """Inside the ``with`` the model works for that video; pushes meanwhile say for how long it has."""
        began = time.monotonic()
        with self._contents:
            self._working = (began, key)
        try:
            yield
        finally:
            with self._contents:
                self._working = None
            self.add_seconds(busy=time.monotonic() - began)

    def should_go_on(self) -> bool:
        """False once the coordinator has said to stop. Raises what a push raised: the coordinator is gone."""
        if self._error is not None:
            raise self._error
        return self._go_on

    def exchange(self, starting: tuple[Key, ...] = (), wanted: int | None = None, room: int = 0) -> Reply:
        """Hand over what there is, now, and with it what is said and asked: see Message."""
        with self._pushing:
            now = time.monotonic()
            with self._contents:
                results = tuple(self._rows), tuple(self._failures), self._seconds()
                self._rows, self._failures, self._wait, self._busy = [], [], 0.0, 0.0
            holds = self.holds if now - self._told_at > TELL_SECONDS else None
            message = Message(*results, starting, wanted, room, holds)
            reply = self._coordinator.exchange(self._worker_id, message)
            self._go_on, self._said_at = reply.go_on, now
            self._told_at = self._told_at if holds is None else now
            return reply

    def _seconds(self) -> WorkerSeconds:
        if self._working is None:
            return WorkerSeconds(self._wait, self._busy)
        since, key = self._working
        return WorkerSeconds(self._wait, self._busy, time.monotonic() - since, key)

    def _push_often(self) -> None:
        while not self._ended.wait(max(0.0, self._said_at + PUSH_SECONDS - time.monotonic())):
            if time.monotonic() < self._said_at + PUSH_SECONDS:
                continue  # the loop has said something meanwhile
            try:
                self.exchange()
            except Exception as error:
                self._error = error
                return
