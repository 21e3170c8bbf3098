"""At what size the model sees a frame. Plain arithmetic: children that decode import it without torch."""

from __future__ import annotations

import math

__all__ = ["MAX_ASPECT_RATIO", "smart_resize"]

MAX_ASPECT_RATIO = 200


def smart_resize(
    height: int, width: int, *, multiple: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """(height, width) in pixels the model sees, by the rule of Qwen2-VL: multiples of ``multiple``, area in
    [min_pixels, max_pixels], aspect nearly kept.

    A side is never rounded down to nothing. Raises ValueError for empty frames and where one side is more
    than 200 times the other, as the model's own processor does.
    """
    if min(height, width) < 1 or max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(
            f"a frame of {width}x{height} pixels cannot be resized: sides must be at least 1 and differ by "
            f"{MAX_ASPECT_RATIO}:1 at most; crop or pad the video first"
        )
    new_height = round(height / multiple) * multiple
    new_width = round(width / multiple) * multiple
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = math.floor(height / shrink / multiple) * multiple
        new_width = math.floor(width / shrink / multiple) * multiple
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / multiple) * multiple
        new_width = math.ceil(width * grow / multiple) * multiple
    return max(multiple, new_height), max(multiple, new_width)
