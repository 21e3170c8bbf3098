"""Rows and failures on their way into parts: buffered, written in order, never written twice."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from pipeline.parts import PartBuffer
from pipeline.records import Failure, VideoRow

if TYPE_CHECKING:
    from pipeline.config import OutputConfig
    from pipeline.store import OutputStore

__all__ = ["Committer"]


class Committer:
    """Collects rows and failures and writes them as parts when due. Thread-safe; adding waits for nothing.

    After a failed write nothing more is written: whether that part exists is unknown, and writing its rows
    again could double them. The next run reads back what is there.
    """

    def __init__(self, store: OutputStore, config: OutputConfig) -> None:
        self._store = store
        self._rows: PartBuffer[VideoRow] = PartBuffer(config.part_rows, config.part_seconds)
        self._failures: PartBuffer[Failure] = PartBuffer(config.part_rows, config.part_seconds)
        self._buffers, self._writing = threading.Lock(), threading.Lock()
        self._failed = False
        self.rows_committed = 0
        self.last_part_rows = 0

    def add_row(self, row: VideoRow) -> None:
        with self._buffers:
            self._rows.add([row], time.monotonic())

    def add_failure(self, failure: Failure) -> None:
        with self._buffers:
            self._failures.add([failure], time.monotonic())

    def commit(self, everything: bool = False) -> bool:
        """Write the parts that are due, or all there is; whether a part of rows was written.

        Raises what the store raises, once; later calls do nothing.
        """
        written = False
        with self._writing:
            while not self._failed and self._write_next(everything):
                written = True
        return written

    def _write_next(self, everything: bool) -> bool:
        rows, failures = self._take(everything)
        self._failed = True  # until the write is known to have gone well
        self._store.write_rows(rows)
        self._store.write_failures(failures)
        self._failed = False
        if rows:
            self.rows_committed += len(rows)
            self.last_part_rows = len(rows)
        return bool(rows or failures)

    def _take(self, everything: bool) -> tuple[list[VideoRow], list[Failure]]:
        now = time.monotonic()
        with self._buffers:
            rows = self._rows.take() if everything or self._rows.due(now) else []
            failures = self._failures.take() if everything or self._failures.due(now) else []
        return rows, failures
