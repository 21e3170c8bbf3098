"""One video on its way to a row: its windows one after the other, then what they add up to."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flashvid.generation import VideoInput
from pipeline.config import JobConfig, SummaryConfig
from pipeline.indexing.engine_interface import AnswersVideos
from pipeline.indexing.out_of_memory import Step, Steps, guarded, halved, spread
from pipeline.indexing.summarizing import Summary, TimedText, fewest_tokens, join_lines, summarize
from pipeline.records import Answer, Frames, Question, Segment, VideoRef, VideoRow, Window

if TYPE_CHECKING:
    from flashvid.generation import Generation, VideoAnswers

__all__ = ["RowOrigin", "VideoJob", "baseline_tokens"]

_MAX_NOTE_CHARS = 500
_COUNT = re.compile(r"(\d+) of \d+ ")  # grows from window to window
_SUMMED = (  # over the windows of a video
    "num_frames",
    "baseline_frames",
    "baseline_visual_tokens",
    "visual_tokens_before",
    "visual_tokens_budget",
    "visual_tokens_after",
    "visual_tokens_mean",
    "output_tokens",
    "decode_seconds",
    "encode_seconds",
    "compress_seconds",
    "prefill_seconds",
    "text_decode_seconds",
)


@dataclass(frozen=True)
class RowOrigin:
    """What every row of a run says about where it comes from. ``clock``: seconds since the epoch."""

    model_revision: str
    fingerprint: str
    run_id: str
    clock: Callable[[], float] = time.time


class VideoJob:
    """Takes the windows of one video in order, then gives its row; holds no frames.

    Of no use after an error: a video whose windows are not all answered has no row.
    """

    def __init__(
        self, engine: AnswersVideos, config: JobConfig, origin: RowOrigin, ref: VideoRef, attempt: int
    ) -> None:
        self._engine, self._config, self._origin = engine, config, origin
        self._ref, self._attempt = ref, attempt
        self._questions = _questions(config.prompts.questions, ref.questions)
        self._steps = Steps(1 + len(self._questions), config.frames.baseline)
        self._windows: list[Window] = []
        self._rows: list[VideoRow] = []

    def add(self, frames: Frames, window: Window) -> None:
        """Caption one window and answer the questions about it.

        Raises VideoError (generation_failed, out_of_memory) where this video is at fault, ValueError for a
        window out of order. A device that no longer works (torch.AcceleratorError) goes through as it is.
        """
        if window.number != len(self._rows):
            raise ValueError(f"window {window.number} of {window.total} came as number {len(self._rows)}")
        (used, answers), note = guarded(
            lambda: self._steps.run(len(frames.data), lambda step: self._ask(frames, step))
        )
        self._windows.append(window)
        self._rows.append(self._row(frames, used, answers, note))

    def finish(self) -> VideoRow:
        """The row of the whole video. Raises as ``add`` does, and ValueError where windows are missing."""
        if not self._windows or not self._windows[-1].is_last:
            raise ValueError(f"{self._ref.video_id!r} has only {len(self._windows)} of its windows")
        if self._config.windows is None:
            return self._rows[0]
        return self._merged(guarded(self._caption))

    def _ask(self, frames: Frames, step: Step) -> tuple[int, VideoAnswers]:
        """How many frames were used, and what was answered about them."""
        if step.num_frames < len(frames.data):
            chosen = spread(len(frames.data), step.num_frames)
            frames = replace(frames, data=frames.data[chosen], pts_seconds=frames.pts_seconds[chosen])
        prompts, questions = self._config.prompts, self._questions
        answers = self._engine.answer(
            VideoInput(frames.data, frames.seconds_per_frame),
            [prompts.caption, *(question.text for question in questions)],
            max_new_tokens=[prompts.caption_max_new_tokens]
            + [prompts.answer_max_new_tokens] * len(questions),
            baseline_tokens=None if self._config.compression.is_bypass else self._baseline(frames),
            prompts_per_batch=self._steps.limit(step),
        )
        _check(answers.generations, 1 + len(questions))
        return len(frames.data), answers

    def _baseline(self, frames: Frames) -> int:
        return baseline_tokens(self._engine, self._config, frames)

    def _row(self, frames: Frames, num_frames: int, answers: VideoAnswers, note: str | None) -> VideoRow:
        """The row of one window, or of a video without windows."""
        caption, *replies = answers.generations
        return VideoRow(
            video_id=self._ref.video_id,
            uri=self._ref.uri,
            version=self._ref.version,
            caption=caption.text,
            caption_finish_reason=caption.finish_reason,
            answers=tuple(map(_answer, self._questions, replies)),
            segments=(),
            duration_seconds=frames.duration_seconds,
            width=frames.width,
            height=frames.height,
            fps=frames.source_fps,
            codec=frames.codec,
            decoder=frames.decoder,
            num_frames=num_frames,
            baseline_frames=self._config.frames.baseline,
            baseline_visual_tokens=self._baseline(frames),
            visual_tokens_before=answers.visual_tokens_before,
            visual_tokens_budget=answers.budget_tokens,
            visual_tokens_after=answers.visual_tokens_after,
            visual_tokens_mean=answers.visual_tokens_mean,
            retention_ratio=self._config.compression.retention_ratio,
            output_tokens=sum(generation.output_tokens for generation in answers.generations),
            degraded=_joined((frames.damage, note)),
            decode_seconds=frames.decode_seconds,
            encode_seconds=answers.encode_seconds,
            compress_seconds=answers.compress_seconds,
            prefill_seconds=answers.prefill_seconds,
            text_decode_seconds=answers.decode_seconds,
            model=self._config.model.name,
            model_revision=self._origin.model_revision,
            fingerprint=self._origin.fingerprint,
            run_id=self._origin.run_id,
            attempt=self._attempt,
            indexed_at_us=int(self._origin.clock() * 1e6),
            extra=self._ref.extra,
        )

    def _caption(self) -> tuple[Summary, float, str | None]:
        """What is said of the whole video, the seconds that took, and what was stepped down."""
        began = time.perf_counter()
        parts = [
            TimedText(window.start_seconds, window.end_seconds, row.caption)
            for window, row in zip(self._windows, self._rows, strict=True)
        ]
        cut = any(row.caption_finish_reason == "length" for row in self._rows)
        lines = Summary(join_lines(parts), "length" if cut else "stop", 0)
        config = self._config.windows
        if config is None or config.summary is None:
            return lines, 0.0, None
        if len(parts) == 1:
            return replace(lines, text=parts[0].text), 0.0, None
        summary, note = self._summarized(config.summary, parts)
        return summary, time.perf_counter() - began, note

    def _summarized(self, config: SummaryConfig, parts: list[TimedText]) -> tuple[Summary, str | None]:
        """The summary, written from as much at once as memory suffices for."""
        whole = config.max_input_tokens
        summary, tokens = halved(
            whole,
            fewest_tokens(self._engine, config),
            lambda most: summarize(self._engine, config.model_copy(update={"max_input_tokens": most}), parts),
        )
        summary.text.encode()
        note = f"out of memory: summary from {tokens} tokens at once instead of {whole}"
        return summary, note if tokens < whole else None

    def _merged(self, captioned: tuple[Summary, float, str | None]) -> VideoRow:
        caption, seconds, note = captioned
        rows = self._rows
        sums: dict[str, Any] = {name: sum(getattr(row, name) for row in rows) for name in _SUMMED}
        sums["output_tokens"] += caption.output_tokens
        sums["text_decode_seconds"] += seconds
        return replace(
            rows[0],
            caption=caption.text,
            caption_finish_reason=caption.finish_reason,
            answers=(),
            segments=tuple(map(_segment, self._windows, rows)),
            decoder="+".join(dict.fromkeys(row.decoder for row in rows)),
            degraded=_joined([note, *(row.degraded for row in rows)]),
            indexed_at_us=int(self._origin.clock() * 1e6),
            **sums,
        )


def baseline_tokens(engine: AnswersVideos, config: JobConfig, frames: Frames) -> int:
    """Visual tokens that the baseline number of frames costs uncompressed, at this resolution."""
    units = -(-config.frames.baseline // engine.vision.temporal_patch_size)
    return units * engine.vision.tokens_per_unit(frames.data.shape[1], frames.data.shape[2])


def _questions(of_job: Sequence[Question], of_video: Sequence[Question]) -> tuple[Question, ...]:
    """The job's, then the video's; where ids are the same the video's takes the place of the job's."""
    return tuple({question.question_id: question for question in (*of_job, *of_video)}.values())


def _check(generations: Sequence[Generation], wanted: int) -> None:
    """Raise ValueError for what no row can hold; engines of others may give anything."""
    if len(generations) != wanted:
        raise ValueError(f"the engine gave {len(generations)} texts for {wanted} prompts")
    for generation in generations:
        generation.text.encode()  # UnicodeEncodeError for half a character


def _answer(question: Question, reply: Generation) -> Answer:
    return Answer(question.question_id, question.text, reply.text, reply.finish_reason, reply.output_tokens)


def _segment(window: Window, row: VideoRow) -> Segment:
    return Segment(window.start_seconds, window.end_seconds, row.caption, row.answers)


def _joined(notes: Iterable[str | None]) -> str | None:
    """All distinct notes, as far as they are not too long together; of counts of one kind the highest."""
    by_kind: dict[str, tuple[int, str]] = {}
    for part in (part for note in notes if note for part in note.split("; ")):
        count = _COUNT.match(part)
        kind, number = (part[count.end() :], int(count[1])) if count else (part, 0)
        if kind not in by_kind or number > by_kind[kind][0]:
            by_kind[kind] = (number, part)
    distinct = [part for _, part in by_kind.values()]
    kept: list[str] = []
    for note in distinct:
        if len("; ".join([*kept, note])) > _MAX_NOTE_CHARS and kept:
            kept.append(f"{len(distinct) - len(kept)} more")
            break
        kept.append(note[:_MAX_NOTE_CHARS])
    return "; ".join(kept) or None
