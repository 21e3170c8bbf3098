"""A report says the same after a round trip, and closes only where the sum does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.cluster.backlog import Counts
from pipeline.cluster.report import RunReport, Totals
from tests.unit.samples import make_failure, make_row


def make_report() -> RunReport:
    totals = Totals(gpu_wait_seconds=1.0, gpu_busy_seconds=3.0)
    totals.add_row(make_row(1))
    totals.add_failure(make_failure(2, is_final=False))
    totals.add_failure(make_failure(2))
    return RunReport(
        run_id="run-1",
        fingerprint="0123456789abcdef",
        model_revision="abc",
        config={"corpus": {"uri": "videos"}},
        counts=Counts(listed=2, indexed=1, failed=1),
        totals=totals,
        started_at="2026-11-21T00:00:00+00:00",
        finished_at="2026-11-21T00:01:00+00:00",
        seconds=60.0,
        videos_per_second=0.1,
        exit_status=0,
    )


def test_round_trip() -> None:
    report = make_report()
    assert RunReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("heal", [None, (), ("corrupt", "read_error")])
def test_round_trip_of_a_run_that_healed(heal: tuple[str, ...] | None) -> None:
    report = replace(make_report(), heal=heal)
    assert RunReport.from_json(report.to_json()) == report


def test_report_of_an_older_version_is_read() -> None:
    record = json.loads(make_report().to_json())
    del record["heal"], record["counts"]["waiting"], record["not_videos"], record["unused_metadata"]
    assert RunReport.from_json(json.dumps(record)) == make_report()


def test_what_was_passed_over_is_in_no_sum() -> None:
    report = replace(make_report(), not_videos=3, unused_metadata=2)
    assert report.closes
    assert RunReport.from_json(report.to_json()) == report


def test_what_readers_need_is_written_out() -> None:
    record = json.loads(make_report().to_json())
    assert record["closes"] is True
    assert record["totals"]["gpu_wait_share"] == 0.25
    assert record["totals"]["visual_tokens_before"] == 2880


def test_attempts_and_videos_are_counted_apart() -> None:
    totals = make_report().totals
    assert totals.failed_attempts == 2
    assert totals.failures_by_reason == {"corrupt": 1}


def test_sum_that_does_not_close() -> None:
    report = replace(make_report(), counts=Counts(listed=3, indexed=1, failed=1, pending=1))
    assert not report.closes


def test_nothing_to_do() -> None:
    assert not make_report().did_nothing
    assert replace(make_report(), counts=Counts(listed=2, skipped_indexed=2)).did_nothing
