"""What ``flashvid index``, ``caption`` and ``show`` do, between the command line and the pipeline."""

from __future__ import annotations

import filecmp
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import ROOT
from pipeline.cli.console import Console, ProgressView, print_pairs
from pipeline.cli.summaries import entered_text, print_plan, print_report
from pipeline.cluster import check_healable, check_output
from pipeline.config import JobConfig, load_config
from pipeline.corpus import list_videos
from pipeline.errors import Reason, Stage, UserError, VideoError
from pipeline.indexing import check_model, resolve_revision
from pipeline.output import OutputStore

if TYPE_CHECKING:
    from pipeline.cluster import RunReport
    from pipeline.config import WindowsConfig
    from pipeline.decoding import FrameRequest
    from pipeline.indexing import VideoIndexer
    from pipeline.records import Frames, VideoRef, VideoRow, Window

__all__ = ["caption_config", "index_corpus", "run_caption", "run_index", "run_show", "settings_text"]

_UNREADABLE = 1
_MODEL_KEYS = ("model.name", "model")
_ARGUMENTS = {  # of caption and show: what says the same as these settings
    "corpus.uri": "the video as the first argument",
    "prompts.questions": "each question with -q, e.g. -q 'Who speaks?'",
}


def run_index(
    console: Console, path: Path, overrides: Sequence[str], heal: Sequence[str] | None = None
) -> int:
    """``flashvid index``, and ``heal`` (reasons, or none for all): plan, progress, result; exit status."""
    config = load_config(path, overrides)
    # What is known to fail is refused before Ray starts: that takes a while.
    if heal is not None:
        check_healable(config)
    next(list_videos(config.corpus, skip=config.written_folders), None)
    check_model(config.model)
    revision = resolve_revision(config.model)
    check_output(config, revision)
    print_plan(console, config, revision)
    report = index_corpus(console, config, heal)
    print_report(console, report, _failures_of(report), is_heal=heal is not None)
    return report.exit_status


def index_corpus(console: Console, config: JobConfig, heal: Sequence[str] | None = None) -> RunReport:
    """Run one job with its progress on the console."""
    from pipeline.cluster import run_job  # Ray takes a second to import

    with ProgressView(console) as view:
        return run_job(config, on_progress=view.update, heal=heal)


def _failures_of(report: RunReport) -> Iterator[Mapping[str, Any]]:
    """The final failures that a run recorded."""
    if not report.counts.failed:
        return
    output = report.config["output"]
    columns = ("run_id", "is_final", "reason", "uri", "message")
    for row in OutputStore(output["uri"], output["table"]).iter_failures(columns):
        if row["is_final"] and row["run_id"] == report.run_id:
            yield row


def caption_config(
    video: str, questions: Sequence[str], path: Path | None, model: str | None, overrides: Sequence[str]
) -> JobConfig:
    """The job of one video that is printed, not stored.

    Without a file and a model it is the demo's; without a file, a model of the demo's shape has the demo's
    settings. Raises UserError where the repository is not there, and for overrides of what the command's own
    arguments say.
    """
    keys = [text.partition("=")[0] for text in overrides]
    for key in keys:
        if key in _ARGUMENTS:
            raise UserError(f"{key} is not a setting of this command; give {_ARGUMENTS[key]}")
    listed = [{"id": f"q{number}", "text": text} for number, text in enumerate(questions, start=1)]
    values: dict[str, object] = {
        "corpus.uri": video,
        "corpus.include": ["*"],
        "output.uri": "(none)",
        "prompts.questions": listed,
    }
    file = path
    if model is not None:
        values["model.name"] = model
    elif path is None and not set(keys) & set(_MODEL_KEYS):
        file = _demo_file()
        values["model.name"] = _shown(ROOT / "demo" / "model")
    config = load_config(file, overrides, values)
    if file is None and _is_of_demo(config.model.name):
        file = _demo_file()
        config = load_config(file, overrides, values)
    return config if _wants_gpu(config, overrides, file) else _on_cpu(config)


def settings_text(path: Path | None, config: JobConfig) -> str:
    """Where the settings of a ``caption_config`` are from."""
    if path is None and _is_of_demo(config.model.name):
        return f"{_demo_file()}, which are those of this model"
    return "the defaults; others with --config or as key=value" if path is None else str(path)


def _is_of_demo(model: str) -> bool:
    """Whether a checkpoint is the demo's, or a copy or fine-tune of it: made for frames of its size."""
    try:
        here, demo = Path(model).expanduser(), ROOT / "demo" / "model"
        return filecmp.cmp(here / "config.json", demo / "config.json", shallow=False)
    except (OSError, ValueError, RuntimeError):
        return False


def _demo_file() -> Path:
    path = ROOT / "configs" / "demo.yaml"
    if not (path.is_file() and (ROOT / "demo" / "model").is_dir()):
        raise UserError("which model? Give --model (a checkpoint folder or hub id) or --config (a YAML file)")
    return Path(_shown(path))


def _wants_gpu(config: JobConfig, overrides: Sequence[str], path: Path | None) -> bool:
    """Unless somebody said how many GPUs, one video takes a GPU where there is one, else the CPU."""
    if path is not None or any(text.startswith("workers.num_gpus=") for text in overrides):
        return True
    from pipeline.indexing import has_gpu

    return config.workers.num_gpus > 0 and has_gpu()


def _on_cpu(config: JobConfig) -> JobConfig:
    return config.model_copy(update={"workers": config.workers.model_copy(update={"num_gpus": 0.0})})


