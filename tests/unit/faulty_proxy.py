"""An S3 server that fails: moto behind a small HTTP proxy with seeded faults."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

__all__ = ["FAULTS", "FaultyProxy", "s3_server"]

FAULTS = ("503", "500", "slow down", "reset", "answer lost", "body cut", "slow body")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}
_SLOW_SECONDS = 0.1
_STALL_SECONDS = 3.0
_DENIED = b"<Error><Code>AccessDenied</Code><Message>not yours</Message></Error>"


class FaultyProxy:
    """Forwards to an S3 server and, now and then, does not.

    rate: share of requests that meet a fault, at random but seeded; may be changed at any time. ``plan``:
    faults for the next requests, used up one by one before chance decides ("" for none; also "denied" and
    "stall"). ``only``: methods that may meet a fault. A request that ends in "answer lost" has been carried
    out. At most ``in_a_row`` faults follow each other on one method and path, so that a client that tries
    often enough gets through.

    Conditional PUTs go through one at a time: moto looks and then writes, where S3 does both in one step.

    faults: how often each was met. requests: how many by method. body_bytes: sent in answers to GET.
    """

    def __init__(self, target: str, seed: int = 0, rate: float = 0.0, in_a_row: int = 4) -> None:
        self.target, self.rate, self.in_a_row = target, rate, in_a_row
        self.plan: list[str] = []
        self.only: Sequence[str] = ("GET", "PUT", "POST", "DELETE", "HEAD")
        self.kinds: Sequence[str] = FAULTS
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.body_bytes = 0
        self._random = random.Random(seed)
        self._state, self._conditional = threading.Lock(), threading.Lock()
        self._row: Counter[tuple[str, str]] = Counter()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self, method: str, path: str) -> str:
        """What happens to the next request; "" for nothing."""
        with self._state:
            self.requests[method] += 1
            if method not in self.only:
                return ""
            if self.plan:
                chosen = self.plan.pop(0)
            else:
                hit = self._random.random() < self.rate and self._row[(method, path)] < self.in_a_row
                chosen = self._random.choice(list(self.kinds)) if hit else ""
            self._row[(method, path)] = self._row[(method, path)] + 1 if chosen else 0
            if chosen:
                self.faults[chosen] += 1
            return chosen

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
        """The server's own answer: status, headers, body."""
        if any(name.lower() == "if-none-match" for name in headers):
            with self._conditional:
                return self._forward(method, path, headers, body)
        return self._forward(method, path, headers, body)

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, Any, bytes]:
        parts = urlsplit(self.target)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if method == "GET":
            with self._state:
                self.body_bytes += len(data)
        return answer.status, answer.headers, data


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the acknowledgement of its headers

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def _handle(self) -> None:
        proxy: FaultyProxy = self.server.proxy  # type: ignore[attr-defined]
        body = self._body()
        fault = proxy.fault(self.command, self.path)
        if fault in ("503", "500", "slow down"):
            return self._refuse(fault)
        if fault == "denied":
            return self._answer(403, {}, _DENIED, "")
        if fault in ("reset", "stall"):
            time.sleep(_STALL_SECONDS if fault == "stall" else 0.0)
            return self._hang_up()
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        status, answered, data = proxy.forward(self.command, self.path, headers, body)
        if fault == "answer lost":
            return self._hang_up()
        self._answer(status, answered, data, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _refuse(self, fault: str) -> None:
        code = {"slow down": "SlowDown", "500": "InternalError", "503": "ServiceUnavailable"}[fault]
        data = f"<Error><Code>{code}</Code><Message>made to fail</Message></Error>".encode()
        self._answer(500 if fault == "500" else 503, {"Content-Type": "application/xml"}, data, "")

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, headers: Any, data: bytes, fault: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(data) // 2
        if fault in ("body cut", "slow body"):
            self.wfile.write(data[:half])
            self.wfile.flush()
            if fault == "body cut":
                return self._hang_up()
            time.sleep(_SLOW_SECONDS)
            data = data[half:]
        self.wfile.write(data)


@contextmanager
def s3_server(seed: int = 0, rate: float = 0.0) -> Iterator[FaultyProxy]:
    """A running S3 server (moto) behind a FaultyProxy; its buckets are gone afterwards.

    Clients find it by ``AWS_ENDPOINT_URL=proxy.url``, with any key and secret.
    """
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with FaultyProxy(f"http://{host}:{port}", seed, rate) as proxy:
            yield proxy
    finally:
        server.stop()
