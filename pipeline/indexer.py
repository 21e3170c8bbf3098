"""One video's frames to one row: caption and answers from a single encoding. No Ray, no files."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pipeline.config import JobConfig
from pipeline.records import (
    Answer,
    Frames,
    Question,
    Reason,
    Stage,
    UserError,
    VideoError,
    VideoRef,
    VideoRow,
)
from pipeline.revisions import resolve_revision
from pipeline.sampling import FrameRequest

if TYPE_CHECKING:
    from flashvid.compression import CompressionPlan
    from flashvid.engine import Engine, Generation, VideoAnswers

__all__ = ["VideoIndexer", "has_gpu", "load_indexer", "resolve_revision"]

_T = TypeVar("_T")


class VideoIndexer:
    """Turns frames into rows with one model; keeps nothing between videos.

    ``model_revision`` is what ``resolve_revision`` gave, so that every worker writes the same fingerprint.
    """

    def __init__(
        self,
        engine: Engine,
        config: JobConfig,
        *,
        model_revision: str,
        run_id: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._config = config
        self._model_revision = model_revision
        self._fingerprint = config.fingerprint(model_revision)
        self._run_id = run_id
        self._clock = clock

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

    def index(self, ref: VideoRef, frames: Frames, attempt: int) -> VideoRow:
        """Caption one video and answer the questions about it.

        Raises VideoError (generation_failed, out_of_memory) where this video is at fault. A device that no
        longer works (torch.AcceleratorError) goes through as it is: no other video can be served either.
        """
        questions = (*self._config.prompts.questions, *ref.questions)
        answers = self._guarded(lambda: self._ask(frames, questions))
        return self._row(ref, frames, questions, answers, attempt)

    def plan(self, frames: Frames) -> tuple[CompressionPlan, tuple[int, int, int]]:
        """What ``index`` keeps of a video's tokens, without answering, and (T, rows, columns) of the tokens.

        Raises as ``index`` does; retention_ratio=1, which leaves nothing to plan, is generation_failed.
        """
        return self._guarded(lambda: self._plan(frames))

    def _guarded(self, work: Callable[[], _T]) -> _T:
        import torch

        try:
            return work()
        except (torch.OutOfMemoryError, MemoryError) as error:
            problem = VideoError(Stage.GENERATION, Reason.OUT_OF_MEMORY, _described(error))
        except Exception as error:
            if isinstance(error, getattr(torch, "AcceleratorError", ())):  # new in torch 2.8
                raise
            raise VideoError(Stage.GENERATION, Reason.GENERATION_FAILED, _described(error)) from error
        # Only here, with the traceback gone, are the tensors of the failed call free to be given back.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise problem

    def _plan(self, frames: Frames) -> tuple[CompressionPlan, tuple[int, int, int]]:
        from flashvid.engine import VideoInput

        plan, (units, rows, columns) = self._engine.plan(
            VideoInput(frames.data, frames.seconds_per_frame), baseline_tokens=self._baseline_tokens(frames)
        )
        merge = self._engine.vision.merge_size
        return plan, (units, rows // merge, columns // merge)

    def _ask(self, frames: Frames, questions: tuple[Question, ...]) -> VideoAnswers:
        from flashvid.engine import VideoInput

        prompts = self._config.prompts
        limits = [prompts.caption_max_new_tokens] + [prompts.answer_max_new_tokens] * len(questions)
        return self._engine.answer(
            VideoInput(frames.data, frames.seconds_per_frame),
            [prompts.caption, *(question.text for question in questions)],
            max_new_tokens=limits,
            baseline_tokens=None if self._config.compression.is_bypass else self._baseline_tokens(frames),
        )

    def _baseline_tokens(self, frames: Frames) -> int:
        """Visual tokens that the baseline number of frames costs uncompressed, at this resolution."""
        vision = self._engine.vision
        units = -(-self._config.frames.baseline // vision.temporal_patch_size)
        return units * vision.tokens_per_unit(frames.data.shape[1], frames.data.shape[2])

    def _row(
        self,
        ref: VideoRef,
        frames: Frames,
        questions: tuple[Question, ...],
        answers: VideoAnswers,
        attempt: int,
    ) -> VideoRow:
        caption, *replies = answers.generations
        return VideoRow(
            video_id=ref.video_id,
            uri=ref.uri,
            version=ref.version,
            caption=caption.text,
            caption_finish_reason=caption.finish_reason,
            answers=tuple(map(_answer, questions, replies)),
            segments=(),
            duration_seconds=frames.duration_seconds,
            width=frames.width,
            height=frames.height,
            fps=frames.source_fps,
            codec=frames.codec,
            decoder=frames.decoder,
            num_frames=len(frames.data),
            baseline_frames=self._config.frames.baseline,
            baseline_visual_tokens=self._baseline_tokens(frames),
            visual_tokens_before=answers.visual_tokens_before,
            visual_tokens_budget=answers.budget_tokens,
            visual_tokens_after=answers.visual_tokens_after,
            visual_tokens_mean=answers.visual_tokens_mean,
            retention_ratio=self._config.compression.retention_ratio,
            output_tokens=sum(generation.output_tokens for generation in answers.generations),
            degraded=frames.damage,
            decode_seconds=frames.decode_seconds,
            encode_seconds=answers.encode_seconds,
            compress_seconds=answers.compress_seconds,
            prefill_seconds=answers.prefill_seconds,
            text_decode_seconds=answers.decode_seconds,
            model=self._config.model.name,
            model_revision=self._model_revision,
            fingerprint=self._fingerprint,
            run_id=self._run_id,
            attempt=attempt,
            indexed_at_us=int(self._clock() * 1e6),
        )


def load_indexer(
    config: JobConfig, *, run_id: str, device: str | None = None, model_revision: str | None = None
) -> VideoIndexer:
    """Load the model onto a device ("cuda" where ``workers.num_gpus`` asks for one, else "cpu").

    model_revision: as the driver resolved it; None resolves it here. Raises UserError for a model that
    cannot be loaded as it is, or a GPU that is not there; OSError where the hub cannot be reached.
    """
    model = config.model
    revision = model_revision or resolve_revision(model)
    from flashvid.engine import Engine  # seconds; a wrong name is refused before

    try:
        engine = Engine.from_pretrained(
            model.name,
            config=config.compression,
            device=device or _device(config),
            dtype=model.dtype,
            revision=None if revision.startswith("sha256-") else revision,
            attn_implementation=model.attn_implementation,
            positions=model.positions,
        )
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"model.name={model.name!r} cannot be used as configured: {error}") from error
    return VideoIndexer(engine, config, model_revision=revision, run_id=run_id)


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


def _answer(question: Question, reply: Generation) -> Answer:
    return Answer(question.question_id, question.text, reply.text, reply.finish_reason, reply.output_tokens)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
