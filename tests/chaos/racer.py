"""A driver ready to start: ``python -m tests.chaos.racer ADDRESS`` joins a Ray and waits for requests.

One request per line of standard input, JSON: ``values`` (settings by dotted key) and ``at`` (when to start,
seconds since the epoch). A run that has got its output says so, and then waits for another line before it
goes on, so that the runs overlap whatever the machine does. Answers are events as those of driver.py.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from pipeline.cluster.job import run_job
from pipeline.cluster.report import Progress
from pipeline.cluster.session import ray_session
from pipeline.config.job import load_config
from pipeline.errors import PipelineError, UserError
from tests.chaos.driver import report_event, tell

__all__: list[str] = []


def _race(request: dict[str, Any]) -> None:
    config = load_config(None, (), request["values"])
    holding = False

    def hold(_progress: Progress) -> None:
        nonlocal holding
        if not holding:
            holding = True
            tell("holds")
            sys.stdin.readline()

    time.sleep(max(0.0, request["at"] - time.time()))
    try:
        report = run_job(config, on_progress=hold)
    except UserError as error:
        tell("refused", text=str(error))
    except PipelineError as error:
        tell("broken", text=str(error))
    else:
        tell("report", **report_event(report))


def _main(address: str) -> None:
    first = json.loads(sys.stdin.readline())
    config = load_config(None, (), {**first["values"], "ray.address": address})
    with ray_session(config):
        tell("joined")
        for line in sys.stdin:
            _race(json.loads(line))


if __name__ == "__main__":
    _main(sys.argv[1])
