"""Stores as the inputs need them: opened, asked again while they are busy, their errors told apart.

Clients wrap one another's errors, and some call every failure "not found".
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from pipeline.errors import Reason
from pipeline.stores.causes import causes_of, status_of
from pipeline.stores.filesystems import open_single
from pipeline.stores.retrying import RETRY_SECONDS, is_passing, retry
from pipeline.stores.slashed_keys import SlashedKey, trailing_slashes

__all__ = ["Hosts", "ask_store", "content_version", "open_store", "plain_error", "reason_of"]

_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "blob_id", "xet_hash")  # the last two: hf
_S3 = ("s3://", "s3a://")
_GONE = frozenset({404, 410})
_FORBIDDEN = frozenset({401, 403})
_LOOK_UP_SECONDS = 20.0
_NUM_UNREACHED = 3  # times in a row; then a host is left alone for a while
_FIRST_PAUSE_SECONDS = 5.0
_MOST_HOSTS = 4096  # remembered
_NO_WAY = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT})
_OWN_FAULT = frozenset({errno.EMFILE, errno.ENFILE})
# What clients raise where nobody answers, by name: none of them has to be installed.
_NO_ANSWER = frozenset(
    {"ClientConnectorError", "EndpointConnectionError", "ConnectTimeoutError", "NewConnectionError"}
)


def open_store(uri: str) -> tuple[Any, str]:
    """The filesystem of a uri and the path on it; raises as ``open_single``.

    s3fs keeps no listings: they would hold a large bucket in memory, and answer with what was there before.
    On S3 a key is what is written: the path keeps the slashes at its end.
    """
    if not uri.startswith(_S3):
        return open_single(uri, {})
    store, path = open_single(uri, {"use_listings_cache": False})
    slashes = trailing_slashes(uri, path)
    return (SlashedKey(store, path + slashes), path + slashes) if slashes else (store, path)


def ask_store(
    method: Callable[..., Any], *arguments: Any, seconds: float = RETRY_SECONDS, **named: Any
) -> Any:
    """Call a store. Tried again for so long after errors that pass; raises as ``plain_error``."""

    def once() -> Any:
        try:
            return method(*arguments, **named)
        except Exception as error:  # every store has errors of its own
            plain = plain_error(error)
            if plain is error:
                raise
            raise plain  # noqa: B904 - it has its cause

    return retry(once, seconds)


class Hosts:
    """Asks stores about many files in one listing, and remembers which hosts are down. Thread-safe."""

    def __init__(self) -> None:
        self._host = lru_cache(_MOST_HOSTS)(_Host)

    def ask(self, uri: str, method: Callable[..., Any], *arguments: Any) -> Any:
        """As ``ask_store``, but of a host that is not to be reached at once or not at all.

        Another error that passes is tried again for 20 s, and for less with every file that had one to the
        end. Raises ConnectionError for a host that is down, without asking it.
        """
        host = self._host("/".join(uri.split("/", 3)[:3]))
        began = host.begin()
        num_calls = 0

        def once() -> Any:
            nonlocal num_calls
            num_calls += 1
            try:
                return method(*arguments)
            except Exception as error:  # every store has errors of its own
                if _is_unreached(error):
                    raise _UnreachedError from error
                raise

        try:
            answer = ask_store(once, seconds=_LOOK_UP_SECONDS / (1 + host.num_failed))
        except _UnreachedError as unreached:
            first = causes_of(unreached)[-1]
            host.note_unreached(f"{type(first).__name__}: {first}"[:200], time.monotonic() - began)
            raise first from None
        except Exception as error:
            host.note_answer(host.num_failed + is_passing(error))
            raise
        host.note_answer(0 if num_calls > 1 else host.num_failed)
        return answer


class _UnreachedError(Exception):
    """Is not tried again."""


class _Host:
    """What was learned of one host. While it is down, one in a growing while may try whether it is back."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.num_failed = 0
        self._num_unreached = 0
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._down_until = 0.0
        self._said = ""
        self._guard = threading.Lock()

    def begin(self) -> float:
        """The time. Raises ConnectionError where the host must not be asked."""
        with self._guard:
            now = time.monotonic()
            if self._num_unreached >= _NUM_UNREACHED:
                if now < self._down_until:
                    raise ConnectionError(f"{self._name} was not reached again and again: {self._said}")
                self._down_until = float("inf")  # until the one that asks now knows more
            return now

    def note_unreached(self, said: str, took_seconds: float) -> None:
        with self._guard:
            self._num_unreached += 1
            self._said = said
            if self._num_unreached >= _NUM_UNREACHED:
                self._down_until = time.monotonic() + max(self._pause_seconds, 4 * took_seconds)
            if self._num_unreached > _NUM_UNREACHED:
                self._pause_seconds *= 2

    def note_answer(self, num_failed: int) -> None:
        with self._guard:
            self.num_failed = num_failed
            self._num_unreached, self._pause_seconds = 0, _FIRST_PAUSE_SECONDS


def _is_unreached(error: BaseException) -> bool:
    """Whether nobody answers there: refused, no such host, no way to it, or silence until a timeout."""
    chain = causes_of(error)
    if any(getattr(cause, "errno", None) in _OWN_FAULT for cause in chain):
        return False
    if status_of(error) is not None:
        return False
    return any(
        isinstance(cause, ConnectionRefusedError | TimeoutError | asyncio.TimeoutError | socket.gaierror)
        or (isinstance(cause, OSError) and cause.errno in _NO_WAY)
        or any(kind.__name__ in _NO_ANSWER for kind in type(cause).__mro__)
        for cause in chain
    )


def content_version(info: Mapping[str, Any], size: int) -> str:
    """What tells two contents apart: the etag where the store has one, else size and time of change."""
    for name in _ETAGS:
        if info.get(name):
            return str(info[name]).strip('"')
    moment = next((info[name] for name in _TIMES if info.get(name)), 0)
    if isinstance(moment, datetime):
        moment = moment.timestamp()
    if isinstance(moment, int | float):
        moment = int(moment * 1_000_000)
    return f"{size}-{moment}"


def reason_of(error: BaseException) -> Reason:
    """NOT_FOUND, ACCESS_DENIED or READ_ERROR: by the status that the store answered, else by the kind."""
    status, first = status_of(error), causes_of(error)[-1]
    if status in _GONE or (status is None and isinstance(first, FileNotFoundError)):
        return Reason.NOT_FOUND
    if status in _FORBIDDEN or (status is None and isinstance(first, PermissionError)):
        return Reason.ACCESS_DENIED
    return Reason.READ_ERROR


def plain_error(error: Exception) -> Exception:
    """FileNotFoundError or PermissionError where that is what it means, else what the client began with.

    So a busy server is tried again, and is not taken for one that does not have the file.
    """
    reason = reason_of(error)
    if reason is Reason.NOT_FOUND:
        return error if isinstance(error, FileNotFoundError) else _meaning(FileNotFoundError, error)
    if reason is Reason.ACCESS_DENIED:
        return error if isinstance(error, PermissionError) else _meaning(PermissionError, error)
    first = causes_of(error)[-1]
    is_disguised = isinstance(error, FileNotFoundError | PermissionError)
    return first if is_disguised and isinstance(first, Exception) else error


def _meaning(kind: type[OSError], error: Exception) -> OSError:
    """With the first cause's text: what hides one says little."""
    first = causes_of(error)[-1]
    found = kind(f"{type(first).__name__}: {first}")
    found.__cause__ = error
    return found
