"""Frames to temporal units, patches and visual tokens: whole numbers."""

from __future__ import annotations

from flashvid.arithmetic import floor_product

__all__ = ["frames_for_budget", "patch_grid", "visual_tokens"]


def frames_for_budget(baseline_frames: int, retention_ratio: float) -> int:
    """Frames that cost the language model what `baseline_frames` cost uncompressed: 16 at 0.1 -> 160.

    Raises ValueError for less than one frame and for a ratio outside (0, 1]. (FlashVID section 4, fixed token
    budget.)
    """
    if baseline_frames < 1:
        raise ValueError(f"{baseline_frames=} must be at least 1")
    if not 0 < retention_ratio <= 1:
        raise ValueError(f"{retention_ratio=} must be in (0, 1]; 0.1 allows ten times the frames")
    return floor_product(baseline_frames / retention_ratio)


def patch_grid(
    num_frames: int,
    height: int,
    width: int,
    *,
    patch_size: int = 14,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
) -> tuple[int, int, int]:
    """(units, rows, columns) in patches of a clip; height and width in pixels, defaults of Qwen2.5-VL.

    The last unit is filled up where the frames do not divide. Raises ValueError for sizes that are no whole
    tokens.
    """
    token_pixels = patch_size * merge_size
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % token_pixels:
            raise ValueError(
                f"{name}={value} must be a multiple of {token_pixels} pixels; resize the frames first"
            )
    if num_frames < 1 or num_frames % 1:
        raise ValueError(f"{num_frames=} must be a whole number of at least 1")
    return -(-num_frames // temporal_patch_size), height // patch_size, width // patch_size


def visual_tokens(
    num_frames: int,
    height: int,
    width: int,
    *,
    patch_size: int = 14,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
) -> int:
    """T*N, the visual tokens of a clip before compression.

    Arguments as in `patch_grid`, and like it this raises ValueError for sizes that are no whole patches.
    """
    units, rows, columns = patch_grid(
        num_frames,
        height,
        width,
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=temporal_patch_size,
    )
    return units * rows * columns // merge_size**2
