"""One policy for stores that fail now and then: which errors pass, and how long to try again."""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pipeline.errors import PipelineError, UserError
from pipeline.stores.causes import causes_of, status_of

__all__ = ["RETRY_SECONDS", "StorageDownError", "is_passing", "retry", "steady_seconds", "telling"]

RETRY_SECONDS = 60.0  # then a store is taken to be down, not busy
_FIRST_SECONDS = 0.2
_LONGEST_SECONDS = 8.0
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)

_LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_ERRNOS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EINVAL,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EXDEV,
        errno.ENOSYS,
        errno.EPERM,
        errno.EFBIG,
        errno.EMSGSIZE,
    }
)
# What the libraries below fsspec raise that is no OSError, by name: none of them has to be installed.
_PASSING_NAMES = frozenset(
    {
        "HTTPClientError",  # botocore: timeouts, resets, closed connections
        "IncompleteReadError",
        "ResponseParserError",
        "ClientConnectionError",  # aiohttp
        "ClientPayloadError",
        "ConnectionError",  # Python, botocore, requests
        "ServiceRequestError",  # azure
        "ServiceResponseError",
        "IncompleteRead",
    }
)
_LIBRARIES = frozenset({"botocore", "aiobotocore", "aiohttp", "azure", "gcsfs", "google", "requests"})
_PASSING_STATUS = frozenset({408, 425, 429})

T = TypeVar("T")


class StorageDownError(PipelineError):
    """A store failed for so long that waiting on makes no sense; what was to be done may have been done."""


def retry(work: Callable[[], T], seconds: float = RETRY_SECONDS) -> T:
    """The result of ``work``, which is called again after an error that passes, with growing pauses.

    ``work`` must do no harm when done twice. The last error is raised when ``seconds`` are over: no call
    begins after that. Pauses: 0.2 s doubling up to 8 s, each shortened by up to half, at random.
    """
    deadline = time.monotonic() + seconds
    pause = _FIRST_SECONDS
    while True:
        try:
            return work()
        except Exception as error:
            wait = pause * random.uniform(0.5, 1.0)
            if not is_passing(error) or time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_SECONDS)


def is_passing(error: BaseException) -> bool:
    """Whether an error of a store may be gone at the next try: timeouts, resets, 5xx, "slow down".

    A missing file, a refusal, a full disk and other answers of 4xx are not.
    """
    if any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__):
        return True
    status = status_of(error)
    if status is not None:
        return (status >= 500 and status != 501) or status in _PASSING_STATUS or "SlowDown" in _codes(error)
    if isinstance(error, _LASTING):
        return False
    if isinstance(error, asyncio.TimeoutError):  # no TimeoutError before Python 3.11
        return True
    return isinstance(error, OSError) and error.errno not in _LASTING_ERRNOS


@contextmanager
def telling(uri: str) -> Iterator[None]:
    """What a store or a disk does not allow inside, as UserError that names the place; other errors pass."""
    try:
        yield
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, PipelineError) or not (isinstance(error, OSError) or library in _LIBRARIES):
            raise
        raise UserError(f"{uri!r} cannot be used: {type(error).__name__}: {error}") from error


def steady_seconds() -> float:
    """A clock that nobody sets; it goes on while the machine is suspended, where there is such a one."""
    return time.clock_gettime(_CLOCK) if _CLOCK is not None else time.monotonic()


def _codes(error: BaseException) -> set[str]:
    answers = (getattr(cause, "response", None) for cause in causes_of(error))
    return {str(answer.get("Error", {}).get("Code", "")) for answer in answers if isinstance(answer, dict)}
