"""Wall time of a device's work, by stage."""

from __future__ import annotations

import time

import torch
from torch import Tensor

__all__ = ["Clock", "FirstToken"]


class Clock:
    """Laps of wall time that include the device's pending work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def lap(self) -> float:
        """Seconds since the lap before, or since the clock was made."""
        now = self._now()
        lap, self._last = now - self._last, now
        return lap

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class FirstToken:
    """A streamer that stops a lap at the first new token; ``generate`` puts the prompt in before it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen = 0
        self.seconds = 0.0

    def put(self, value: Tensor) -> None:
        """Count a call: first the prompt, (B, S) int64, then the new tokens, (B,) int64."""
        self._seen += 1
        if self._seen == 2:
            self.seconds = self._clock.lap()

    def end(self) -> None:
        """The end of the text is not timed."""
