"""The interface of the engine that answers, and how one of another package is found. Imports no torch."""

from __future__ import annotations

import importlib
import sys
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.config import JobConfig
from pipeline.errors import UserError

if TYPE_CHECKING:
    from flashvid.generation import Generation, VideoAnswers, VideoInput
    from flashvid.resizing import VisionSizes

__all__ = ["AnswersVideos", "accelerator_errors", "is_memory_error", "load_engine"]

_NEEDED = ("vision", "answer", "write", "count_tokens", "plan")
# cudaErrorMemoryAllocation, hipErrorOutOfMemory: the device refused an allocation and is sound.
_NO_MEMORY_CODE = 2


class AnswersVideos(Protocol):
    """What the indexer needs of an engine; ``flashvid.engine.Engine`` is one.

    One thread uses it, one call at a time; nothing is kept between calls. Every method may raise MemoryError
    or torch.OutOfMemoryError, after which the same call may be tried with less. torch.AcceleratorError (but
    for the code of a refused allocation) means that the device serves no other video either; anything else is
    this video's fault. An engine of another package may derive from this class; then it need not have a plan.

    Before its first video each worker asks all prompts about a made-up one, of 4 frames of noise, with
    ``max_new_tokens`` 1, and throws the answers away. What is raised then, and for 32 frames too, ends the
    run as a mistake of the job's; an engine that only finds nothing in that video to answer raises a
    VideoError (pipeline.errors).

    Prompts are data, from whoever wrote the manifest or from a model that read them off a screen: names of
    control tokens in them (``<|im_end|>``) are to be read, and counted, as text.
    """

    @property
    @abstractmethod
    def vision(self) -> VisionSizes:
        """How large the model wants its frames, and how many tokens become of them."""
        ...

    @abstractmethod
    def answer(
        self,
        video: VideoInput,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | Sequence[int],
        baseline_tokens: int | None = None,
        prompts_per_batch: int | None = None,
    ) -> VideoAnswers:
        """Answer every prompt about one video, in their order.

        ``video.frames`` uint8 (T, H, W, 3); ``max_new_tokens``: one limit, or one for each prompt.
        ``baseline_tokens``: most visual tokens that the language model may see; None: as configured.
        ``prompts_per_batch``: at most so many prompts at once; None: as many as the engine thinks fit.
        """
        ...

    @abstractmethod
    def write(self, prompt: str, *, max_new_tokens: int) -> Generation:
        """Answer a prompt without a video."""
        ...

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """How many tokens the model reads of a text."""
        ...

    def plan(self, video: VideoInput, *, baseline_tokens: int | None = None) -> tuple[Any, Any]:
        """``flashvid show`` only: the CompressionPlan, and the grid (units, rows, columns) in patches.

        Raises NotImplementedError in an engine that has no such thing.
        """
        name = type(self).__name__  # a body of nothing but the raise is an abstract one to mypy
        raise NotImplementedError(f"{name} has no plan of what it keeps")


def load_engine(config: JobConfig, device: str) -> AnswersVideos:
    """Call the function that ``model.engine`` names, as ``package.module:function``, with both arguments.

    Raises UserError where there is no such function or what it returns is no engine. What the function
    itself raises goes through.
    """
    name = config.model.engine or ""
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise _refused(name, f"cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(function):
        raise _refused(name, f"is no function but a {type(function).__name__}")
    engine: AnswersVideos = function(config, device)
    missing = [attribute for attribute in _NEEDED if not hasattr(engine, attribute)]
    if missing:
        raise _refused(name, f"returns a {type(engine).__name__}, which lacks {', '.join(missing)}")
    return engine


def is_memory_error(error: BaseException) -> bool:
    """Whether memory did not suffice: on the host, in torch's allocator, or by the device's own word."""
    torch = sys.modules.get("torch")
    known = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    is_refused = getattr(error, "error_code", None) == _NO_MEMORY_CODE
    return isinstance(error, known) or (isinstance(error, accelerator_errors()) and is_refused)


def accelerator_errors() -> tuple[type[BaseException], ...]:
    """The classes of what the device itself reports: torch's, from 2.8 on, where loaded.

    Where it is no memory error the device serves nobody any more.
    """
    found = getattr(sys.modules.get("torch"), "AcceleratorError", None)
    return () if found is None else (found,)


def _refused(name: str, why: str) -> UserError:
    return UserError(
        f"model.engine={name!r} {why}; it must be package.module:function, importable on every worker "
        "(installed, or on PYTHONPATH), and return an engine (see pipeline.indexing.AnswersVideos)"
    )
