"""An engine behind the interface of the real one that only looks at colours: quick, and without torch.

Its caption is the mean colour of the frames, so a row that belongs to another video is seen. How slow it is
says ``seconds_per_video`` in the config.json of the model's folder, which colour kills its process
``deadly_colour``. In that folder it leaves a file ``.answering`` once it has begun; while there is a file
``.hold`` it answers nothing. None of that holds for its first video, which is the made-up one that every
worker begins with.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashvid.generation.answers import Generation, VideoAnswers, VideoInput
from flashvid.resizing import VisionSizes
from pipeline.errors import UserError
from pipeline.indexing.engine_interface import AnswersVideos

__all__ = ["StubEngine", "colour_of", "load", "load_nowhere", "load_on_one", "write_model"]

_LARGEST_SPREAD = 24.0  # of one channel within a good video, which has a single colour
_DEADLY_DISTANCE = 14  # of a channel from the deadly colour
_COLOUR = re.compile(r"colour (\d+) (\d+) (\d+)")


class StubEngine(AnswersVideos):
    """Answers every prompt with the video's colour, after ``seconds_per_video``; ``folder``: of the model."""

    vision = VisionSizes(min_pixels=28 * 28, max_pixels=168 * 168)  # small frames are enough for a colour

    def __init__(
        self, seconds_per_video: float, folder: Path | None = None, deadly_colour: Sequence[int] | None = None
    ) -> None:
        self._seconds_per_video = seconds_per_video
        self._folder = folder
        self._deadly_colour = deadly_colour
        self._is_tried_out = False

    def answer(
        self,
        video: VideoInput,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | Sequence[int],
        baseline_tokens: int | None = None,
        prompts_per_batch: int | None = None,
    ) -> VideoAnswers:
        """One generation per prompt: the colour."""
        frames = np.asarray(video.frames)
        if self._is_tried_out:
            self._follow_orders(frames)
            time.sleep(self._seconds_per_video)
        self._is_tried_out = True
        grid = self.vision.grid(*frames.shape[:3])
        tokens = grid[0] * self.vision.tokens_per_unit(*frames.shape[1:3])
        after = max(1, min(tokens, baseline_tokens or tokens))
        kept: Any = np.arange(after)
        return VideoAnswers(
            generations=(_generation(_described(frames)),) * len(prompts),
            visual_tokens_before=tokens,
            visual_tokens_after=after,
            visual_tokens_mean=float(after),
            encode_seconds=self._seconds_per_video,
            compress_seconds=0.0,
            prefill_seconds=0.0,
            decode_seconds=0.0,
            kept=kept,
            grid_thw=grid,
            budget_tokens=after,
        )

    def _follow_orders(self, frames: np.ndarray[Any, Any]) -> None:
        """For every video but the first."""
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
        return _generation(_described(pixels) if len(named) else "no colour")

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())


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

    def _follow_orders(self, frames: np.ndarray[Any, Any]) -> None:
        self._sign.touch()


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


def _generation(text: str) -> Generation:
    return Generation(text, "stop", output_tokens=4, prompt_tokens=8)


def _described(frames: np.ndarray[Any, Any]) -> str:
    pixels = frames.reshape(-1, 3).astype(np.float64)
    if pixels.std(0).max() > _LARGEST_SPREAD:
        return "many colours"
    red, green, blue = (round(value) for value in pixels.mean(0))
    return f"colour {red} {green} {blue}"
