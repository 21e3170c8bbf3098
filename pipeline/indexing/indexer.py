"""One video's frames to one row: caption and answers from a single encoding. No Ray, no files."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from flashvid.generation import VideoInput
from pipeline.config import JobConfig
from pipeline.decoding import FrameRequest
from pipeline.errors import UserError
from pipeline.indexing.engine_interface import AnswersVideos, load_engine
from pipeline.indexing.model_revision import check_model, check_revision, place_of, resolve_revision
from pipeline.indexing.out_of_memory import guarded
from pipeline.indexing.summarizing import check_prompt
from pipeline.indexing.trial import try_out
from pipeline.indexing.video_job import RowOrigin, VideoJob, baseline_tokens
from pipeline.records import Frames, VideoRef, VideoRow, Window

if TYPE_CHECKING:
    from flashvid.compression import CompressionPlan

__all__ = ["VideoIndexer", "has_gpu", "load_indexer", "resolve_revision"]


class VideoIndexer:
    """Turns frames into rows with one model; keeps nothing between videos.

    ``model_revision`` is what ``resolve_revision`` gave, so that every worker writes the same fingerprint.
    """

    def __init__(
        self,
        engine: AnswersVideos,
        config: JobConfig,
        *,
        model_revision: str,
        run_id: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._config = config
        self._origin = RowOrigin(model_revision, config.fingerprint(model_revision), run_id, clock)

    @property
    def frame_request(self) -> FrameRequest:
        """What to decode: number and size of frames, such that the model need not resize them again."""
        frames, vision = self._config.frames, self._engine.vision
        most = min(frames.max_pixels, vision.max_pixels)
        return FrameRequest(
            sampling=frames.sampling,
            num_frames=self._config.num_frames,
            fps=frames.fps,
            min_pixels=min(most, max(frames.min_pixels, vision.min_pixels)),
            max_pixels=most,
            multiple=vision.patch_size * vision.merge_size,
        )

    def start(self, ref: VideoRef, attempt: int) -> VideoJob:
        """A video whose windows are then added one by one; several may be under way at once."""
        return VideoJob(self._engine, self._config, self._origin, ref, attempt)

    def index(self, ref: VideoRef, frames: Frames, attempt: int) -> VideoRow:
        """Caption one video and answer the questions about it, as one window.

        Raises VideoError (generation_failed, out_of_memory) where this video is at fault. A device that no
        longer works (torch.AcceleratorError) goes through as it is: no other video can be served either.
        """
        start, end = ref.start_seconds or 0.0, frames.duration_seconds
        job = self.start(ref, attempt)
        job.add(frames, Window(0, 1, start, end if ref.end_seconds is None else min(end, ref.end_seconds)))
        return job.finish()

    def try_out(self) -> None:
        """Ask about a made-up video, as ``index`` does, for one token each: finds what is wrong with the job.

        Changes nothing of what is answered later. Raises UserError with the engine's error and its stage,
        VideoError out_of_memory and torch.AcceleratorError where it is the machine.
        """
        try_out(self._engine, self._config, self._origin, lambda: self.frame_request)

    def plan(self, frames: Frames) -> tuple[CompressionPlan, tuple[int, int, int]]:
        """What ``index`` keeps of a video's tokens, without answering, and (T, rows, columns) of the tokens.

        Raises as ``index`` does; retention_ratio=1, which leaves nothing to plan, is generation_failed.
        """
        return guarded(lambda: self._plan(frames))

    def _plan(self, frames: Frames) -> tuple[CompressionPlan, tuple[int, int, int]]:
        plan, (units, rows, columns) = self._engine.plan(
            VideoInput(frames.data, frames.seconds_per_frame),
            baseline_tokens=baseline_tokens(self._engine, self._config, frames),
        )
        merge = self._engine.vision.merge_size
        return plan, (units, rows // merge, columns // merge)


def load_indexer(
    config: JobConfig, *, run_id: str, device: str | None = None, model_revision: str | None = None
) -> VideoIndexer:
    """Load the model onto a device ("cuda" where ``workers.num_gpus`` asks for one, else "cpu").

    With ``model.engine`` that function makes the engine, and torch is imported only if it does so.
    model_revision: as the driver resolved it; None resolves it here. Raises UserError for a model that
    cannot be loaded as it is, or a GPU that is not there; OSError where the hub cannot be reached;
    PipelineError where the checkpoint here is not of that revision, before or after it was loaded.
    """
    if model_revision is None:
        check_model(config.model)
    revision = model_revision or resolve_revision(config.model)
    check_revision(config.model, revision)  # weights of many GB need not be loaded to find that out
    engine = _engine(config, device, revision)
    check_revision(config.model, revision)  # they may have been replaced while they were read
    if config.windows is not None and config.windows.summary is not None:
        check_prompt(engine, config.windows.summary)
    return VideoIndexer(engine, config, model_revision=revision, run_id=run_id)


def _engine(config: JobConfig, device: str | None, revision: str) -> AnswersVideos:
    if config.model.engine is None:
        return _own_engine(config, device or _device(config), revision)
    return load_engine(config, device or ("cpu" if config.workers.num_gpus == 0 else "cuda"))


def _own_engine(config: JobConfig, device: str, revision: str) -> AnswersVideos:
    from flashvid.generation import Engine  # seconds; a wrong name is refused before

    model = config.model
    try:
        return Engine.from_pretrained(
            place_of(model),
            config=config.compression,
            device=device,
            dtype=model.dtype,
            revision=None if revision.startswith("sha256-") else revision,
            attn_implementation=model.attn_implementation,
            positions=model.positions,
        )
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"model.name={model.name!r} cannot be used as configured: {error}") from error


def has_gpu() -> bool:
    """Whether torch sees a GPU in this process."""
    import torch

    return torch.cuda.is_available()


def _device(config: JobConfig) -> str:
    if config.workers.num_gpus == 0:
        return "cpu"
    if not has_gpu():
        import torch

        raise UserError(
            f"workers.num_gpus={config.workers.num_gpus:g} but torch {torch.__version__} sees no GPU here; "
            "set workers.num_gpus=0 to run on CPU"
        )
    return "cuda"
