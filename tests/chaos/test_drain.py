"""A run told to stop commits what it has, gives back the rest and its output, and says how to resume."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.output.lock import read_holder
from pipeline.stores.storage import Storage
from tests import FLASHVID
from tests.chaos.checks import problems_at_the_end, problems_of_verify, read_output
from tests.chaos.corpus import write_corpus
from tests.chaos.jobs import Driver, end_tree, settings, title_of, wait_until
from tests.chaos.stub_engine import write_model

pytestmark = pytest.mark.chaos

INTERRUPTED = 130
DRAIN_SECONDS = 4.0
MORE_SECONDS = 20.0  # to commit, on a busy machine
EXIT_SECONDS = 90.0  # beyond the end of the run: the actors' and Ray's own
HELD_SECONDS = 4.0
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
    return [str(FLASHVID), "index", str(scratch / "job.yaml")]


def end_of(driver: Driver, scratch: Path, told_at: datetime, most_seconds: float) -> int:
    """The exit status. The run's report must be of at most so long after the signal; nothing may be left."""
    status = driver.wait(most_seconds + EXIT_SECONDS)
    said_at = [json.loads(path.read_text())["finished_at"] for path in (scratch / "out/_runs").glob("*.json")]
    for ended_at in map(datetime.fromisoformat, (text.replace("Z", "+00:00") for text in said_at)):
        seconds = (ended_at - told_at).total_seconds()
        assert seconds < most_seconds, f"took {seconds:.1f} s: {driver.tail()}"
    assert end_tree(driver.descendants(), 20.0) == []
    return status


def tell(driver: Driver, number: signal.Signals, *, whole_group: bool = False) -> datetime:
    """Send a signal; when."""
    driver.descendants()
    told_at = datetime.now(timezone.utc)
    driver.signal(number, whole_group=whole_group)
    return told_at


def is_answering(scratch: Path) -> bool:
    """Whether an engine has begun with a video."""
    return (scratch / "model" / ".answering").exists()


def is_rays(process: psutil.Process) -> bool:
    """Whether it is one that Ray cannot do without."""
    return any(name in title_of(process).partition(" ")[0] for name in ("gcs_server", "raylet"))


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
    """To the whole group of processes, as ``timeout`` sends it; videos in windows, each still one row.

    The workers are held at their videos for some seconds after the signal, which Ray has to outlive.
    """
    expected = write_corpus(scratch / "videos", num_videos=80, num_hostile=4)
    unbounded = {"output.part_rows": 100_000, "output.part_seconds": 10_000.0}
    windows = {"windows.length_seconds": 0.5, "windows.summary.max_new_tokens": 32}
    job = job_of(scratch, 0.05, **unbounded, **windows, **{"limits.drain_seconds": 5 * DRAIN_SECONDS})
    hold = scratch / "model" / ".hold"
    with Driver(job, environment) as driver:
        wait_until(lambda: driver.settled >= 10, 240, "some videos are done", driver)
        assert not read_output(str(scratch / "out")).rows, "nothing is committed before the end"
        of_ray = {
            title_of(process): os.getpgid(process.pid) for process in driver.descendants() if is_rays(process)
        }
        assert len(of_ray) >= 2
        assert driver.pid not in of_ray.values(), "the signal would end Ray as well"
        hold.touch()
        told_at = tell(driver, signal.SIGTERM, whole_group=True)
        time.sleep(HELD_SECONDS)
        hold.unlink()
        assert end_of(driver, scratch, told_at, 5 * DRAIN_SECONDS + MORE_SECONDS) == INTERRUPTED
        report = driver.last("report")
    assert report is not None
    assert report["exit_status"] == INTERRUPTED
    output = read_output(str(scratch / "out"))
    assert len(output.rows) == report["counts"]["indexed"]
    assert len(output.rows) + len(output.final) >= 10
    assert max(len(row["segments"]) for row in output.rows) > 1
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
        wait_until(lambda: is_answering(scratch), 240, "a worker answers", driver)
        told_at = tell(driver, signal.SIGINT)
        assert end_of(driver, scratch, told_at, DRAIN_SECONDS + MORE_SECONDS) == INTERRUPTED
        said = "\n".join(driver.lines)
    assert "start the same command again" in said, said
    assert was_released(scratch)
    output = read_output(str(scratch / "out"))
    assert (output.rows, output.failures) == ([], []), "who stops a run has proved nothing about its videos"


def test_sigterm_while_it_starts_releases_the_output(scratch: Path, environment: dict[str, str]) -> None:
    write_corpus(scratch / "videos", num_videos=12, num_hostile=0)
    job = job_of(scratch, 0.1)
    with Driver(job, environment) as driver:
        wait_until(lambda: has_lock(scratch), 240, "the output is taken", driver)
        told_at = tell(driver, signal.SIGTERM)
        assert end_of(driver, scratch, told_at, DRAIN_SECONDS + MORE_SECONDS) == INTERRUPTED
    assert was_released(scratch)
    assert read_output(str(scratch / "out")).rows == []


def test_second_ctrl_c_does_not_wait(scratch: Path, environment: dict[str, str]) -> None:
    write_corpus(scratch / "videos", num_videos=12, num_hostile=0)
    job = job_of(scratch, ENDLESS_SECONDS, **{"limits.drain_seconds": ENDLESS_SECONDS})
    with Driver({}, environment, command=command(scratch, job)) as driver:
        wait_until(lambda: is_answering(scratch), 240, "a worker answers", driver)
        tell(driver, signal.SIGINT)
        time.sleep(3.0)
        assert driver.running, "the first one waits for what is being worked on"
        told_at = tell(driver, signal.SIGINT)
        assert end_of(driver, scratch, told_at, MORE_SECONDS) == INTERRUPTED
    assert is_free(scratch)
