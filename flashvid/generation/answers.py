"""What goes into the engine and what comes out of it. Does not import torch until frames become tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from flashvid.inside import Grid

__all__ = [
    "PROMPTS_PER_BATCH",
    "Generation",
    "VideoAnswers",
    "VideoInput",
    "check_prompts",
    "token_limits",
]

PROMPTS_PER_BATCH = 16  # decoded together, where nobody says otherwise


@dataclass(frozen=True)
class VideoInput:
    """Sampled frames uint8 (T, H, W, 3), RGB, tensor or numpy array, and the seconds between two of them.

    Raises ValueError for seconds that are negative or not finite.
    """

    frames: Any
    second_per_frame: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.second_per_frame) and self.second_per_frame >= 0):
            raise ValueError(
                f"{self.second_per_frame = } must be a finite number >= 0, the seconds between two frames"
            )

    def as_tensor(self) -> Tensor:
        """The frames without a copy; in shared memory they are often read-only, and they are only read."""
        import torch

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
            return torch.as_tensor(self.frames)


@dataclass(frozen=True)
class Generation:
    """One answer. ``finish_reason`` is "stop" or "length"; ``output_tokens`` counts the end token too."""

    text: str
    finish_reason: str
    output_tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class VideoAnswers:
    """Answers in the order of the prompts, what they cost, and which tokens stood for the video.

    visual_tokens_after enter the language model, visual_tokens_mean is the mean over its layers; kept (K,)
    int64 on the CPU; grid_thw is (units, rows, columns) in patches. budget_tokens is the most that the
    settings and the baseline let in; with ``adaptive`` a video that repeats itself uses fewer.
    ``prefill_seconds`` are for the tokens up to the video's end, with pruning inside the model for whole
    prompts; the rest is ``decode_seconds``.
    """

    generations: tuple[Generation, ...]
    visual_tokens_before: int
    visual_tokens_after: int
    visual_tokens_mean: float
    encode_seconds: float
    compress_seconds: float
    prefill_seconds: float
    decode_seconds: float
    kept: Tensor
    grid_thw: Grid
    budget_tokens: int


def token_limits(max_new_tokens: int | Sequence[int], num_prompts: int) -> list[int]:
    """One limit per prompt.

    Raises ValueError for no prompts, a limit that is no integer or below 1, or a wrong number of limits.
    """
    limits: list[Any] = [max_new_tokens] * num_prompts
    if isinstance(max_new_tokens, Sequence):
        limits = list(max_new_tokens)
    fit = all(isinstance(limit, Integral) and limit >= 1 for limit in limits)  # type: ignore[operator]
    if not num_prompts or len(limits) != num_prompts or not fit:
        raise ValueError(
            f"{num_prompts} prompts with {max_new_tokens=}; need at least one prompt, and an integer limit "
            "of at least 1 for all of them or for each"
        )
    return [int(limit) for limit in limits]


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises TypeError for one string in place of a list of them, and for what is no string."""
    if isinstance(prompts, str):
        raise TypeError(f"prompts={prompts!r} must be a list of strings; put a single one into a list")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"prompts hold {prompt!r}, a {type(prompt).__name__}; each must be a string")
