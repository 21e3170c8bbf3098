"""What a run would be refused for, found out by reading, before anything is started or written.

The coordinator checks all of it again while it holds the output; this only saves the wait.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from pipeline.config import JobConfig
from pipeline.errors import UserError
from pipeline.output import OutputLock, OutputStore, existing_store
from pipeline.stores import Storage, open_filesystem, retry, telling

__all__ = ["check_healable", "check_output"]


def check_healable(config: JobConfig) -> None:
    """Raise UserError where there is no such output, or no such table in it: nothing to heal there."""
    with telling(config.output.uri):
        existing_store(config.output.uri, config.output.table)


def check_output(config: JobConfig, model_revision: str) -> None:
    """Raise UserError where the output cannot be written to, is held, or is bound to other settings."""
    uri, table = config.output.uri, config.output.table
    with telling(uri):
        store = OutputStore(uri, table, columns=config.corpus.columns)
        if store.storage.is_local:
            _check_writable(store.storage, ("_lock", table))
        else:
            _check_bucket(uri)
        OutputLock(uri).refuse_if_held()
        store.check_binding(config.fingerprint(model_revision), config.identity(model_revision))


def _check_writable(storage: Storage, folders: Sequence[str]) -> None:
    """Whether each folder is there, or can be made where it is missing, as far as permissions tell."""
    for folder in folders:
        place = os.path.abspath(storage.path(folder))
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        error = 0 if os.path.isdir(place) else errno.ENOTDIR
        if not error and not os.access(place, os.W_OK | os.X_OK):
            error = errno.EACCES
        if error:
            raise UserError(
                f"output.uri={storage.uri!r} cannot be used: {place}: {os.strerror(error)}; make it writable "
                "or choose another"
            )


def _check_bucket(uri: str) -> None:
    """Whether S3 says that there is no such bucket; other stores do not tell that from an empty folder."""
    filesystem, root = open_filesystem(uri)
    try:
        retry(lambda: filesystem.ls(f"{root}/_lock"))  # the output itself may lie in a folder of millions
    except FileNotFoundError as error:
        if type(error.__cause__).__name__ == "NoSuchBucket":
            raise UserError(
                f"output.uri={uri!r} cannot be used: {error}; create it or choose another"
            ) from None
