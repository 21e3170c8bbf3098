"""Several windows to one row: what is in it, what is summed, what a summary adds, what fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.job import JobConfig
from pipeline.decoding.windows import plan_windows
from pipeline.errors import Reason, VideoError
from pipeline.indexing.video_job import RowOrigin, VideoJob
from pipeline.output.schemas import VIDEO_SCHEMA
from pipeline.records import Frames, Question, VideoRow, Window
from tests.unit.engines import PlainEngine
from tests.unit.samples import make_ref

SUMMARY = {"prompt": "Sum this up .", "max_new_tokens": 20, "max_input_tokens": 256}


def config(summary: dict[str, Any] | None = None, **windows: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "corpus": {"uri": "videos"},
            "output": {"uri": "index"},
            "model": {"name": "any", "engine": "tests.unit.engines:made"},
            "frames": {"baseline": 4},
            "windows": {"length_seconds": 60, **windows, "summary": summary},
            "prompts": {"caption": "what moves ?", "questions": ["when ?"]},
        }
    )


def frames_of(window: Window, num_frames: int = 8) -> Frames:
    """Frames whose pixels say which window they are of."""
    return Frames(
        data=np.full((num_frames, 56, 84, 3), window.number, np.uint8),
        pts_seconds=window.start_seconds + np.arange(num_frames),
        source_fps=25.0,
        source_num_frames=3750,
        duration_seconds=150.0,
        width=1280,
        height=720,
        codec="h264",
        decoder="decord",
        decode_seconds=0.25,
    )


def start(job: JobConfig, engine: PlainEngine, **ref: Any) -> VideoJob:
    return VideoJob(engine, job, RowOrigin("r1", "f" * 16, "run-7", lambda: 12.5), make_ref(3, **ref), 2)


def run(job: JobConfig, engine: PlainEngine, duration: float = 150.0, **ref: Any) -> VideoRow:
    video = start(job, engine, **ref)
    for window in plan_windows(duration, job.windows):
        video.add(frames_of(window), window)
    return video.finish()


def test_every_window_has_a_caption_and_answers_with_its_times() -> None:
    row = run(config(), PlainEngine(), questions=(Question("own", "where ?"),))
    assert [(one.start_seconds, one.end_seconds) for one in row.segments] == [(0, 60), (60, 120), (120, 150)]
    assert [one.caption for one in row.segments] == [f"what moves ? 8 frames,\nred {n}" for n in range(3)]
    for number, segment in enumerate(row.segments):
        assert [one.question_id for one in segment.answers] == ["q1", "own"]
        assert all(one.answer.endswith(f"red {number}") for one in segment.answers)
    assert row.answers == (), "they are in the segments"
    assert pa.Table.from_pylist([row.to_record()], schema=VIDEO_SCHEMA).num_rows == 1


def test_the_caption_is_the_windows_captions_line_by_line() -> None:
    row = run(config(), PlainEngine())
    assert row.caption.splitlines() == [
        "0:00-1:00 what moves ? 8 frames, red 0",
        "1:00-2:00 what moves ? 8 frames, red 1",
        "2:00-2:30 what moves ? 8 frames, red 2",
    ]
    assert row.caption_finish_reason == "stop"


def test_counts_and_seconds_are_sums_over_the_windows() -> None:
    row, alone = run(config(), PlainEngine()), run(config(), PlainEngine(), 60)
    counts = (row.num_frames, row.baseline_frames, row.baseline_visual_tokens, row.output_tokens)
    assert counts == (24, 12, 3 * 2 * 6, 30)
    tokens = (row.visual_tokens_before, row.visual_tokens_budget, row.visual_tokens_after)
    assert tokens == (240, 27, 24)
    assert row.visual_tokens_mean == 12.0
    seconds = (row.decode_seconds, row.encode_seconds, row.compress_seconds, row.prefill_seconds)
    assert (*seconds, row.text_decode_seconds) == (0.75, 3.0, 6.0, 9.0, 12.0)
    assert (alone.num_frames, alone.visual_tokens_before, alone.decode_seconds) == (8, 80, 0.25)
    assert (row.duration_seconds, row.width, row.attempt, row.run_id) == (150.0, 1280, 2, "run-7")


def test_a_summary_is_the_caption_and_its_cost_is_counted() -> None:
    engine = PlainEngine()
    row = run(config(SUMMARY), engine)
    assert (row.caption, row.caption_finish_reason) == ("summary 1", "length")
    assert engine.written[0].startswith("Sum this up .\n\n0:00-1:00 what moves ?")
    assert row.output_tokens == 30 + 7
    assert row.text_decode_seconds > 12.0
    assert len(row.segments) == 3


def test_a_video_of_one_window_needs_no_summary() -> None:
    engine = PlainEngine()
    row = run(config(SUMMARY), engine, duration=50)
    assert (row.caption, len(row.segments), engine.written) == ("what moves ? 8 frames,\nred 0", 1, [])


def test_without_windows_the_row_is_that_of_its_only_window() -> None:
    job = config().model_copy(update={"windows": None})
    row = run(job, PlainEngine())
    assert (row.segments, len(row.answers), row.caption) == ((), 1, "what moves ? 8 frames,\nred 0")


def test_windows_that_ran_out_of_memory_are_said_once() -> None:
    engine = PlainEngine(most_prompts=1, most_frames=4)
    row = run(config(), engine)
    assert row.degraded == "out of memory: 1 prompt at once instead of 2, 4 of 8 frames"
    assert row.num_frames == 12
    assert engine.calls == [(8, None), (8, 1), (4, 1), (8, 1), (4, 1), (8, 1), (4, 1)]


def test_a_window_that_ran_out_of_memory_leaves_the_others_their_frames() -> None:
    """The middle one needs fewer prompts and frames; the next begins with as few prompts, but all frames."""
    job, engine = config(), PlainEngine()
    video = start(job, engine)
    notes = []
    for window in plan_windows(150, job.windows):
        engine.most_prompts, engine.most_frames = (1, 4) if window.number == 1 else (99, 9999)
        video.add(frames_of(window), window)
        notes.append(engine.calls[-1])
    row = video.finish()
    assert notes == [(8, None), (4, 1), (8, 1)]
    assert row.num_frames == 8 + 4 + 8
    assert row.degraded == (
        "out of memory: 1 prompt at once instead of 2, 4 of 8 frames; "
        "out of memory: 1 prompt at once instead of 2"
    )
    engine.calls.clear()
    assert run(job, engine).degraded is None, "the next video begins anew"
    assert engine.calls == [(8, None)] * 3


def test_distinct_notes_are_joined_and_the_note_stays_short() -> None:
    job, engine = config(max_count=500), PlainEngine()
    video = start(job, engine)
    for window in plan_windows(60.0 * 100, job.windows):
        note = "cut short" if window.number % 2 else f"window {window.number} has no picture"
        video.add(replace(frames_of(window), damage=note), window)
    degraded = video.finish().degraded
    assert degraded is not None
    assert degraded.startswith("window 0 has no picture; cut short; window 2 has no picture; ")
    assert degraded.endswith(" more")
    assert len(degraded) < 520
    assert degraded.count("; ") + int(degraded.split()[-2]) == 51


def test_damage_that_is_counted_on_is_said_once() -> None:
    job, engine = config(), PlainEngine()
    video = start(job, engine)
    for window in plan_windows(150, job.windows):
        note = f"{10 * window.number} of 1500 packets could not be decoded; ends at 9.0 s of 9.9 s"
        video.add(replace(frames_of(window), damage=note), window)
    assert video.finish().degraded == ("20 of 1500 packets could not be decoded; ends at 9.0 s of 9.9 s")


def test_a_change_of_decoder_in_the_middle_is_said() -> None:
    job, engine = config(), PlainEngine()
    video = start(job, engine)
    for window in plan_windows(150, job.windows):
        video.add(replace(frames_of(window), decoder="pyav" if window.number else "decord"), window)
    assert video.finish().decoder == "decord+pyav"


def test_there_is_no_half_row() -> None:
    video = start(config(), PlainEngine())
    with pytest.raises(ValueError, match="only 0 of its windows"):
        video.finish()
    first, second, third = plan_windows(150, config().windows)
    video.add(frames_of(first), first)
    with pytest.raises(ValueError, match="only 1 of its windows"):
        video.finish()
    with pytest.raises(ValueError, match="window 2 of 3 came as number 1"):
        video.add(frames_of(third), third)
    video.add(frames_of(second), second)
    video.add(frames_of(third), third)
    assert len(video.finish().segments) == 3


def test_a_window_that_memory_never_suffices_for_fails_the_video() -> None:
    video = start(config(), PlainEngine(most_frames=1))
    (first, *_) = plan_windows(150, config().windows)
    with pytest.raises(
        VideoError, match="MemoryError: full, at the least that is tried: 1 prompt at once, 2 fr"
    ) as caught:
        video.add(frames_of(first), first)
    assert caught.value.reason is Reason.OUT_OF_MEMORY


def test_a_summary_that_fails_is_the_videos_failure() -> None:
    class Mute(PlainEngine):
        def write(self, prompt: str, *, max_new_tokens: int) -> Any:
            raise RuntimeError("no words")

    with pytest.raises(VideoError, match="RuntimeError: no words") as caught:
        run(config(SUMMARY), Mute())
    assert caught.value.reason is Reason.GENERATION_FAILED


class ShortOfBreath(PlainEngine):
    """Memory ends with a prompt of more words than these."""

    most_words = 270

    def write(self, prompt: str, *, max_new_tokens: int) -> Any:
        generation = super().write(prompt, max_new_tokens=max_new_tokens)
        if len(prompt.split()) > self.most_words:
            raise MemoryError("full")
        return generation


def test_a_summary_that_memory_does_not_suffice_for_is_written_from_less_at_once() -> None:
    engine = ShortOfBreath()
    row = run(config(SUMMARY | {"max_input_tokens": 1024}), engine, duration=60.0 * 100)
    assert row.caption.startswith("summary ")
    assert row.degraded == "out of memory: summary from 256 tokens at once instead of 1024"
    sizes = [len(prompt.split()) for prompt in engine.written]
    assert max(sizes[2:]) <= 256 < sizes[1] < sizes[0] <= 1024
    assert len(row.segments) == 100


def test_a_summary_that_never_fits_fails_the_video() -> None:
    engine = ShortOfBreath()
    engine.most_words = 5
    with pytest.raises(VideoError, match="MemoryError: full, at the least that is tried: 256") as caught:
        run(config(SUMMARY | {"max_input_tokens": 1024}), engine, duration=60.0 * 100)
    assert caught.value.reason is Reason.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda texts: texts[:1], "gave 1 texts for 2 prompts"),
        (lambda texts: (), "gave 0 texts for 2 prompts"),
        (lambda texts: (texts[0], replace(texts[1], text="half \ud83c")), "surrogates"),
    ],
)
def test_answers_that_no_row_can_hold_fail_the_video(change: Callable[[Any], Any], said: str) -> None:
    """Of an engine of others: an answer must not get lost, nor may the worker or the commit end by it."""

    class Odd(PlainEngine):
        def answer(self, *args: Any, **options: Any) -> Any:
            answers = super().answer(*args, **options)
            return replace(answers, generations=change(answers.generations))

    with pytest.raises(VideoError, match=said) as caught:
        run(config(), Odd())
    assert caught.value.reason is Reason.GENERATION_FAILED


def test_videos_under_way_at_once_do_not_mix() -> None:
    job, engine = config(), PlainEngine()
    videos = [start(job, engine) for _ in range(2)]
    for window in plan_windows(150, job.windows):
        for shift, video in enumerate(videos):
            shifted = frames_of(window)
            video.add(replace(shifted, data=shifted.data + 10 * shift), window)
    first, second = (video.finish() for video in videos)
    assert [one.caption[-2:].strip() for one in first.segments] == ["0", "1", "2"]
    assert [one.caption[-2:] for one in second.segments] == ["10", "11", "12"]
