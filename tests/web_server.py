"""Web servers for tests, on a free port of this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

__all__ = ["served", "served_folder"]


class _Quiet:
    """Before a handler: it writes no line for each request."""

    def log_message(self, *_: Any) -> None: ...


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away is no news
            super().handle_error(request, client_address)


@contextmanager
def served(handler: type[BaseHTTPRequestHandler], **options: Any) -> Iterator[str]:
    """The address, without a slash at its end, of a server that is gone when the ``with`` ends."""
    quiet = type(handler.__name__, (_Quiet, handler), {})
    with _Server(("127.0.0.1", 0), partial(quiet, **options)) as server:
        thread = Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def served_folder(folder: Path) -> AbstractContextManager[str]:
    """The same with the files of a folder, and a page of links for each folder in it."""
    return served(SimpleHTTPRequestHandler, directory=str(folder))
