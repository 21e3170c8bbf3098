"""Two runs started on one fresh output at one moment: one has it, the other is told who has it. Every time.

The corpus is one file that is too large, so that a run needs no worker: what is tested is who may write. The
run that got the output waits in its first report of progress until the other one has ended; without that, a
slow second driver could come after the end of the first and rightly find everything done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.checks import problems_of_verify, read_output
from tests.chaos.clusters import ray_cluster
from tests.chaos.jobs import Driver, clean_environment, settings, wait_until
from tests.chaos.s3_server import BUCKET, S3Server, credentials
from tests.chaos.stub_engine import write_model

pytestmark = pytest.mark.chaos

TRIES = int(os.environ.get("CHAOS_TRIES", "50"))
TOKEN = {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
LEAD_SECONDS = 0.05  # for both to have read their request


def test_one_of_two_runs_locally(scratch: Path, say: Callable[[str], None]) -> None:
    _race_all(scratch, clean_environment(scratch, TOKEN), str(scratch / "out"), say)


def test_one_of_two_runs_on_s3(scratch: Path, server: S3Server, say: Callable[[str], None]) -> None:
    environment = clean_environment(scratch, {**TOKEN, **credentials(server.url)})
    _race_all(scratch, environment, f"s3://{BUCKET}/out", say)


def _race_all(scratch: Path, environment: dict[str, str], output: str, say: Callable[[str], None]) -> None:
    (scratch / "videos").mkdir()
    (scratch / "videos" / "large.mp4").write_bytes(bytes(1000))
    job = settings(scratch / "videos", output, write_model(scratch / "model", 0.0))
    job["corpus.max_video_bytes"] = 999
    began, winners = time.monotonic(), [0, 0]
    with ExitStack() as stack:
        cluster = stack.enter_context(ray_cluster(environment, num_cpus=2))
        command = [sys.executable, "-m", "tests.chaos.racer", cluster.address]
        racers = [stack.enter_context(Driver({}, environment, command=command)) for _ in range(2)]
        for racer in racers:
            racer.say(json.dumps({"values": job}))
        wait_until(lambda: all(racer.last("joined") for racer in racers), 180, "both drivers have joined")
        for number in range(TRIES):
            uri = f"{output}/{number:02}"
            winners[_race(racers, {**job, "output.uri": uri}, number)] += 1
            _check(uri)
    say(f"{TRIES} of {TRIES}; won by the first {winners[0]}, by the second {winners[1]}; "
        f"{(time.monotonic() - began) / TRIES:.2f} s each")  # fmt: skip


def _race(racers: list[Driver], job: dict[str, object], number: int) -> int:
    """Who won; it is an error if not exactly one did."""
    for racer in racers:
        racer.events.clear()
    request = json.dumps({"values": job, "at": time.time() + LEAD_SECONDS})
    for racer in racers if number % 2 else reversed(racers):
        racer.say(request)
    wait_until(lambda: all(racer.events for racer in racers), 120, f"try {number}: both have decided")
    decided = [racer.events[0]["event"] for racer in racers]
    assert sorted(decided) == ["holds", "refused"], f"try {number}: {[racer.events for racer in racers]}"
    winner = decided.index("holds")
    refusal = racers[1 - winner].events[0]["text"]
    racers[winner].say("go on")
    wait_until(lambda: len(racers[winner].events) > 1, 120, f"try {number}: it ends", racers[winner])
    report = racers[winner].events[1]
    assert (report["event"], report.get("exit_status")) == ("report", 0), report
    assert report["run_id"] in refusal, "the refusal names the run that holds the output"
    assert report["counts"]["failed"] == 1
    return winner


def _check(uri: str) -> None:
    output = read_output(uri)
    assert [row["reason"] for row in output.final] == ["too_large"]
    assert problems_of_verify(uri) == []
