"""A reverse proxy in front of an S3 server that fails as networks and stores do, by a seed.

What becomes of a request depends on the seed, its method and path, and how often it was made, so a client
that tries again gets another answer. Every fault is counted, and so is every byte of a body that went out.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree

__all__ = ["Fault", "FaultyS3", "Page", "Pages", "Rates"]

_IN_A_ROW = 2  # faults of one request before it is let through: clients try a few times, not for ever
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}
_SLOW_PIECES = 8


class Fault(str, Enum):
    """What may become of a request."""

    ERROR_500 = "error_500"
    SLOW_DOWN = "slow_down_503"
    RESET_BEFORE = "reset_before"  # the store never sees the request
    ANSWER_LOST = "answer_lost"  # the store has done it, the client cannot know
    STALL = "stall"  # done too, and no answer within the client's time
    SLOW_BODY = "slow_body"
    CUT_BODY = "cut_body"


@dataclass(frozen=True)
class Rates:
    """Share of requests with any fault, and how long slow ones take."""

    share: float = 0.15
    stall_seconds: float = 4.0
    slow_seconds: float = 1.0
    kinds: tuple[Fault, ...] = tuple(Fault)


@dataclass(frozen=True)
class Page:
    """One page of a listing, as the store gave it; tokens are None at the start and at the end."""

    token: str | None
    keys: list[str]
    next_token: str | None


@dataclass(frozen=True)
class Pages:
    """Listings under exactly this prefix have pages of so many keys; each is told before it is sent."""

    prefix: str
    num_keys: int
    tell: Callable[[Page], None]


class FaultyS3:
    """The proxy; a context manager.

    sent_bytes: bytes of bodies that went to clients, by object (bucket/key).
    """

    def __init__(self, upstream_port: int, seed: object, rates: Rates, pages: Pages | None = None) -> None:
        self.faults: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.rates = rates
        self._upstream_port, self._seed, self._pages = upstream_port, seed, pages
        self._made: Counter[tuple[str, str]] = Counter()
        self._row: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fate(self, method: str, path: str) -> Fault | None:
        """What becomes of this request; None: it goes through untouched."""
        with self._lock:
            request = (method, path)
            self._made[request] += 1
            self.requests[method] += 1
            chance = random.Random(f"{self._seed} {method} {path} {self._made[request]}")
            if self._row[request] >= _IN_A_ROW or chance.random() >= self.rates.share:
                self._row[request] = 0
                return None
            self._row[request] += 1
            return chance.choice(self.rates.kinds)

    def note(self, fault: Fault) -> None:
        """A fault has really happened."""
        with self._lock:
            self.faults[fault.value] += 1

    def sent(self, path: str, num_bytes: int) -> None:
        """Bytes of a body go out."""
        with self._lock:
            self.sent_bytes[unquote(path.partition("?")[0]).lstrip("/")] += num_bytes

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """The store's own answer; that to a listing in small pages where there are such."""
        asked = dict(parse_qsl(urlsplit(path).query)) if method == "GET" else {}
        pages = self._pages if (asked.get("list-type"), "max-keys" in asked) == ("2", False) else None
        if pages is None or asked.get("prefix") != pages.prefix:
            return self._ask(method, path, headers, body)
        status, answered, content = self._ask(method, f"{path}&max-keys={pages.num_keys}", headers, body)
        if status == 200:
            pages.tell(_page(asked.get("continuation-token"), content))
        return status, answered, content

    def _ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream_port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def _page(token: str | None, content: bytes) -> Page:
    document = ElementTree.fromstring(content)
    space = document.tag.partition("}")[0] + "}" if "}" in document.tag else ""
    keys = [unquote(found.text or "") for found in document.iterfind(f"{space}Contents/{space}Key")]
    return Page(token, keys, document.findtext(f"{space}NextContinuationToken") or None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultyS3

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what this is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _serve(self) -> None:
        proxy, body = self.server.proxy, self._read_body()
        fault = proxy.fate(self.command, self.path)
        if fault in (Fault.ERROR_500, Fault.SLOW_DOWN):
            proxy.note(fault)
            self._refuse(fault)
            return
        if fault is Fault.RESET_BEFORE:
            proxy.note(fault)
            self._reset()
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        status, answered, content = proxy.forward(self.command, self.path, headers, body)
        if fault is Fault.ANSWER_LOST:
            proxy.note(fault)
            self._reset()
        elif fault is Fault.STALL:
            proxy.note(fault)
            time.sleep(proxy.rates.stall_seconds)
            self._reset()
        else:
            self._answer(status, answered, content, fault)

    def _read_body(self) -> bytes | None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length) if length else None

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, fault: Fault | None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", "0")
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command == "HEAD" or not content:
            return
        if fault is Fault.CUT_BODY and len(content) > 1:
            self.server.proxy.note(fault)
            self._send(content[: len(content) // 2])
            self._reset()
        elif fault is Fault.SLOW_BODY:
            self.server.proxy.note(fault)
            step = max(1, len(content) // _SLOW_PIECES)
            for at in range(0, len(content), step):
                self._send(content[at : at + step])
                time.sleep(self.server.proxy.rates.slow_seconds / _SLOW_PIECES)
        else:
            self._send(content)

    def _send(self, content: bytes) -> None:
        self.server.proxy.sent(self.path, len(content))  # first: whoever has read it all finds it counted
        self.wfile.write(content)
        self.wfile.flush()

    def _refuse(self, fault: Fault) -> None:
        status, code = (500, "InternalError") if fault is Fault.ERROR_500 else (503, "SlowDown")
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>chaos</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        """Close with a RST: what was sent and not yet read is lost."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closed here and now: the server's own way would send an orderly FIN first.
        self.wfile.close()
        self.rfile.close()
        self.connection.close()
        raise ConnectionAbortedError("as planned")
