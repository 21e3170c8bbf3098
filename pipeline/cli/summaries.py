"""A job's plan, its result, and what an output holds, in words and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.cli.console import Console, clock_text, print_pairs, print_table
from pipeline.cluster import STATUS_INTERRUPTED
from pipeline.output import FAILURES
from pipeline.stores import TAR_URI

if TYPE_CHECKING:
    from pipeline.cluster import RunReport, Totals
    from pipeline.config import JobConfig
    from pipeline.output import CompactReport, OutputStatus, VerifyReport
    from pipeline.records import VideoRow

__all__ = ["entered_text", "print_compact", "print_plan", "print_report", "print_status", "print_verify"]

_EXAMPLES = 3  # failures shown per reason


def print_plan(console: Console, config: JobConfig, model_revision: str) -> None:
    """What a job is about to do."""
    print_pairs(
        console,
        [
            ("corpus", _corpus_text(config)),
            ("model", f"{config.model.name} ({model_revision[:20]}), {_where(config)}"),
            ("frames", _frames_text(config)),
            ("tokens", _tokens_text(config)),
            ("prompts", _prompts_text(config)),
            ("output", f"{config.output.uri}, table {config.output.table!r}"),
        ],
    )


def _corpus_text(config: JobConfig) -> str:
    corpus = config.corpus
    parts = {"limit": corpus.limit, "slice": corpus.slice}
    return ", ".join([corpus.uri, *(f"{name} {value}" for name, value in parts.items() if value is not None)])


def _prompts_text(config: JobConfig) -> str:
    asked = f"one caption and {_count(len(config.prompts.questions), 'question')}"
    windows = config.windows
    if windows is None:
        return f"{asked} per video"
    summary = ", and a summary of the video" if windows.summary else ""
    return f"{asked} per window of {windows.length_seconds:g} s{summary}"


def _where(config: JobConfig) -> str:
    workers = _count(config.workers.count, "worker")
    return (
        f"{workers} on CPU"
        if config.workers.num_gpus == 0
        else f"{workers}, {config.workers.num_gpus:g} GPU each"
    )


def _frames_text(config: JobConfig) -> str:
    frames, each = config.frames, "window" if config.windows else "video"
    if frames.sampling == "fps":
        return f"{frames.fps:g} per second, at most {config.num_frames} per {each}"
    return f"{config.num_frames} per {each}, evenly spread"


def _tokens_text(config: JobConfig) -> str:
    baseline = config.frames.baseline
    if config.compression.is_bypass:
        return "uncompressed (compression.retention_ratio=1)"
    share = f"{config.compression.retention_ratio:.0%} are kept"
    if config.compression.adaptive:
        share = f"at most {share}, fewer where nothing changes"
    mean = ", as a mean over its layers" if _is_pruned_inside(config) else ""
    return f"{share}, and never more than {baseline} uncompressed frames would cost the language model{mean}"


def _is_pruned_inside(config: JobConfig) -> bool:
    ratio = config.compression.llm_retention_ratio
    return config.compression.expansion > 1 if ratio is None else ratio < 1


def entered_text(what: Totals | VideoRow, note: str = "") -> str:
    """What became of the visual tokens that entered, beside what the baseline's would have been.

    Where pruning inside makes it less, the mean over the layers is said too: that is what is held to the
    baseline. note: more of those that entered.
    """
    mean = round(what.visual_tokens_mean)
    inside = f", {mean} as a mean over its layers" if 0 < mean < what.visual_tokens_after else ""
    baseline = ""
    if what.baseline_frames:
        frames = _count(what.baseline_frames, "frame")
        baseline = f" ({frames} uncompressed: {what.baseline_visual_tokens})"
    return f"entered the language model{note}{inside}{baseline}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_report(
    console: Console, report: RunReport, failures: Iterable[Mapping[str, Any]], *, is_heal: bool = False
) -> None:
    """How a run ended. ``failures``: recorded failures (reason, uri, message), for examples."""
    counts, output = report.counts, report.config["output"]
    if is_heal and not counts.listed:
        text = "nothing to heal: no video of this corpus failed for good for such a reason"
        console.print(f"{text}; what was mended is a new version: run flashvid index", soft_wrap=True)
    elif report.did_nothing:
        console.print(_nothing_text(report), soft_wrap=True)
    else:
        _print_counts(console, report)
    if passed := _passed_over_text(report):
        console.print(passed, soft_wrap=True)
    if report.worker_losses:
        rows = [(_short(why), number) for why, number in report.worker_losses.items()]
        print_table(console, "workers that were lost", ("why", "times"), rows, right=(1,))
    if counts.failed:
        _print_failures(console, failures)
        _print_way_on(console, report)
    table = f"{str(output['uri']).rstrip('/')}/{output['table']}"
    if counts.indexed or counts.skipped_indexed:
        console.print(f"rows in {table}/*.parquet; in DuckDB, for example:", soft_wrap=True)
        console.print(f"  select uri, caption from '{table}/*.parquet' limit 5;", soft_wrap=True)


def _passed_over_text(report: RunReport) -> str:
    """What was seen and is no input; empty where there was nothing of the kind."""
    kinds = (
        (report.not_videos, "AppleDouble file", ", as macOS puts them beside others"),
        (report.unused_metadata, ".json member", " of tar shards that belong to no video"),
    )
    parts = [f"{_count(number, noun)}{rest}" for number, noun, rest in kinds if number]
    return f"passed over: {'; '.join(parts)}" if parts else ""


def _nothing_text(report: RunReport) -> str:
    counts = report.counts
    if not counts.skipped_failed:
        return f"nothing to do: all {counts.listed} videos are already indexed"
    return (
        f"nothing to do: of {counts.listed} videos {counts.skipped_indexed} are already indexed and "
        f"{counts.skipped_failed} failed for good earlier; `flashvid heal` with the same arguments tries "
        "those again"
    )


def _print_counts(console: Console, report: RunReport) -> None:
    counts = report.counts
    rows: list[tuple[str, Any]] = [
        ("listed", counts.listed),
        ("indexed", counts.indexed),
        ("failed", counts.failed),
        ("skipped, already indexed", counts.skipped_indexed),
    ]
    more = {
        "skipped, failed for good earlier": counts.skipped_failed,
        "not done": counts.pending + counts.leased + counts.suspect,
    }
    rows += [(name, number) for name, number in more.items() if number]
    print_table(console, f"run {report.run_id}", ("videos", ""), rows, right=(1,))
    totals = report.totals
    console.print(f"{_verdict(report)}; {clock_text(report.seconds)} in all", soft_wrap=True)
    if counts.indexed:
        console.print(
            f"{totals.frames} frames, {totals.visual_tokens_before} visual tokens, of which "
            f"{totals.visual_tokens_after} {entered_text(totals)}; {report.videos_per_second:.2f} videos/s"
        )


def _verdict(report: RunReport) -> str:
    if report.exit_status == STATUS_INTERRUPTED:
        return "interrupted: what is finished is committed; start the same command again to go on"
    if report.error is not None:
        return f"the run could not finish: {report.error}. What is done is committed; start it again to go on"
    if not report.closes:
        return "listed is not indexed + failed + skipped"
    return "listed = indexed + failed + skipped"


def _print_failures(console: Console, failures: Iterable[Mapping[str, Any]]) -> None:
    numbers: Counter[str] = Counter()
    examples: dict[str, list[Mapping[str, Any]]] = {}
    for failure in failures:
        reason = str(failure["reason"])
        numbers[reason] += 1
        if numbers[reason] <= _EXAMPLES:
            examples.setdefault(reason, []).append(failure)
    names = _names_of({str(failure["uri"]) for some in examples.values() for failure in some})
    rows = []
    for reason, total in numbers.most_common():
        for number, failure in enumerate(examples[reason]):
            head = (reason, total) if number == 0 else ("", "")
            rows.append((*head, names[str(failure["uri"])], _short(failure["message"])))
    print_table(
        console, "failed (rows in failures/)", ("reason", "videos", "for example", "why"), rows, right=(1,)
    )


def _names_of(uris: Collection[str]) -> dict[str, str]:
    """As much of the end of each uri as tells them apart."""
    names = {uri: _end(uri, 1) for uri in uris}
    for length in range(2, max((uri.count("/") for uri in uris), default=0) + 2):
        taken = Counter(names.values())
        names |= {uri: _end(uri, length) for uri, name in names.items() if taken[name] > 1}
    return names


def _end(uri: str, length: int) -> str:
    """The last parts of a path; of a member of a tar shard both its own and its shard's."""
    is_member = uri.startswith(TAR_URI)
    place, _, shard = uri.removeprefix(TAR_URI).partition("::") if is_member else (uri, "", "")
    name = "/".join(place.split("/")[-length:])
    return f"{name} in {_end(shard, length)}" if shard else name


