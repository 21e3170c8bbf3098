"""One made-up video before the first real one: whatever fails with it would fail with every other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from flashvid.resizing import smart_resize
from pipeline.config import JobConfig
from pipeline.decoding import FrameRequest
from pipeline.errors import Reason, UserError, VideoError
from pipeline.indexing.engine_interface import AnswersVideos
from pipeline.indexing.out_of_memory import EngineError, free_memory, guarded
from pipeline.indexing.video_job import RowOrigin, VideoJob
from pipeline.records import Frames, VideoRef, Window

__all__ = ["try_out"]

_NUM_FRAMES = (4, 32)  # two temporal units, to merge something over time; more where so few do not suffice
_HEIGHT, _WIDTH = 240, 320  # of the made-up file; the job's limits make of it what they make of any
_FPS = 2.0


def try_out(
    engine: AnswersVideos, config: JobConfig, origin: RowOrigin, request: Callable[[], FrameRequest]
) -> None:
    """Answer all prompts of the job about a made-up video, one token each, and write its summary if any.

    Raises UserError where that fails, of few frames and of more, VideoError out_of_memory where memory does
    not suffice. A device that no longer works goes through as it is. An engine that itself raises a
    VideoError has judged the video, not the job, and that is no failure.
    """
    error: VideoError | None = None
    for num_frames in sorted({min(number, config.num_frames) for number in _NUM_FRAMES}):
        error = _failure(engine, config, origin, request, num_frames)
        free_memory()
        if error is None:
            return
    assert error is not None
    raise UserError(
        f"no video was tried: a made-up one already fails during {error.stage.value} with "
        f"{error.message}; every other would, so the model or the settings have to be mended"
    ) from error


def _failure(
    engine: AnswersVideos,
    config: JobConfig,
    origin: RowOrigin,
    request: Callable[[], FrameRequest],
    num_frames: int,
) -> VideoError | None:
    """What the job is at fault for; None where the video was answered, or judged by the engine itself."""
    job = VideoJob(engine, _shortened(config), origin, VideoRef("made-up", "made-up", "1", 0), 1)

    def answer() -> None:
        frames = _frames(num_frames, request())
        for window in _windows(config):
            job.add(frames, window)
        job.finish()

    try:
        guarded(answer)
    except EngineError as error:
        return error
    except VideoError as error:
        if error.reason is Reason.OUT_OF_MEMORY:
            raise
    return None


def _windows(config: JobConfig) -> Iterator[Window]:
    """One, or two where there is a summary, which is not written of one."""
    total = 1 if config.windows is None or config.windows.summary is None else 2
    return (Window(number, total, float(number), number + 1.0) for number in range(total))


def _shortened(config: JobConfig) -> JobConfig:
    one = {"caption_max_new_tokens": 1, "answer_max_new_tokens": 1}
    changes = {"prompts": config.prompts.model_copy(update=one)}
    if config.windows is None or config.windows.summary is None:
        return config.model_copy(update=changes)
    summary = config.windows.summary.model_copy(update={"max_new_tokens": 1})
    windows = config.windows.model_copy(update={"summary": summary})
    return config.model_copy(update={**changes, "windows": windows})


def _frames(num_frames: int, request: FrameRequest) -> Frames:
    """Noise that drifts over a slope, (T, H, W, 3) uint8, the same each time, at the size of real ones."""
    limits = {"min_pixels": request.min_pixels, "max_pixels": request.max_pixels}
    height, width = smart_resize(_HEIGHT, _WIDTH, multiple=request.multiple, **limits)
    slope = np.linspace(0, 160, width)[None, None, :, None] + np.zeros((num_frames, height, 1, 3))
    noise = np.random.default_rng(0).integers(0, 64, (height, width + num_frames, 3))
    drifting = np.stack([noise[:, start : start + width] for start in range(num_frames)])
    data = (slope + drifting).astype(np.uint8)
    data.flags.writeable = False  # as real ones often are
    return Frames(
        data=data,
        pts_seconds=np.arange(num_frames) / _FPS,
        source_fps=_FPS,
        source_num_frames=num_frames,
        duration_seconds=num_frames / _FPS,
        width=_WIDTH,
        height=_HEIGHT,
        codec="made-up",
        decoder="made-up",
        decode_seconds=0.0,
    )
