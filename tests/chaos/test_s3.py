"""Input and output in a store that fails in every way it can, while the corpus changes under the listing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.checks import (
    Output,
    blameless_victims,
    problems_at_any_time,
    problems_at_the_end,
    problems_of_verify,
    read_output,
)
from tests.chaos.corpus import Expected, colour_number, write_good
from tests.chaos.faulty_s3 import Fault, FaultyS3, Rates
from tests.chaos.jobs import Driver, clean_environment, end_tree, settings
from tests.chaos.killer import Blow, Kind, fight, settle
from tests.chaos.s3_server import BUCKET, S3Server, credentials, key_of
from tests.chaos.stub_engine import write_model

pytestmark = pytest.mark.chaos

CORPUS, OUTPUT = f"s3://{BUCKET}/videos", f"s3://{BUCKET}/out"
READ_SECONDS = 3.0  # a client's patience; stalls last longer
NUM_LATE = NUM_GONE = 6
MAX_RUNS = 6  # that a store as bad as this may break, each going on where the last one ended


def test_nothing_is_lost_or_doubled_on_a_failing_store(
    seed: int,
    scratch: Path,
    corpus: tuple[Path, Expected],
    server: S3Server,
    say: Callable[[str], None],
) -> None:
    root, listed = corpus
    server.upload(BUCKET, "videos", root)
    changes = _Changes(server, scratch, listed)
    expected = changes.expected
    model = write_model(scratch / "model", seconds_per_video=0.02)
    job = settings(CORPUS, OUTPUT, model, {"decoding.processes": 2, "output.part_seconds": 1.0})
    rates = Rates(share=0.12, stall_seconds=READ_SECONDS + 1.0)
    with FaultyS3(server.port, seed, rates, on_list=changes) as proxy:
        environment = clean_environment(scratch, credentials(proxy.url, READ_SECONDS))
        for kind in (Kind.WORKER, Kind.DRIVER):
            _killed_run(job, environment, kind, f"{seed}/{kind.value}", say)
            assert problems_at_any_time(_read()) == []
        _run_to_the_end(job, environment, say)
        _run_to_the_end(job, environment, say, heal=True)
    say(f"faults: {dict(proxy.faults)} in {proxy.requests.total()} requests")
    assert set(proxy.faults) == {fault.value for fault in Fault}, "every kind of fault has happened"
    output = _read()
    assert blameless_victims(output, expected, CORPUS) == []
    assert problems_at_the_end(output, expected, CORPUS) == []
    assert problems_of_verify(OUTPUT) == []


class _Changes:
    """Objects that come and go as soon as the listing has begun."""

    def __init__(self, server: S3Server, scratch: Path, listed: Expected) -> None:
        self._server, self._scratch, self._done = server, scratch, False
        keys = {key_of(name): colour for name, colour in listed.good.items()}
        self._gone = sorted(keys)[:: len(keys) // NUM_GONE][:NUM_GONE]
        self._late = {f"{where}/late{n}.mp4": colour_number(330 + n) for n, where in enumerate("AZaz09")}
        good = {name: colour for name, colour in keys.items() if name not in self._gone}
        maybe = {name: keys[name] for name in self._gone}
        hostile = {key_of(name): allowed for name, allowed in listed.hostile.items()}
        self.expected = Expected({**good, **self._late}, hostile, maybe)

    def __call__(self, _number: int) -> None:
        if self._done:
            return
        self._done = True
        for name, colour in self._late.items():
            path = self._scratch / "late" / name
            write_good(path, colour)
            self._server.put(BUCKET, f"videos/{name}", path.read_bytes())
        for name in self._gone:
            self._server.delete(BUCKET, f"videos/{name}")


def _killed_run(
    job: dict[str, object], environment: dict[str, str], kind: Kind, seed: str, say: Callable[[str], None]
) -> None:
    chance, began = random.Random(seed), time.monotonic()
    blow = Blow(kind, chance.randint(5, 60), chance.uniform(0, 1.0))
    with Driver(job, environment) as driver:
        result = fight(driver, (blow,), chance)
        if kind is Kind.WORKER:
            result = fight(driver, (Blow(Kind.COORDINATOR, blow.after_settled, 6.0),), chance)
        result = settle(driver, result)
        counts = driver.last("progress") or {}
    say(
        f"killed {kind.value} after {counts.get('indexed', 0)} rows, {time.monotonic() - began:.1f} s; "
        f"{driver.last('broken') or ''}"
    )
    assert end_tree(result.left, 30.0) == []


def _run_to_the_end(
    job: dict[str, object], environment: dict[str, str], say: Callable[[str], None], heal: bool = False
) -> None:
    """As a scheduler would: again until it says that every input is accounted for."""
    for _ in range(MAX_RUNS):
        began = time.monotonic()
        with Driver(job, environment, heal=heal) as driver:
            status = driver.wait(300)
            said = driver.last("report") or driver.last("broken") or driver.last("refused") or {}
            say(f"run ended with {status} after {time.monotonic() - began:.1f} s: {said}")
            assert driver.last("refused") is None, "a failing store is no mistake of the user's"
        assert problems_at_any_time(_read()) == []
        if status == 0:
            return
    pytest.fail(f"no run out of {MAX_RUNS} came to its end")


def _read() -> Output:
    return read_output(OUTPUT)
