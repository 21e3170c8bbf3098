"""Which way up a picture is, by the display matrix of its frame. Runs only inside decode children."""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

__all__ = ["Turn", "side_data_of", "turn_of"]


class Turn(NamedTuple):
    """What brings a picture upright: first mirrored, left to right, then turned counter-clockwise."""

    is_mirrored: bool
    num_quarters: int


def side_data_of(frame: Any) -> dict[str, bytes]:
    """What libav attached to a frame, by the names of PyAV; the first where a name comes twice.

    PyAV makes a cycle of a frame that is asked: it lives on until garbage is collected. So ask one per file.
    """
    found: dict[str, bytes] = {}
    for data in frame.side_data:
        found.setdefault(data.type.name, bytes(data))
    return found


def turn_of(side_data: dict[str, bytes]) -> Turn:
    """What the display matrix of a frame asks for, in quarter turns; nothing where it makes no sense.

    libav puts the container's matrix before the one that the stream itself holds, as H.264 and HEVC can in a
    message to their first picture: where they differ, the container's is heeded, as FFmpeg and players do.
    """
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Turn(False, 0)
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    if a * d == b * c:  # no area is left
        return Turn(False, 0)
    sign = -1 if a * d < b * c else 1
    return Turn(sign < 0, round(-math.degrees(math.atan2(sign * b, sign * a)) / 90) % 4)
