"""A node with a busy worker is gone from one moment to the next; the run completes on what is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.chaos.checks import problems_at_the_end, problems_of_verify, read_output
from tests.chaos.clusters import ray_cluster
from tests.chaos.corpus import write_corpus
from tests.chaos.jobs import Driver, settings, title_of, wait_until
from tests.chaos.stub_engine import write_model

pytestmark = pytest.mark.chaos

TOKEN = {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


def test_removed_node_and_one_that_comes_later(
    scratch: Path, environment: dict[str, str], say: Callable[[str], None]
) -> None:
    expected = write_corpus(scratch / "videos", num_videos=120, num_hostile=6)
    model = write_model(scratch / "model", 0.2)
    job = settings(scratch / "videos", scratch / "out", model)
    environment = {**environment, **TOKEN}
    with ray_cluster(environment, num_cpus=1) as cluster:
        second = cluster.add(num_cpus=1)
        with Driver({**job, "ray.address": cluster.address}, environment) as driver:
            wait_until(lambda: _working(driver) == 2, 240, "both workers are ready", driver)
            settled = driver.settled
            wait_until(lambda: driver.settled > settled + 4, 120, "they work", driver)
            assert _workers_below(cluster.raylets[second]) == 1, "one worker of two is on the second node"
            cluster.remove(second)
            at_removal = driver.settled
            wait_until(lambda: driver.settled > at_removal + 8, 180, "the rest goes on", driver)
            (model / ".hold").touch()  # or all would be done before the new node is there
            third = cluster.add(num_cpus=1)
            wait_until(
                lambda: _workers_below(cluster.raylets[third]) == 1, 180, "the new node is used", driver
            )
            (model / ".hold").unlink()
            assert driver.wait(240) == 0, driver.tail()
    report = driver.last("report")
    assert report is not None
    assert report["closes"]
    output = read_output(str(scratch / "out"))
    crashes = [row for row in output.failures if row["reason"] == "crashed_worker"]
    say(f"removed after {at_removal} videos; {len(crashes)} videos had been started on the lost node")
    assert crashes, "the lost worker was busy"
    assert not any(row["is_final"] for row in crashes)
    assert problems_at_the_end(output, expected, str(scratch / "videos")) == []
    assert problems_of_verify(str(scratch / "out")) == []


def _working(driver: Driver) -> int:
    progress = driver.last("progress") or {"workers": {}}
    return int(progress["workers"].get("ready", 0))


def _workers_below(raylet: int) -> int:
    """Worker actors among the processes of one node."""
    try:
        below = psutil.Process(raylet).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    return sum("ray::GpuWorker" in title_of(process) for process in below)
