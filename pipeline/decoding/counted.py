"""Frames of streams that do not tell when each is shown, known by counting. For decode children only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from pipeline.decoding.colours import Painter
from pipeline.decoding.containers import Limits, decoded, jumped, opened
from pipeline.decoding.damage import Damage
from pipeline.decoding.timeline import Timeline

__all__ = ["CountedFrames", "OvershotError"]

# Pictures after a keyframe by which its leading ones are known; no codec holds back more than 16.
_SETTLED = 32
# So many pictures are decoded faster than a decoder is emptied and filled again.
_JUMP_WORTH = 3 * _SETTLED


class OvershotError(Exception):
    """A jump failed or landed behind its target; the container's index cannot be trusted."""


class CountedFrames:
    """One pass over a file, halted anywhere, that tells the place of each frame in the order shown.

    Where the container tells when packets are decoded, the pass goes on from a keyframe that lies before what
    is wanted; else it goes through all frames from the first.
    """

    def __init__(
        self, path: str, timeline: Timeline, damage: Damage, limits: Limits, *, may_jump: bool = True
    ) -> None:
        self._timeline = timeline
        self._damage = damage
        self._limits = limits
        self._closing = ExitStack()
        self.container, self.stream = self._closing.enter_context(opened(path, limits, limits.threads))
        self.painter = Painter(self.stream)
        self._position = 0  # of the frame that comes next
        self._may_jump = may_jump and len(timeline.decode_ticks) > 0
        self._frames = self._from_start()

    def close(self) -> None:
        """Let go of the file."""
        self._frames = iter(())
        self._closing.close()

    def is_past(self, place: int) -> bool:
        """Whether a frame can no longer be reached."""
        return self._position > place

    def from_place(self, place: int) -> Iterator[tuple[int, Any]]:
        """(place, frame) from ``place`` on, or from some frame before it. May raise OvershotError."""
        keys = self._timeline.key_stamps
        before = int(np.searchsorted(keys, place - _SETTLED, side="right")) - 1
        is_far = before >= 0 and keys[before] - self._position > _JUMP_WORTH
        if self._may_jump and is_far:
            if not jumped(self.container, self.stream, int(self._timeline.key_seeks[before])):
                raise OvershotError
            self._frames = self._from_key(int(keys[before]))
        return self._frames

    def _from_start(self) -> Iterator[tuple[int, Any]]:
        mend = self._number if len(self._timeline.decode_ticks) else None
        num_lost = 0
        for count, frame in enumerate(
            decoded(self.container, self.stream, self._damage, self._limits, mend=mend)
        ):
            num_lost = max(num_lost, self._num_lost(0, frame.pts))
            self._position = count + num_lost + 1
            yield count + num_lost, frame

    def _from_key(self, key: int) -> Iterator[tuple[int, Any]]:
        """Each packet is given its number as pts, which the decoder hands on with the picture.

        A picture that is stored behind the keyframe and shown before it moves all that follow by a place.
        Decoders leave such pictures out after a jump, so these are found by the numbers that are missing.
        """
        count, next_stored, num_lost = -1, key + 2 * _SETTLED, 0
        for frame in decoded(
            self.container, self.stream, self._damage, self._limits, mend=self._number, shown_from=key
        ):
            number = frame.pts
            if number is None or (count < 0 and number > key + _SETTLED):
                raise OvershotError
            if count < 0 and number != key:
                continue
            count += 1
            if count:
                next_stored = min(next_stored, number)
            num_lost = max(num_lost, self._num_lost(key, number))
            if count >= _SETTLED:
                place = next_stored - 1 + count + num_lost
                self._position = place + 1
                yield place, frame

    def _number(self, packet: Any) -> None:
        if packet.dts is not None:
            packet.pts = int(np.searchsorted(self._timeline.decode_ticks, packet.dts))

    def _num_lost(self, key: int, number: int | None) -> int:
        """How many packets between a keyframe and a picture gave none."""
        if number is None or not self._damage.failed or not len(self._timeline.decode_ticks):
            return 0
        first, last = self._timeline.decode_ticks[[key, min(number, len(self._timeline.decode_ticks) - 1)]]
        return sum(dts is not None and first <= dts < last for _, dts in self._damage.failed)