def _shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def run_caption(console: Console, config: JobConfig, settings: str) -> int:
    """Caption one video here and now; the exit status, 1 where the video cannot be read."""
    ref, indexer = _one_video(config, run_id="caption")
    try:
        indexer.try_out()
        began = time.perf_counter()
        row = _answered(config, indexer, ref)
    except VideoError as error:
        console.print(f"{config.corpus.uri}: {error}", style="red", soft_wrap=True)
        return _UNREADABLE
    _print_row(console, row, time.perf_counter() - began, settings)
    return 0


def run_show(console: Console, config: JobConfig, settings: str, output: Path, max_panels: int) -> int:
    """Draw what becomes of one video's tokens; the exit status, 1 where the video cannot be read."""
    from pipeline.picture import check_shown, check_target, draw_figure, figure_of, save_image

    check_target(output)
    check_shown(config)
    ref, indexer = _one_video(config, run_id="show")
    try:
        ((frames, _),) = _decoded(config, indexer.frame_request, ref, windows=None)
        figure = figure_of(indexer, config, ref, frames, max_panels)
    except VideoError as error:
        console.print(f"{config.corpus.uri}: {error}", style="red", soft_wrap=True)
        return _UNREADABLE
    save_image(draw_figure(figure), output)
    console.print(f"{figure.headline}: {', '.join(figure.account.values())}", soft_wrap=True)
    console.print(f"{output}: {len(figure.drawn)} of {figure.tokens.num_units} units drawn", soft_wrap=True)
    console.print(f"model {config.model.name}, settings: {settings}", soft_wrap=True)
    return 0


def _one_video(config: JobConfig, run_id: str) -> tuple[VideoRef, VideoIndexer]:
    """The one video of the job and the loaded model; UserError where there are more, or no model."""
    from pipeline.indexing import load_indexer

    if os.path.isdir(config.model.name):  # nothing to download: a bar would only flash up
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    refs = list(islice(list_videos(config.corpus), 2))
    if len(refs) != 1:
        found = " and ".join(ref.uri for ref in refs) or "none in this corpus.slice"
        raise UserError(
            f"{config.corpus.uri!r} is not one video: there are {found}, and perhaps more; name one of them, "
            "or take flashvid index for all"
        )
    if refs[0].problem is not None:
        raise UserError(refs[0].problem.message)
    try:
        indexer = load_indexer(config, run_id=run_id)
    except OSError as error:
        raise UserError(f"model.name={config.model.name!r} cannot be loaded: {error}") from error
    return refs[0], indexer


def _answered(config: JobConfig, indexer: VideoIndexer, ref: VideoRef) -> VideoRow:
    """The row of one video, window by window where the job has windows."""
    job = indexer.start(ref, attempt=1)
    for frames, window in _decoded(config, indexer.frame_request, ref, config.windows):
        job.add(frames, window)
    return job.finish()


def _decoded(
    config: JobConfig, request: FrameRequest, ref: VideoRef, windows: WindowsConfig | None
) -> Iterator[tuple[Frames, Window]]:
    """The frames of a video, or of one window after the other. Raises VideoError."""
    from pipeline.decoding import DecodePool

    is_last = False
    with DecodePool(config.decoding, request, windows) as pool:
        pool.submit(ref)
        while not is_last:
            decoded = pool.get(config.decoding.timeout_seconds + 30.0)
            if decoded is None:
                raise VideoError(Stage.DECODING, Reason.DECODE_TIMEOUT, "the decoder gave no answer")
            if decoded.frames is None or decoded.window is None:
                raise decoded.error or VideoError(Stage.DECODING, Reason.NO_FRAMES, "no frames")
            yield decoded.frames, decoded.window
            is_last = decoded.is_last


def _print_row(console: Console, row: VideoRow, seconds: float, settings: str) -> None:
    console.print(row.caption, soft_wrap=True)
    for answer in row.answers:
        console.print(f"{answer.question}  {answer.answer}", soft_wrap=True)
    for segment in row.segments:
        times_of = f"{segment.start_seconds:g}-{segment.end_seconds:g} s"
        for answer in segment.answers:
            console.print(f"{times_of}  {answer.question}  {answer.answer}", soft_wrap=True)
    console.print()
    times = {
        "decode": row.decode_seconds,
        "encode": row.encode_seconds,
        "compress": row.compress_seconds,
        "prefill": row.prefill_seconds,
        "write": row.text_decode_seconds,
    }
    print_pairs(
        console,
        [
            (
                "video",
                f"{row.duration_seconds:.1f} s, {row.width}x{row.height}, {row.codec} read by {row.decoder}",
            ),
            ("frames", f"{row.num_frames}, every {row.duration_seconds / row.num_frames:.2f} s"),
            ("tokens", _tokens_text(row)),
            (
                "seconds",
                f"{seconds:.2f}: " + ", ".join(f"{name} {value:.2f}" for name, value in times.items()),
            ),
            ("model", row.model),
            ("settings", settings),
            *([("degraded", row.degraded)] if row.degraded else []),
        ],
    )


def _tokens_text(row: VideoRow) -> str:
    left = row.visual_tokens_budget - row.visual_tokens_after  # by adaptive retention
    entered = entered_text(row, f", {left} fewer than allowed" if left > 0 else "")
    return f"{row.visual_tokens_before} visual tokens, {row.visual_tokens_after} of them {entered}"
