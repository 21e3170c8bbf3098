"""What a call did to the visual tokens: returned values, never attributes of a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flashvid.arithmetic import unit_budget
from flashvid.config import FlashVidConfig
from flashvid.inside import Grid

__all__ = ["GenerationReport", "VideoReport", "budget_tokens"]


@dataclass(frozen=True)
class VideoReport:
    """What became of one video: its (units, rows, columns) in tokens, the kept ones' indices, its budget.

    kept: (K,) int64, increasing, unit * rows * columns + position. budget_tokens: the most tokens that the
    settings allowed; with ``adaptive`` a video that repeats itself uses fewer.
    """

    grid: Grid
    kept: Tensor
    budget_tokens: int

    @property
    def tokens_before(self) -> int:
        """Visual tokens without compression."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def tokens_after(self) -> int:
        """Visual tokens that enter the language model."""
        return len(self.kept)


@dataclass(frozen=True)
class GenerationReport:
    """Visual tokens of every video of a call, and of every prompt averaged over the decoder layers."""

    videos: tuple[VideoReport, ...]
    tokens_mean_per_prompt: tuple[float, ...]

    @property
    def visual_tokens_before(self) -> int:
        """Over all videos of the call, without compression."""
        return sum(video.tokens_before for video in self.videos)

    @property
    def visual_tokens_after(self) -> int:
        """Over all videos of the call, entering the language model."""
        return sum(video.tokens_after for video in self.videos)


def budget_tokens(config: FlashVidConfig, num_units: int, num_tokens: int) -> int:
    """The most tokens of a video of T x N tokens that the settings let into the language model: T*b.

    All of them at retention_ratio=1; with budget="reference" a few more may enter. Raises ValueError where
    max_visual_tokens is below one token per unit.
    """
    if config.is_bypass:
        return num_units * num_tokens
    return num_units * unit_budget(config, num_units, num_tokens).kept
