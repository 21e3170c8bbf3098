"""What is printed about plans, progress and results, on a terminal and without one."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from pipeline.cli.console import (
    Console,
    Pace,
    ProgressView,
    clock_text,
    make_console,
    print_table,
    progress_text,
)
from pipeline.cli.summaries import entered_text, print_plan, print_report, print_status, print_verify
from pipeline.cluster.backlog import Counts
from pipeline.cluster.report import Progress, RunReport, Totals
from pipeline.config.job import JobConfig, load_config
from pipeline.output.status import OutputStatus
from pipeline.output.verify import VerifyReport
from tests.unit.samples import make_row


def console(terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=100, force_terminal=terminal, markup=False, emoji=False, highlight=False
    )


def text_of(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def progress(done: bool = True, rate: float = 2.0, **counts: int) -> Progress:
    return Progress(
        run_id="run-1",
        counts=Counts(**counts),
        totals=Totals(),
        listing_done=done,
        seconds=65.0,
        videos_per_second=rate,
        workers={"ready": 2, "left": 1, "lost": 0},
        metrics_url="http://127.0.0.1:9100/metrics",
    )


def report(status: int = 0, **counts: int) -> RunReport:
    return RunReport(
        run_id="run-1",
        fingerprint="f",
        model_revision="r",
        config={"output": {"uri": "out/index/", "table": "videos"}},
        counts=Counts(**counts),
        totals=Totals(frames=320, visual_tokens_before=5760, visual_tokens_after=480),
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:01:05+00:00",
        seconds=65.0,
        videos_per_second=0.5,
        exit_status=status,
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_progress_says_how_far_how_fast_and_how_long() -> None:
    text = progress_text(
        progress(listed=13, indexed=2, failed=1, skipped_indexed=3, leased=4, pending=3), 3.6
    )
    assert text == "3/10 videos · 2.00 videos/s · 0:04 left · 1 failed · 3 skipped · workers: 2 ready"


def test_progress_promises_nothing_while_the_corpus_is_still_listed() -> None:
    text = progress_text(progress(done=False, listed=10, indexed=2, pending=8))
    assert text.startswith("2/10+ videos")
    assert "left" not in text


def test_no_time_is_promised_from_what_starting_took() -> None:
    """Four videos in 73 s, of which the first took 60: loading counts for nothing."""
    pace, said = Pace(), []
    for seconds, indexed in [(50.0, 0), (61.0, 1), (64.0, 2), (67.0, 3), (73.0, 3)]:
        rate = indexed / seconds
        now = replace(progress(rate=rate, listed=5, indexed=indexed, pending=5 - indexed), seconds=seconds)
        pace.note(now)
        said.append(pace.seconds_left(now))
    assert said == [None, None, None, 6.0, 12.0]  # the last: nothing for 6 s, so it is slower now


def test_no_time_is_promised_while_the_corpus_is_still_listed_at_any_pace() -> None:
    pace = Pace()
    for indexed in range(1, 9):
        now = replace(progress(done=False, listed=10, indexed=indexed), seconds=float(indexed))
        pace.note(now)
    assert pace.seconds_left(now) is None
    assert pace.seconds_left(replace(now, listing_done=True)) == 2.0


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    target = console()
    with ProgressView(target, log_seconds=3600) as view:
        for indexed in range(5):
            view.update(progress(listed=5, indexed=indexed, leased=5 - indexed))
    lines = text_of(target).splitlines()
    assert [line for line in lines if "videos" in line] == [
        "[1:05] 0/5 videos · 0 failed · workers: 2 ready",
        "[1:05] 4/5 videos · 2.00 videos/s · 0:00 left · 0 failed · workers: 2 ready",
    ]
    assert sum("http://127.0.0.1:9100/metrics" in line for line in lines) == 1


def test_a_warning_of_the_store_is_said_once() -> None:
    target = console()
    with ProgressView(target) as view:
        for _ in range(3):
            view.update(replace(progress(listed=5), warnings=("start one at a time",)))
    assert text_of(target).count("warning: start one at a time") == 1


def test_on_a_terminal_there_is_a_bar() -> None:
    target = console(terminal=True)
    with ProgressView(target) as view:
        view.update(progress(listed=5, indexed=2, leased=3))
    assert "2/5 videos" in text_of(target)
    assert "\x1b[" in text_of(target)


def test_text_of_videos_is_printed_as_it_is() -> None:
    target = console()
    print_table(target, "title", ("", "said"), [("caption", "a [red]box[/red] :smile: [unclosed")])
    assert "a [red]box[/red] :smile: [unclosed" in text_of(target)


def test_a_report_shows_the_sum_and_where_the_rows_are() -> None:
    target = console()
    print_report(target, report(listed=5, indexed=4, skipped_indexed=1), [])
    text = text_of(target)
    assert "listed = indexed + failed + skipped" in text
    assert "from 'out/index/videos/*.parquet'" in text
    assert "480 entered the language model" in text


def test_what_enters_is_shown_beside_the_mean_that_is_held_to_the_uncompressed_frames() -> None:
    """400 of 288 reads like a broken promise where tokens are pruned inside the language model."""
    entered = {"visual_tokens_before": 2880, "visual_tokens_after": 400, "visual_tokens_budget": 400}
    row = make_row(visual_tokens_mean=287.6, **entered)
    text = "entered the language model, 288 as a mean over its layers"
    assert entered_text(row) == f"{text} (16 frames uncompressed: 288)"
    totals = Totals()
    totals.add_row(row)
    totals.add_row(replace(row, baseline_frames=1, baseline_visual_tokens=36))
    target = console()
    print_report(target, replace(report(listed=2, indexed=2), totals=totals), [])
    assert (
        "of which 800 entered the language model, 575 as a mean over its layers (17 frames uncompressed: 324)"
        in " ".join(text_of(target).split())
    )


def test_without_pruning_inside_there_is_no_second_number() -> None:
    row = make_row(visual_tokens_before=2880, visual_tokens_after=240, visual_tokens_mean=240.0)
    assert entered_text(row, ", 5 fewer than allowed") == (
        "entered the language model, 5 fewer than allowed (16 frames uncompressed: 288)"
    )


def test_a_plan_says_whose_mean_is_kept() -> None:
    said = []
    for settings in ([], ["compression.expansion=1"], ["compression.llm_retention_ratio=1"]):
        target = console()
        print_plan(
            target, load_config(None, ["corpus.uri=a", "output.uri=b", "model.name=c", *settings]), "r"
        )
        said.append("as a mean over its layers" in " ".join(text_of(target).split()))
    assert said == [True, False, False]


def test_a_report_shows_failures_by_reason_with_a_few_examples() -> None:
    target = console()
    found = [{"reason": "corrupt", "uri": f"file:///v/{n}.mp4", "message": "moov\nmissing"} for n in range(9)]
    found.append({"reason": "empty_file", "uri": "file:///v/empty.mp4", "message": "0 bytes"})
    print_report(target, report(listed=10, failed=10), found)
    text = text_of(target)
    assert [text.count(f"{n}.mp4") for n in range(9)] == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    corrupt = next(line for line in text.splitlines() if "corrupt" in line)
    assert "9" in corrupt
    assert "moov missing" in corrupt
    assert "empty.mp4" in text


def test_examples_of_failures_can_be_told_apart() -> None:
    target = console()
    uris = [
        "tar://dir/02.mp4::file:///v/s-002.tar",
        "tar://dir/03.mp4::file:///v/s-002.tar",
        "file:///v/s-002.tar",
        "file:///v/monday/a.mp4",
        "file:///v/tuesday/a.mp4",
        "file:///v/other.mp4",
    ]
    found = [
        {"reason": f"r{number // 3}", "uri": uri, "message": "broken"} for number, uri in enumerate(uris)
    ]
    print_report(target, report(listed=6, failed=6), found)
    lines = [line.split("  ") for line in text_of(target).splitlines() if "broken" in line]
    names = [next(part.strip() for part in line if "." in part) for line in lines]
    assert names == [
        "02.mp4 in s-002.tar",
        "03.mp4 in s-002.tar",
        "s-002.tar",
        "monday/a.mp4",
        "tuesday/a.mp4",
        "other.mp4",
    ]


def test_after_failures_it_says_how_to_see_all_and_how_to_try_again() -> None:
    target = console()
    found = [{"reason": "corrupt", "uri": "file:///v/a.mp4", "message": "broken"}]
    print_report(target, report(listed=1, failed=1), found)
    query = (
        "select reason, uri, message from 'out/index/failures/*.parquet' where is_final and run_id = 'run-1'"
    )
    assert query in text_of(target)
    assert "flashvid heal" in text_of(target)


@pytest.mark.parametrize("indexed", [0, 1])
def test_what_was_passed_over_is_said(indexed: int) -> None:
    target = console()
    print_report(target, replace(report(listed=1, indexed=indexed), not_videos=1, unused_metadata=7), [])
    said = "passed over: 1 AppleDouble file, as macOS puts them beside others; 7 .json members of tar shards"
    assert said in text_of(target)
    print_report(plain := console(), report(listed=1, indexed=indexed), [])
    assert "passed over" not in text_of(plain)


def test_workers_that_were_lost_are_named() -> None:
    target = console()
    lost = {"worker died: out of memory": 2}
    print_report(target, replace(report(listed=1, indexed=1), worker_losses=lost), [])
    line = next(line for line in text_of(target).splitlines() if "out of memory" in line)
    assert line.split()[-1] == "2"


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (3, None, "is not indexed + failed + skipped"),
        (3, "no worker could start", "could not finish: no worker could start"),
        (130, None, "start the same command again"),
    ],
)
def test_a_run_that_did_not_end_well_says_so(status: int, error: str | None, said: str) -> None:
    target = console()
    print_report(target, replace(report(status, listed=5, indexed=3, pending=2), error=error), [])
    assert said in text_of(target)
    assert "not done" in text_of(target)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"listed": 4, "skipped_indexed": 4}, "nothing to do: all 4 videos are already indexed"),
        ({"listed": 4, "skipped_indexed": 3, "skipped_failed": 1}, "`flashvid heal` with the same arguments"),
    ],
)
def test_nothing_to_do_is_said(counts: dict[str, int], expected: str) -> None:
    target = console()
    print_report(target, report(**counts), [])
    assert expected in text_of(target)


@pytest.mark.parametrize(
    ("compression", "expected"),
    [
        ({"retention_ratio": 0.1}, "10% are kept"),
        ({"retention_ratio": 1.0}, "uncompressed"),
        ({"profile": "action", "adaptive": True}, "at most 20% are kept, fewer where nothing changes"),
    ],
)
def test_a_plan_names_frames_and_tokens(compression: dict[str, Any], expected: str) -> None:
    config = JobConfig.model_validate(
        {
            "corpus": {"uri": "v"},
            "output": {"uri": "o"},
            "model": {"name": "m"},
            "compression": compression,
        }
    )
    target = console()
    print_plan(target, config, "sha256-0123")
    assert expected in " ".join(text_of(target).split())
    assert f"{config.num_frames} per video" in text_of(target)


def test_status_and_verify() -> None:
    target = console()
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    run: dict[str, Any] = {
        "run_id": "run-1",
        "exit_status": 0,
        "counts": {"listed": 3, "indexed": 2, "failed": 1},
    }
    print_status(
        target,
        OutputStatus("o", "videos", ("videos", "baseline"), "f", 2, 1, {"corrupt": 1}, now, run, None),
    )
    print_verify(target, VerifyReport("o", "videos", "f", 2, 1, 1, 1, 1, ("twice: a",), ("a note",)))
    text = text_of(target)
    for expected in (
        "1 video for good: corrupt 1",
        "3 listed, 2 indexed",
        "problem: twice: a",
        "note: a note",
    ):
        assert expected in text


def test_a_log_is_100_columns_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    target = make_console()
    assert (target.width, target.is_terminal) == (100, False)
