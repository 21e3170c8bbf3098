"""A video that kills whichever worker looks at it is quarantined after its strikes, and nobody else is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.checks import problems_at_the_end, problems_of_verify, read_output
from tests.chaos.corpus import write_corpus
from tests.chaos.jobs import Driver, settings
from tests.chaos.stub_engine import write_model

pytestmark = pytest.mark.chaos

STRIKES = 3


def test_only_the_video_that_kills_its_workers_is_given_up(
    scratch: Path, environment: dict[str, str], say: Callable[[str], None]
) -> None:
    expected = write_corpus(scratch / "videos", num_videos=30, num_hostile=0)
    name, colour = sorted(expected.good.items())[7]
    del expected.good[name]
    expected.hostile[name] = frozenset({"crashed_worker"})
    model = write_model(scratch / "model", 0.05, deadly_colour=colour)
    job = settings(scratch / "videos", scratch / "out", model, {"limits.strikes": STRIKES})
    with Driver(job, environment) as driver:
        assert driver.wait(300) == 0, driver.tail()
    output = read_output(str(scratch / "out"))
    strikes = Counter(Path(row["uri"]).name for row in output.failures)
    say(f"failed attempts: {dict(strikes)}")
    assert {row["reason"] for row in output.failures} == {"crashed_worker"}
    assert strikes[Path(name).name] == STRIKES
    assert all(count < STRIKES for other, count in strikes.items() if other != Path(name).name)
    assert problems_at_the_end(output, expected, str(scratch / "videos")) == []
    assert problems_of_verify(str(scratch / "out")) == []