def _print_way_on(console: Console, report: RunReport) -> None:
    output = report.config["output"]
    folder = f"{str(output['uri']).rstrip('/')}/{FAILURES}"
    console.print("all of them, in DuckDB:", soft_wrap=True)
    console.print(
        f"  select reason, uri, message from '{folder}/*.parquet' "
        f"where is_final and run_id = '{report.run_id}';",
        soft_wrap=True,
    )
    console.print(
        "when the cause is gone: `flashvid heal` with the same arguments tries them again", soft_wrap=True
    )


def print_compact(console: Console, report: CompactReport) -> None:
    """What merging the parts of one output did."""
    for line in report.lines():
        console.print(line, soft_wrap=True)


def _short(text: Any, limit: int = 160) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def print_status(console: Console, status: OutputStatus) -> None:
    """A summary of one output."""
    last = status.last_run
    pairs: list[tuple[str, Any]] = [
        ("output", status.uri),
        (
            "table",
            f"{status.table} (of {', '.join(status.tables)})" if len(status.tables) > 1 else status.table,
        ),
        ("indexed", _indexed_text(status)),
        ("failed", _reasons_text(status.failures_by_reason, status.earlier_failures)),
        (
            "last row",
            status.last_indexed_at.isoformat(sep=" ", timespec="seconds") if status.last_indexed_at else "-",
        ),
        ("writing now", status.holder if status.is_running else "no"),
    ]
    if last:
        pairs.append(("last run", _run_text(last)))
    print_pairs(console, pairs)


