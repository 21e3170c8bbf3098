"""SIGKILL at random moments, round after round, on one output; after the last round nothing is missing."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.chaos.checks import (
    blameless_victims,
    problems_at_the_end,
    problems_of_verify,
    read_output,
    watched,
)
from tests.chaos.conftest import NUM_VIDEOS
from tests.chaos.corpus import Expected
from tests.chaos.jobs import Driver, end_tree, settings
from tests.chaos.killer import Kind, Round, fight, plan_kinds, plan_round, settle
from tests.chaos.stub_engine import write_model

pytestmark = pytest.mark.chaos

DEATH_SECONDS = 30.0  # of everything that a driver has started
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "20"))
# The first rounds hit each kind, whatever the seed; the others are drawn by lot.
PLANNED = (
    (Kind.WORKER, Kind.DECODE_CHILD, Kind.DRIVER),
    (Kind.DECODE_CHILD, Kind.WORKER, Kind.COORDINATOR),
)


def test_nothing_is_lost_or_doubled_whoever_is_killed(
    seed: int,
    scratch: Path,
    environment: dict[str, str],
    corpus: tuple[Path, Expected],
    say: Callable[[str], None],
) -> None:
    root, expected = corpus
    model = write_model(scratch / "model", seconds_per_video=0.2)
    job = settings(root, scratch / "out", model, {"decoding.timeout_seconds": 12.0})  # one file hangs
    hits: Counter[str] = Counter()
    num_hit = 0
    left: list[psutil.Process] = []
    with watched(str(scratch / "out")) as witness:
        for number in range(ROUNDS):
            result = _round(job, environment, f"{seed}/{number}", number, say)
            hits += result.hits
            num_hit += result.hits.total() > 0
            left += result.left
            assert witness.look() == [], f"after round {number}"
        assert end_tree(left, DEATH_SECONDS) == [], "everything dies with its driver"
        for heal in (False, True):
            with Driver(job, environment, heal=heal) as driver:
                assert driver.wait(300) == 0, driver.tail()
                _assert_closes(driver)
            output = read_output(str(scratch / "out"))
            assert blameless_victims(output, expected, str(root)) == []
        assert witness.look() == []
    say(f"kills: {dict(hits)}, crashes recorded: {_reasons(output.failures)}; {witness.num_looks} looks")
    assert problems_at_the_end(output, expected, str(root)) == []
    assert problems_of_verify(str(scratch / "out")) == []
    assert num_hit >= 0.8 * ROUNDS, "there was work to the last rounds"


def _round(
    job: dict[str, object], environment: dict[str, str], seed: str, number: int, say: Callable[[str], None]
) -> Round:
    chance, began = random.Random(seed), time.monotonic()
    videos = 2 * NUM_VIDEOS // (3 * ROUNDS)
    planned = PLANNED[number] if number < len(PLANNED) else ()
    blows = plan_kinds(chance, planned, videos) if planned else plan_round(chance, videos)
    with Driver({**job, "workers.count": chance.choice((1, 2))}, environment) as driver:
        result = settle(driver, fight(driver, blows, chance))
        driver.patient = chance.random() < 0.5  # else the next run meets what is still dying of this one
    counts = driver.last("progress") or {}
    refused = driver.last("refused")
    say(
        f"round {seed}: {', '.join(blow.kind.value for blow in blows)}; hit {dict(result.hits)}, missed "
        f"{dict(result.missed)}, indexed {counts.get('indexed', 0)}, failed {counts.get('failed', 0)}, "
        f"status {result.exit_status}, {time.monotonic() - began:.1f} s"
    )
    assert not planned or result.hits == Counter(kind.value for kind in planned), driver.tail()
    assert refused is None, f"a killed run must not keep the next one out: {refused}"
    return result


def _assert_closes(driver: Driver) -> None:
    report = driver.last("report")
    assert report is not None, driver.tail()
    assert report["closes"]
    assert report["error"] is None


def _reasons(failures: list[dict[str, object]]) -> dict[object, int]:
    return dict(Counter(row["reason"] for row in failures if not row["is_final"]))
