"""An engine behind the interface of the real one that only looks at colours: quick, and without torch.

Its caption is the mean colour of the frames, so a row that belongs to another video is seen. How slow it is
says ``seconds_per_video`` in the config.json of the model's folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["StubEngine", "colour_of", "load", "write_model"]

_LARGEST_SPREAD = 24.0  # of one channel within a good video, which has a single colour


@dataclass(frozen=True)
class _Vision:
    """The sizes of Qwen2.5-VL's vision tower; small frames are enough for a colour."""

    min_pixels: int = 28 * 28
    max_pixels: int = 168 * 168
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2

    def tokens_per_unit(self, height: int, width: int) -> int:
        side = self.patch_size * self.merge_size
        return (height // side) * (width // side)


@dataclass(frozen=True)
class _Generation:
    text: str
    finish_reason: str = "stop"
    output_tokens: int = 4
    prompt_tokens: int = 8


@dataclass(frozen=True)
class _Answers:
    """The fields of flashvid.answers.VideoAnswers, which imports torch."""

    generations: tuple[_Generation, ...]
    visual_tokens_before: int
    visual_tokens_after: int
    visual_tokens_mean: float
    encode_seconds: float
    compress_seconds: float
    prefill_seconds: float
    decode_seconds: float
    kept: Any
    grid_thw: tuple[int, int, int]
    budget_tokens: int


class StubEngine:
    """Answers every prompt with the video's colour, after ``seconds_per_video``."""

    def __init__(self, seconds_per_video: float) -> None:
        self.vision = _Vision()
        self._seconds_per_video = seconds_per_video

    def answer(
        self,
        video: Any,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | Sequence[int],
        baseline_tokens: int | None = None,
        prompts_per_batch: int | None = None,
    ) -> _Answers:
        """One generation per prompt: the colour."""
        time.sleep(self._seconds_per_video)
        frames = np.asarray(video.frames)
        units = -(-len(frames) // self.vision.temporal_patch_size)
        tokens = units * self.vision.tokens_per_unit(*frames.shape[1:3])
        after = max(1, min(tokens, baseline_tokens or tokens))
        rows, columns = (size // self.vision.patch_size for size in frames.shape[1:3])
        return _Answers(
            generations=tuple(_Generation(_described(frames)) for _ in prompts),
            visual_tokens_before=tokens,
            visual_tokens_after=after,
            visual_tokens_mean=float(after),
            encode_seconds=self._seconds_per_video,
            compress_seconds=0.0,
            prefill_seconds=0.0,
            decode_seconds=0.0,
            kept=np.arange(after),
            grid_thw=(units, rows, columns),
            budget_tokens=after,
        )

    def write(
        self, prompts: Sequence[str], *, max_new_tokens: int | Sequence[int]
    ) -> tuple[_Generation, ...]:
        """Text from text: the prompts' lengths."""
        return tuple(_Generation(f"{len(prompt)} letters") for prompt in prompts)

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())

    def plan(self, video: Any, *, baseline_tokens: int | None = None) -> Any:
        raise NotImplementedError("the stub keeps no tokens")


def load(config: Any, device: str) -> StubEngine:
    """What ``model.engine`` names."""
    folder = Path(config.model.name)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return StubEngine(float(settings["seconds_per_video"]))


def write_model(folder: Path, seconds_per_video: float) -> Path:
    """A folder that passes for a checkpoint."""
    folder.mkdir(parents=True)
    settings = {"model_type": "chaos_stub", "seconds_per_video": seconds_per_video}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


def colour_of(caption: str) -> tuple[int, int, int] | None:
    """The colour that a caption names; None for any other caption."""
    words = caption.split()
    if len(words) != 4 or words[0] != "colour":
        return None
    red, green, blue = map(int, words[1:])
    return red, green, blue


def _described(frames: np.ndarray[Any, Any]) -> str:
    pixels = frames.reshape(-1, 3).astype(np.float64)
    if pixels.std(0).max() > _LARGEST_SPREAD:
        return "many colours"
    red, green, blue = (round(value) for value in pixels.mean(0))
    return f"colour {red} {green} {blue}"
