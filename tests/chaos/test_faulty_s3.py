"""The proxy does what it says: each fault reaches a client as it would from a network, and is counted."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest

from tests.chaos.faulty_s3 import Fault, FaultyS3, Page, Pages, Rates
from tests.chaos.s3_server import S3Server, s3_server

pytestmark = pytest.mark.chaos

# The server looks who signed, not how well.
SIGNED = (
    "AWS4-HMAC-SHA256 Credential=chaos/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)
BODY = bytes(range(256)) * 16


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        running.create_bucket("bucket")
        running.put("bucket", "x y", BODY)
        yield running


def ask(
    proxy: FaultyS3, method: str = "GET", path: str = "/bucket/x%20y", body: bytes | None = None
) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=10)
    try:
        connection.request(method, path, body, {"Authorization": SIGNED})
        answer = connection.getresponse()
        return f"{answer.status} ".encode() + answer.read()
    finally:
        connection.close()


def only(server: S3Server, fault: Fault) -> FaultyS3:
    return FaultyS3(server.port, 1, Rates(share=1.0, stall_seconds=0.2, slow_seconds=0.4, kinds=(fault,)))


def test_untouched_requests_pass_and_bytes_are_counted(server: S3Server) -> None:
    with FaultyS3(server.port, 1, Rates(share=0.0)) as proxy:
        assert ask(proxy) == b"200 " + BODY
        assert proxy.sent_bytes["bucket/x y"] == len(BODY)
        assert not proxy.faults


@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.SLOW_DOWN])
def test_refusals(server: S3Server, fault: Fault) -> None:
    with only(server, fault) as proxy:
        assert ask(proxy).startswith((b"500 ", b"503 "))
        assert proxy.faults == {fault.value: 1}


@pytest.mark.parametrize("fault", [Fault.RESET_BEFORE, Fault.ANSWER_LOST, Fault.STALL])
def test_connection_resets(server: S3Server, fault: Fault) -> None:
    key = f"new-{fault.value}"
    with only(server, fault) as proxy, pytest.raises(ConnectionError):
        ask(proxy, "PUT", f"/bucket/{key}", b"data")
    assert proxy.faults == {fault.value: 1}
    with FaultyS3(server.port, 1, Rates(share=0.0)) as clear:
        there = ask(clear, path=f"/bucket/{key}").startswith(b"200")
    assert there == (fault is not Fault.RESET_BEFORE), "an answer that is lost is a request that was done"


def test_cut_body_is_shorter_than_it_says(server: S3Server) -> None:
    with only(server, Fault.CUT_BODY) as proxy, pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask(proxy)
    assert proxy.sent_bytes["bucket/x y"] == len(BODY) // 2


def test_slow_body_arrives_whole(server: S3Server) -> None:
    began = time.monotonic()
    with only(server, Fault.SLOW_BODY) as proxy:
        assert ask(proxy) == b"200 " + BODY
    assert time.monotonic() - began > 0.3


def test_third_try_of_a_request_always_passes(server: S3Server) -> None:
    with only(server, Fault.ERROR_500) as proxy:
        assert [ask(proxy)[:3] for _ in range(3)] == [b"500", b"500", b"200"]


def test_one_seed_gives_one_sequence(server: S3Server) -> None:
    def fates(seed: int) -> list[Fault | None]:
        proxy = FaultyS3(server.port, seed, Rates(share=0.5))
        with proxy:
            return [proxy.fate("GET", f"/bucket/{number}") for number in range(40)]

    assert fates(7) == fates(7)
    assert fates(7) != fates(8)


def test_listings_of_one_prefix_come_in_small_pages_that_are_told(server: S3Server) -> None:
    names = [f"many/{number} \N{SNOWMAN}" for number in range(5)]
    for name in [*names, "many-others"]:
        server.put("bucket", name, b"")
    told: list[Page] = []
    query = "/bucket?list-type=2&encoding-type=url&prefix="
    with FaultyS3(server.port, 1, Rates(share=0.0), Pages("many/", 2, told.append)) as proxy:
        ask(proxy, path=f"{query}many")
        ask(proxy, path=f"{query}many%2F&max-keys=1")
        assert told == [], "another prefix, and a look whether anything is there"
        ask(proxy, path=f"{query}many%2F")
        while (token := told[-1].next_token) is not None:
            ask(proxy, path=f"{query}many%2F&continuation-token={quote(token, safe='')}")
    assert [page.keys for page in told] == [names[:2], names[2:4], names[4:]]
    assert [page.token for page in told] == [None, told[0].next_token, told[1].next_token]
