"""What lies behind an error of a store: clients wrap one another's, and tell the status each in its way."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["causes_of", "status_of"]

_MOST_CAUSES = 10


def causes_of(error: BaseException) -> list[BaseException]:
    """The error, what it was raised from, and so on, down to what the client began with; at most ten."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and len(chain) < _MOST_CAUSES:
        chain.append(cause)
    return chain


def status_of(error: BaseException) -> int | None:
    """The status, 400 to 599, that a server answered with; None where no cause of the error tells one."""
    statuses = map(_status_told_by, causes_of(error))
    return next((status for status in statuses if status is not None), None)


def _status_told_by(cause: BaseException) -> int | None:
    numbers = (told for told in _told_by(cause) if isinstance(told, int) and 400 <= told < 600)
    return next(numbers, None)


def _told_by(cause: BaseException) -> Iterator[object]:
    """Where the clients that we know put the status, one after the other: aiohttp warns of its last one."""
    if type(cause) is OSError and str(cause).startswith("Forbidden: "):
        yield 403  # gcsfs says so in words only
    response = getattr(cause, "response", None)
    if isinstance(response, dict):  # botocore
        yield response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    yield getattr(response, "status_code", None)  # the hub
    for name in ("status", "status_code", "code"):  # aiohttp, azure, gcsfs
        yield getattr(cause, name, None)
