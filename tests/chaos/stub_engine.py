"""An engine behind the interface of the real one that only looks at colours: quick, and without torch.

Its caption is the mean colour of the frames, so a row that belongs to another video is seen. How slow it is
says ``seconds_per_video`` in the config.json of the model's folder, which colour kills its process
``deadly_colour``. In that folder it leaves a file ``.answering`` once it has begun; while there is a file
``.hold`` it answers nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pipeline.errors import UserError

if TYPE_CHECKING:
    from flashvid.generation.answers import Generation, VideoAnswers
    from pipeline.indexing.engine_interface import AnswersVideos

__all__ = ["StubEngine", "colour_of", "load", "load_nowhere", "load_on_one", "write_model"]

_LARGEST_SPREAD = 24.0  # of one channel within a good video, which has a single colour
_DEADLY_DISTANCE = 14  # of a channel from the deadly colour
_COLOUR = re.compile(r"colour (\d+) (\d+) (\d+)")


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
    """The fields of flashvid.generation.answers.VideoAnswers, which imports torch."""

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
    """Answers every prompt with the video's colour, after ``seconds_per_video``; ``folder``: of the model."""

    def __init__(
        self, seconds_per_video: float, folder: Path | None = None, deadly_colour: Sequence[int] | None = None
    ) -> None:
        self.vision = _Vision()
        self._seconds_per_video = seconds_per_video
        self._folder = folder
        self._deadly_colour = deadly_colour

    def answer(
        self,
        video: Any,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | Sequence[int],
        baseline_tokens: int | None = None,
        prompts_per_batch: int | None = None,
    ) -> VideoAnswers:
        """One generation per prompt: the colour."""
        frames = np.asarray(video.frames)
        self._follow_orders(frames)
        time.sleep(self._seconds_per_video)
        units = -(-len(frames) // self.vision.temporal_patch_size)
        tokens = units * self.vision.tokens_per_unit(*frames.shape[1:3])
        after = max(1, min(tokens, baseline_tokens or tokens))
        rows, columns = (size // self.vision.patch_size for size in frames.shape[1:3])
        answers = _Answers(
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
        return cast("VideoAnswers", answers)

    def _follow_orders(self, frames: np.ndarray[Any, Any]) -> None:
        if self._folder is not None:
            (self._folder / ".answering").touch()
            while (self._folder / ".hold").exists():
                time.sleep(0.02)
        distance = np.abs(frames.reshape(-1, 3).mean(0) - (self._deadly_colour or np.inf))
        if distance.max() <= _DEADLY_DISTANCE:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, prompt: str, *, max_new_tokens: int) -> Generation:
        """Text from text: the mean of the colours that the prompt names, if they are one."""
        named = np.array(_COLOUR.findall(prompt), np.float64)
        pixels = named.reshape(1, -1, 1, 3)
        return cast("Generation", _Generation(_described(pixels) if len(named) else "no colour"))

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())

    def plan(self, video: Any, *, baseline_tokens: int | None = None) -> tuple[Any, Any]:
        raise NotImplementedError("the stub keeps no tokens")


def load(config: Any, device: str) -> StubEngine:
    """What ``model.engine`` names."""
    folder = Path(config.model.name)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return StubEngine(float(settings["seconds_per_video"]), folder, settings.get("deadly_colour"))


def load_on_one(config: Any, device: str) -> StubEngine:
    """For ``model.engine``: only the first worker finds its checkpoint; the others once that one works."""
    folder = Path(config.model.name)
    try:
        (folder / "taken").touch(exist_ok=False)
    except FileExistsError:
        deadline = time.monotonic() + 60.0
        while not (folder / "working").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        raise UserError("there is no checkpoint on this machine") from None
    return _Signalling(folder / "working")


def load_nowhere(config: Any, device: str) -> StubEngine:
    """For ``model.engine``: no worker finds its checkpoint."""
    raise UserError("there is no checkpoint on this machine")


class _Signalling(StubEngine):
    def __init__(self, sign: Path) -> None:
        super().__init__(0.2)
        self._sign = sign

    def answer(self, *arguments: Any, **options: Any) -> VideoAnswers:
        self._sign.touch()
        return super().answer(*arguments, **options)


def write_model(
    folder: Path, seconds_per_video: float, deadly_colour: tuple[int, int, int] | None = None
) -> Path:
    """A folder that passes for a checkpoint."""
    folder.mkdir(parents=True)
    settings = {"model_type": "chaos_stub", "seconds_per_video": seconds_per_video}
    settings |= {"deadly_colour": deadly_colour} if deadly_colour else {}
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


if TYPE_CHECKING:  # the type checker's word that the stub can stand for an engine
    _CONFORMS: AnswersVideos = StubEngine(0.0)
