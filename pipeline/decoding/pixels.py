"""What shape a picture is shown in: pixels need not be square. Plain arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from flashvid.resizing import MAX_ASPECT_RATIO

__all__ = ["MOST_PIXEL_RATIO", "Shown", "shown_size"]

# Real ones lie between 1:3 and 3:1; beyond this a header is broken rather than a picture so wide.
MOST_PIXEL_RATIO = 8


class Shown(NamedTuple):
    """The size in square pixels at which a picture is shown, before it is turned; why it is not another."""

    width: int
    height: int
    note: str | None = None


def shown_size(width: int, height: int, pixel_ratio: Fraction | None) -> Shown:
    """What ``width`` x ``height`` pixels are shown as, each ``pixel_ratio`` times as wide as high.

    All lines are kept and the width follows, as in the track headers of mp4: 720x576 at 64:45 is 1024x576.
    None and 0 mean that nothing is said: square. A ratio beyond 8:1, or one that makes a picture of more
    than 200:1 of what is less, is not believed.
    """
    if not pixel_ratio or pixel_ratio == 1:
        return Shown(width, height)
    if 1 / MOST_PIXEL_RATIO <= pixel_ratio <= MOST_PIXEL_RATIO:
        wide = max(1, round(width * pixel_ratio))
        if max(wide, height) <= MAX_ASPECT_RATIO * min(wide, height):
            return Shown(wide, height)
    told = f"{pixel_ratio.numerator}:{pixel_ratio.denominator}"
    return Shown(width, height, f"its pixels are said to be {told}, which is not believed: taken for square")
