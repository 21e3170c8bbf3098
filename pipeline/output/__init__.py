"""What is committed?

In: rows and failures. Out: Parquet parts under one lock, and what can be read back from them: what is done,
status, verify, compact, export. A part that exists is committed; nothing else says so. Start with store.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from pipeline.output.compacting import CompactReport, compact
    from pipeline.output.exporting import export, view_sql
    from pipeline.output.failed_so_far import FailedSoFar
    from pipeline.output.history import NEVER_TRIED, Earlier, History, Key
    from pipeline.output.lock import LockLostError, OutputLock
    from pipeline.output.parts import PartBuffer
    from pipeline.output.schemas import FAILURE_SCHEMA, VIDEO_SCHEMA
    from pipeline.output.status import OutputStatus, existing_store, read_status
    from pipeline.output.store import FAILURES, OutputStore
    from pipeline.output.verify import VerifyReport, verify_output
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "compacting": ["CompactReport", "compact"],
            "exporting": ["export", "view_sql"],
            "failed_so_far": ["FailedSoFar"],
            "history": ["Earlier", "History", "Key", "NEVER_TRIED"],
            "lock": ["LockLostError", "OutputLock"],
            "parts": ["PartBuffer"],
            "schemas": ["FAILURE_SCHEMA", "VIDEO_SCHEMA"],
            "status": ["OutputStatus", "existing_store", "read_status"],
            "store": ["FAILURES", "OutputStore"],
            "verify": ["VerifyReport", "verify_output"],
        },
    )

__all__ = [
    "FAILURES",
    "FAILURE_SCHEMA",
    "NEVER_TRIED",
    "VIDEO_SCHEMA",
    "CompactReport",
    "Earlier",
    "FailedSoFar",
    "History",
    "Key",
    "LockLostError",
    "OutputLock",
    "OutputStatus",
    "OutputStore",
    "PartBuffer",
    "VerifyReport",
    "compact",
    "existing_store",
    "export",
    "read_status",
    "verify_output",
    "view_sql",
]
