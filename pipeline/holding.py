"""Holding an output for a while, with its heartbeat in the background: for what is not a run."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from pipeline.lock import LockLostError, OutputLock

__all__ = ["hold"]

_HEARTBEAT_SECONDS = 5.0


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
