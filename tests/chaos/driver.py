"""The driver's process: ``python -m tests.chaos.driver REQUEST`` runs one job and says in JSON how it goes.

REQUEST is JSON: ``values`` (settings by dotted key) and ``heal``. Events, one per line: progress, report,
refused (a UserError), broken (any other PipelineError). Exit status as that of ``flashvid index``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pipeline.cluster.job import run_job
from pipeline.cluster.report import Progress, RunReport
from pipeline.config.job import load_config
from pipeline.errors import PipelineError, UserError

__all__ = ["report_event", "tell"]


def tell(event: str, **values: Any) -> None:
    """One line of JSON."""
    print(json.dumps({"event": event, **values}), flush=True)


def report_event(report: RunReport) -> dict[str, Any]:
    """What the tests look at in a report."""
    record = report.to_record()
    names = ("run_id", "counts", "exit_status", "error", "closes", "finished_at")
    return {name: record[name] for name in names}


def _on_progress(progress: Progress) -> None:
    counts = progress.counts
    tell(
        "progress",
        indexed=counts.indexed,
        failed=counts.failed,
        listed=counts.listed,
        leased=counts.leased,
        listing_done=progress.listing_done,
        workers=dict(progress.workers),
    )


def _main(request: dict[str, Any]) -> int:
    heal = {"heal": ()} if request.get("heal") else {}
    try:
        report = run_job(load_config(None, (), request["values"]), on_progress=_on_progress, **heal)
    except UserError as error:
        tell("refused", text=str(error))
        return 2
    except PipelineError as error:
        tell("broken", text=str(error))
        return 3
    tell("report", **report_event(report))
    return report.exit_status


if __name__ == "__main__":
    sys.exit(_main(json.loads(sys.argv[1])))
