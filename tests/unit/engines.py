"""Engines of another package, as ``model.engine`` names them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flashvid.generation.answers import Generation, VideoAnswers, VideoInput
from flashvid.resizing import VisionSizes
from pipeline.config.job import JobConfig
from pipeline.indexing.engine_interface import AnswersVideos

__all__ = ["PlainEngine", "lacking", "made", "not_a_function"]

not_a_function = 7


@dataclass
class PlainEngine(AnswersVideos):
    """Says how many frames it saw and how red the first is; memory ends beyond the ``most_``."""

    vision = VisionSizes(min_pixels=28 * 28, max_pixels=168 * 168)

    device: str = "cpu"
    most_prompts: int = 99
    most_frames: int = 9999
    calls: list[tuple[int, int | None]] = field(default_factory=list)
    prompts: list[list[str]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def answer(
        self,
        video: VideoInput,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | Sequence[int],
        baseline_tokens: int | None = None,
        prompts_per_batch: int | None = None,
    ) -> VideoAnswers:
        num = len(video.frames)
        self.calls.append((num, prompts_per_batch))
        self.prompts.append(list(prompts))
        if min(prompts_per_batch or 16, len(prompts)) > self.most_prompts or num > self.most_frames:
            raise MemoryError("full")
        said = [
            Generation(f"{prompt} {num} frames,\nred {round(video.frames[0, ..., 0].mean())}", "stop", 5, 9)
            for prompt in prompts
        ]
        kept: Any = np.arange(3)
        return VideoAnswers(
            tuple(said), num * 10, num, num / 2, 1.0, 2.0, 3.0, 4.0, kept, (num, 2, 2), num + 1
        )

    def write(self, prompt: str, *, max_new_tokens: int) -> Generation:
        self.written.append(prompt)
        return Generation(f"summary {len(self.written)}", "length", 7, len(prompt.split()))

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def made(config: JobConfig, device: str) -> PlainEngine:
    return PlainEngine(f"{device} for {config.model.name}")


def lacking(config: JobConfig, device: str) -> object:
    return object()
