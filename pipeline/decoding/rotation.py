"""Which way up a picture is, by the display matrix of its frame. Runs only inside decode children."""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

__all__ = ["Turn", "turn_of"]


class Turn(NamedTuple):
    """What brings a picture upright: first mirrored, left to right, then turned counter-clockwise."""

    is_mirrored: bool
    num_quarters: int


def turn_of(frame: Any) -> Turn:
    """What the display matrix of a frame asks for, in quarter turns; nothing where it makes no sense.

    PyAV makes a cycle of a frame that is asked: it lives on until garbage is collected. So ask one per file.
    """
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return Turn(False, 0)
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if a * d == b * c:  # no area is left
        return Turn(False, 0)
    sign = -1 if a * d < b * c else 1
    return Turn(sign < 0, round(-math.degrees(math.atan2(sign * b, sign * a)) / 90) % 4)
