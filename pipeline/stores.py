"""Stores as the inputs need them: opened, asked again while they are busy, their errors told apart.

Clients wrap one another's errors, and some call every failure "not found".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pipeline.errors import Reason
from pipeline.filesystems import open_single
from pipeline.retrying import RETRY_SECONDS, retry

__all__ = ["ask_store", "content_version", "open_store", "plain_error", "reason_of"]

_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "blob_id", "xet_hash")  # the last two: hf
_S3 = ("s3://", "s3a://")
_GONE = frozenset({404, 410})
_FORBIDDEN = frozenset({401, 403})


def open_store(uri: str) -> tuple[Any, str]:
    """The filesystem of a uri and the path on it; raises as ``open_single``.

    s3fs keeps no listings: they would hold a large bucket in memory, and answer with what was there before.
    """
    return open_single(uri, {"use_listings_cache": False} if uri.startswith(_S3) else {})


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
    chain = _chain(error)
    status = next((status for status in map(_status_of, chain) if status is not None), None)
    if status in _GONE or (status is None and isinstance(chain[-1], FileNotFoundError)):
        return Reason.NOT_FOUND
    if status in _FORBIDDEN or (status is None and isinstance(chain[-1], PermissionError)):
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
    first = _chain(error)[-1]
    is_disguised = isinstance(error, FileNotFoundError | PermissionError)
    return first if is_disguised and isinstance(first, Exception) else error


def _meaning(kind: type[OSError], error: Exception) -> OSError:
    """With the first cause's text: what hides one says little."""
    first = _chain(error)[-1]
    found = kind(f"{type(first).__name__}: {first}")
    found.__cause__ = error
    return found


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and len(chain) < 10:
        chain.append(cause)
    return chain


def _status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of aiohttp, botocore, azure, gcsfs or the hub, or of that shape."""
    response = getattr(error, "response", None)
    status: Any
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(response, "status_code", None)
        status = status or getattr(error, "status_code", None) or getattr(error, "code", None)
    if type(error) is OSError and str(error).startswith("Forbidden: "):
        return 403  # gcsfs says so in words only
    return status if isinstance(status, int) and 100 <= status < 600 else None