def _indexed_text(status: OutputStatus) -> str:
    text = f"{_count(status.indexed, 'video')} in {_count(status.parts, 'part')}"
    earlier = status.earlier_rows
    return f"{text}; {_count(earlier, 'more row')} of earlier versions" if earlier else text


def _reasons_text(reasons: Mapping[str, int], earlier: int) -> str:
    total = sum(reasons.values())
    listed = ", ".join(f"{reason} {number}" for reason, number in reasons.items())
    text = f"{_count(total, 'video')} for good: {listed}" if total else "none"
    return f"{text}; {_count(earlier, 'failed version')} superseded by later ones" if earlier else text


def _run_text(report: Mapping[str, Any]) -> str:
    counts = report["counts"]
    skipped = counts.get("skipped_indexed", 0) + counts.get("skipped_failed", 0)
    return (
        f"{report['run_id']}, ended {report.get('finished_at', '?')}, "
        f"exit status {report.get('exit_status', '?')}: {counts['listed']} listed, "
        f"{counts['indexed']} indexed, {counts['failed']} failed, {skipped} skipped"
    )


def print_verify(console: Console, report: VerifyReport) -> None:
    """What a check of one output found."""
    for note in report.notes:
        console.print(f"note: {note}", soft_wrap=True)
    for problem in report.problems:
        console.print(f"problem: {problem}", style="red", soft_wrap=True)
    verdict = "sound" if report.ok else f"{_count(len(report.problems), 'problem')} in"
    console.print(
        f"{verdict}: table {report.table!r} of {report.uri}: {_count(report.rows, 'row')} in "
        f"{_count(report.parts, 'part')}, {_count(report.failures, 'video')} failed for good, "
        f"{_count(report.runs, 'run')} held against them",
        soft_wrap=True,
    )
