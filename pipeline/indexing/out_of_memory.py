"""When memory does not suffice: fewer prompts at once, fewer frames, shorter texts. What errors mean."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from flashvid.generation import PROMPTS_PER_BATCH
from pipeline.errors import Reason, Stage, VideoError
from pipeline.indexing.engine_interface import accelerator_errors, is_memory_error

__all__ = ["EngineError", "Step", "Steps", "free_memory", "guarded", "halved", "spread"]

_T = TypeVar("_T")
_Size = TypeVar("_Size")


class EngineError(VideoError):
    """An engine's error that it did not itself call the video's; the cause is what it raised."""


@dataclass(frozen=True)
class Step:
    """How much is asked of the engine in one call: prompts at once, and frames of the video."""

    num_prompts: int
    num_frames: int

    def __str__(self) -> str:
        prompts = "1 prompt" if self.num_prompts == 1 else f"{self.num_prompts} prompts"
        return f"{prompts} at once, {self.num_frames} frames"


class Steps:
    """The steps of one video, from all that is asked for down to the least that is worth an answer.

    The number of prompts at once is halved down to 1, which changes no answer; then the number of frames,
    not below 2 and not below a quarter of the baseline's. Windows of one video share their Steps: the
    number of prompts that a window could do is where the next one begins.
    """

    def __init__(self, num_prompts: int, baseline_frames: int) -> None:
        self._most = self._now = min(num_prompts, PROMPTS_PER_BATCH)
        self._fewest_frames = max(2, -(-baseline_frames // 4))

    def run(self, num_frames: int, call: Callable[[Step], _T]) -> tuple[_T, str | None]:
        """What the first call gives that does not run out of memory, and what was stepped down, or None.

        Before another call all that the failed one held is given back. Raises VideoError out_of_memory
        where the last step fails too; other errors go through.
        """
        whole = Step(self._most, num_frames)
        result, step = _first_that_fits(self._down_from(num_frames), call)
        self._now = step.num_prompts
        return result, _note(whole, step)

    def limit(self, step: Step) -> int | None:
        """The engine's ``prompts_per_batch``; None where it may take as many as it thinks fit."""
        return None if step.num_prompts == self._most else step.num_prompts

    def _down_from(self, num_frames: int) -> Iterator[Step]:
        prompts, frames = self._now, num_frames
        yield Step(prompts, frames)
        while prompts > 1:
            prompts //= 2
            yield Step(prompts, frames)
        while frames > self._fewest_frames:
            frames = max(self._fewest_frames, frames // 2)
            yield Step(prompts, frames)


def halved(most: int, least: int, call: Callable[[int], _T]) -> tuple[_T, int]:
    """What the first of call(most), call(most // 2), … gives that does not run out of memory, and for what.

    Most and least in tokens; not below ``least``. Raises VideoError out_of_memory where that fails too; other
    errors go through.
    """
    return _first_that_fits(_halvings(most, least), call, "{} tokens")


def _halvings(most: int, least: int) -> Iterator[int]:
    yield most
    while (most := most // 2) >= least:
        yield most


def _first_that_fits(
    sizes: Iterable[_Size], call: Callable[[_Size], _T], named: str = "{}"
) -> tuple[_T, _Size]:
    """The first result that memory suffices for, and its size; between two calls memory is given back."""
    for size in sizes:
        try:
            return call(size), size
        except Exception as error:
            if not is_memory_error(error):
                raise
            said = _described(error)
        free_memory()  # only here, with the traceback gone, are the tensors of the call free
    text = f"{said}, at the least that is tried: {named.format(size)}"
    raise VideoError(Stage.GENERATION, Reason.OUT_OF_MEMORY, text)


def spread(num_frames: int, wanted: int) -> NDArray[np.int64]:
    """Indices of ``wanted`` of ``num_frames`` frames, (wanted,) int64, increasing, evenly over the whole."""
    return ((2 * np.arange(wanted, dtype=np.int64) + 1) * num_frames) // (2 * wanted)


def guarded(work: Callable[[], _T]) -> _T:
    """What ``work`` gives. An engine's error becomes a VideoError: out_of_memory or generation_failed.

    A device that no longer works (torch.AcceleratorError) goes through as it is: no other video can be
    served either.
    """
    try:
        return work()
    except VideoError:
        raise
    except Exception as error:
        if not is_memory_error(error):
            if isinstance(error, accelerator_errors()):
                raise
            raise EngineError(Stage.GENERATION, Reason.GENERATION_FAILED, _described(error)) from error
        problem = VideoError(Stage.GENERATION, Reason.OUT_OF_MEMORY, _described(error))
    free_memory()
    raise problem


def free_memory() -> None:
    """Give back what no tensor holds any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _note(whole: Step, step: Step) -> str | None:
    parts = []
    if step.num_prompts < whole.num_prompts:
        prompts = "1 prompt" if step.num_prompts == 1 else f"{step.num_prompts} prompts"
        parts.append(f"{prompts} at once instead of {whole.num_prompts}")
    if step.num_frames < whole.num_frames:
        parts.append(f"{step.num_frames} of {whole.num_frames} frames")
    return f"out of memory: {', '.join(parts)}" if parts else None


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
