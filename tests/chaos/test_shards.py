"""Tar shards in an object store: members are read by range, so hardly more bytes move than they have."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.checks import problems_of_verify, read_output
from tests.chaos.corpus import Colour, colour_number, write_good
from tests.chaos.faulty_s3 import FaultyS3, Rates
from tests.chaos.jobs import Driver, clean_environment, settings
from tests.chaos.s3_server import BUCKET, S3Server, credentials
from tests.chaos.stub_engine import colour_of, write_model

pytestmark = pytest.mark.chaos

NUM_SHARDS, NUM_MEMBERS = 3, 40
PADDING_BYTES = 256 * 2**10  # small for a video; smaller ones would make the shards' headers count
MAX_SHARE = 1.2


def test_bytes_fetched_stay_within_a_fifth_of_the_members_size(
    scratch: Path, server: S3Server, say: Callable[[str], None]
) -> None:
    colours, members_bytes = _upload_shards(server, scratch)
    job = settings(f"s3://{BUCKET}/shards/*.tar", f"s3://{BUCKET}/out", write_model(scratch / "model", 0.0))
    with FaultyS3(server.port, 0, Rates(share=0.0)) as proxy:
        environment = clean_environment(scratch, credentials(proxy.url))
        first = _run(job, environment, proxy)
        assert first["counts"]["indexed"] == len(colours)
        fetched = _shard_bytes(proxy)
        say(f"{fetched} bytes fetched for {members_bytes} of members: {fetched / members_bytes:.3f}x")
        assert members_bytes <= fetched <= MAX_SHARE * members_bytes
        proxy.sent_bytes.clear()
        second = _run(job, environment, proxy)
        say(f"second listing: {_shard_bytes(proxy)} bytes of shards")
        assert second["counts"]["skipped_indexed"] == len(colours)
        assert _shard_bytes(proxy) < 0.001 * members_bytes, "the index lies beside the output"
    rows = read_output(f"s3://{BUCKET}/out").rows
    assert {_member(row["uri"]): _near(row["caption"], colours) for row in rows} == colours
    assert problems_of_verify(f"s3://{BUCKET}/out") == []


def _upload_shards(server: S3Server, scratch: Path) -> tuple[dict[str, Colour], int]:
    """Shards of good videos under plain names; name -> colour, and the members' size in bytes."""
    colours, total = {}, 0
    for shard in range(NUM_SHARDS):
        archive = scratch / f"shard-{shard:03}.tar"
        with tarfile.open(archive, "w") as tar:
            for number in range(shard * NUM_MEMBERS, (shard + 1) * NUM_MEMBERS):
                path = scratch / "members" / f"{number:05}.mp4"
                write_good(path, colour_number(number), PADDING_BYTES)
                tar.add(path, path.name)
                colours[path.name] = colour_number(number)
                total += path.stat().st_size
        server.put(BUCKET, f"shards/{archive.name}", archive.read_bytes())
        archive.unlink()
    return colours, total


def _run(job: dict[str, object], environment: dict[str, str], proxy: FaultyS3) -> dict[str, dict[str, int]]:
    with Driver(job, environment) as driver:
        assert driver.wait(240) == 0, driver.tail()
        report = driver.last("report")
    assert report is not None
    return report


def _shard_bytes(proxy: FaultyS3) -> int:
    return sum(number for name, number in proxy.sent_bytes.items() if name.endswith(".tar"))


def _member(uri: str) -> str:
    return uri.removeprefix("tar://").partition("::")[0]


def _near(caption: str, colours: dict[str, Colour]) -> Colour | None:
    seen = colour_of(caption)
    if seen is None:
        return None
    return min(colours.values(), key=lambda one: sum(abs(a - b) for a, b in zip(one, seen, strict=True)))
