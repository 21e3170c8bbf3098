"""A run told to stop commits what it has, gives back the rest and its output, and says how to resume."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.lock import read_holder
from pipeline.storage import Storage
from tests.chaos.checks import problems_at_the_end, problems_of_verify, read_output
from tests.chaos.corpus import write_corpus
from tests.chaos.jobs import Driver, end_tree, settings, wait_until
from tests.chaos.killer import Kind, find
from tests.chaos.stub_engine import write_model

pytestmark = pytest.mark.chaos

INTERRUPTED = 130
DRAIN_SECONDS = 4.0
MORE_SECONDS = 20.0  # to commit, to end the actors and Ray, on a busy machine
ENDLESS_SECONDS = 600.0


def job_of(scratch: Path, seconds_per_video: float, **more: object) -> dict[str, object]:
    model = write_model(scratch / "model", seconds_per_video)
    drain = {"limits.drain_seconds": DRAIN_SECONDS, **more}
    return settings(scratch / "videos", scratch / "out", model, drain)


def command(scratch: Path, job: dict[str, object]) -> list[str]:
    """``flashvid index`` of this job."""
    nested: dict[str, dict[str, Any]] = {}
    for key, value in job.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    (scratch / "job.yaml").write_text(json.dumps(nested), encoding="utf-8")  # JSON is YAML
    return [sys.executable, "-m", "pipeline.cli", "index", str(scratch / "job.yaml")]


def end_of(driver: Driver, began: float, most_seconds: float) -> int:
    """The exit status; nothing may be left of the run, and nobody may hold its output."""
    status = driver.wait(most_seconds + 60)
    seconds = time.monotonic() - began
    assert seconds < most_seconds, f"took {seconds:.1f} s: {driver.tail()}"
    assert end_tree(driver.descendants(), 20.0) == []
    return status


def is_free(scratch: Path) -> bool:
    return read_holder(Storage(str(scratch / "out"))) is None


def has_lock(scratch: Path) -> bool:
    return any((scratch / "out" / "_lock").glob("*.json"))


def was_released(scratch: Path) -> bool:
    newest = max((scratch / "out" / "_lock").glob("*.json"))
    return bool(json.loads(newest.read_text())["released"])


def test_sigterm_in_the_middle_loses_nothing_and_the_next_run_goes_on(
    scratch: Path, environment: dict[str, str], say: Callable[[str], None]
) -> None:
    expected = write_corpus(scratch / "videos", num_videos=80, num_hostile=4)
    unbounded = {"output.part_rows": 100_000, "output.part_seconds": 10_000.0}
    job = job_of(scratch, 0.1, **unbounded)
    with Driver(job, environment) as driver:
        wait_until(lambda: driver.settled >= 10, 120, "some videos are done")
        assert not read_output(str(scratch / "out")).rows, "nothing is committed before the end"
        driver.descendants()
        began = time.monotonic()
        driver.signal(signal.SIGTERM)
        assert end_of(driver, began, DRAIN_SECONDS + MORE_SECONDS) == INTERRUPTED
        report = driver.last("report")
    assert report is not None
    assert report["exit_status"] == INTERRUPTED
    output = read_output(str(scratch / "out"))
    assert len(output.rows) == report["counts"]["indexed"]
    assert len(output.rows) + len(output.final) >= 10
    assert was_released(scratch)
    with Driver(job, environment) as driver:
        assert driver.wait(240) == 0, driver.tail()
        again = driver.last("report")
    assert again is not None
    assert again["counts"]["skipped_indexed"] == len(output.rows)
    say(f"stopped after {len(output.rows)} rows, {again['counts']['indexed']} more in the next run")
    assert problems_at_the_end(read_output(str(scratch / "out")), expected, str(scratch / "videos")) == []
    assert problems_of_verify(str(scratch / "out")) == []


def test_ctrl_c_gives_back_what_cannot_be_finished_and_says_how_to_resume(
    scratch: Path, environment: dict[str, str]
) -> None:
    write_corpus(scratch / "videos", num_videos=12, num_hostile=0)
    job = job_of(scratch, ENDLESS_SECONDS)
    with Driver({}, environment, command=command(scratch, job)) as driver:
        wait_until(lambda: find(driver, Kind.DECODE_CHILD), 120, "a worker decodes")
        time.sleep(3.0)
        began = time.monotonic()
        driver.signal(signal.SIGINT)
        assert end_of(driver, began, DRAIN_SECONDS + MORE_SECONDS) == INTERRUPTED
        said = "\n".join(driver.lines)
    assert "start the same command again" in said, said
    assert was_released(scratch)
    output = read_output(str(scratch / "out"))
    assert (output.rows, output.failures) == ([], []), "who stops a run has proved nothing about its videos"


def test_sigterm_while_it_starts_releases_the_output(scratch: Path, environment: dict[str, str]) -> None:
    write_corpus(scratch / "videos", num_videos=12, num_hostile=0)
    job = job_of(scratch, 0.1)
    with Driver(job, environment) as driver:
        wait_until(lambda: has_lock(scratch), 120, "the output is taken")
        driver.descendants()
        began = time.monotonic()
        driver.signal(signal.SIGTERM)
        assert end_of(driver, began, DRAIN_SECONDS + MORE_SECONDS) == INTERRUPTED
    assert was_released(scratch)
    assert read_output(str(scratch / "out")).rows == []


def test_second_ctrl_c_does_not_wait(scratch: Path, environment: dict[str, str]) -> None:
    write_corpus(scratch / "videos", num_videos=12, num_hostile=0)
    job = job_of(scratch, ENDLESS_SECONDS, **{"limits.drain_seconds": ENDLESS_SECONDS})
    with Driver({}, environment, command=command(scratch, job)) as driver:
        wait_until(lambda: find(driver, Kind.DECODE_CHILD), 120, "a worker decodes")
        time.sleep(3.0)
        began = time.monotonic()
        driver.signal(signal.SIGINT)
        time.sleep(1.5)
        assert driver.running, "the first one waits for what is being worked on"
        driver.signal(signal.SIGINT)
        assert end_of(driver, began, MORE_SECONDS) == INTERRUPTED
    assert is_free(scratch)
