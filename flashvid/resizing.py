"""At what size the model sees a frame. Plain arithmetic: children that decode import it without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["MAX_ASPECT_RATIO", "VIDEO_MAX_PIXELS", "VIDEO_MIN_PIXELS", "VisionSizes", "smart_resize"]

MAX_ASPECT_RATIO = 200
VIDEO_MIN_PIXELS = 128 * 28 * 28  # per frame, the video processor's default
VIDEO_MAX_PIXELS = 768 * 28 * 28


@dataclass(frozen=True)
class VisionSizes:
    """The sizes that a vision tower is made for: frames per unit, patches per token, pixels per frame.

    ``patch_size`` is in pixels, ``temporal_patch_size`` in frames, ``merge_size`` in patches along each side
    of a token. Raises ValueError where min_pixels is not in (0, max_pixels].
    """

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = VIDEO_MIN_PIXELS
    max_pixels: int = VIDEO_MAX_PIXELS

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"{self.min_pixels = } must be in (0, {self.max_pixels = }]")

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(units, rows, columns) in patches that frames of this many pixels become."""
        high, wide = self.frame_size(height, width)
        units = math.ceil(num_frames / self.temporal_patch_size)
        return units, high // self.patch_size, wide // self.patch_size

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels at which the model sees a frame of this size."""
        multiple = self.patch_size * self.merge_size
        return smart_resize(
            height, width, multiple=multiple, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )

    def tokens_per_unit(self, height: int, width: int) -> int:
        """Visual tokens the language model would get per temporal unit, uncompressed."""
        high, wide = self.frame_size(height, width)
        return (high // self.patch_size // self.merge_size) * (wide // self.patch_size // self.merge_size)


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
