"""What a call did to the visual tokens: returned values, never attributes of a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flashvid.positions import Grid

__all__ = ["GenerationReport", "VideoReport"]


@dataclass(frozen=True)
class VideoReport:
    """What became of one video: its (units, rows, columns) in tokens, the kept ones' indices (K,) int64."""

    grid: Grid
    kept: Tensor

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
