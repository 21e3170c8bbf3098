"""From uint8 frames to the patches Qwen's vision tower eats, on the frames' own device.

The numbers of the Hugging Face image processor's PIL backend, within rounding, without torchvision or PIL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvid.arithmetic import RESIZE_BYTES
from flashvid.resizing import VIDEO_MAX_PIXELS, VIDEO_MIN_PIXELS, VisionSizes, smart_resize

__all__ = ["VisionSettings", "frames_to_patches", "iterate_patches"]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionSettings(VisionSizes):
    """How a model wants its frames: the sizes, and the normalisation per channel.

    Raises ValueError where min_pixels is not in (0, max_pixels].
    """

    image_mean: tuple[float, float, float] = _CLIP_MEAN
    image_std: tuple[float, float, float] = _CLIP_STD

    @classmethod
    def from_processor(cls, processor: Mapping[str, Any], *, for_images: bool = False) -> VisionSettings:
        """Read a processor's JSON (``size`` or ``min_pixels``/``max_pixels``, patch sizes, mean and std).

        ``for_images``: the limits were meant for single images; a frame is then held to the video maximum.
        """
        size = processor.get("size") or {}
        high = int(processor.get("max_pixels") or size.get("longest_edge") or VIDEO_MAX_PIXELS)
        low = int(processor.get("min_pixels") or size.get("shortest_edge") or VIDEO_MIN_PIXELS)
        if for_images:
            high = min(high, VIDEO_MAX_PIXELS)
        names = ("patch_size", "temporal_patch_size", "merge_size")
        known: dict[str, Any] = {name: int(processor[name]) for name in names if name in processor}
        for name in ("image_mean", "image_std"):
            if name in processor:
                known[name] = tuple(float(value) for value in processor[name])
        return cls(min_pixels=min(low, high), max_pixels=high, **known)


def frames_to_patches(
    frames: Tensor,
    *,
    patch_size: int,
    temporal_patch_size: int,
    merge_size: int,
    min_pixels: int,
    max_pixels: int,
    image_mean: Sequence[float] = _CLIP_MEAN,
    image_std: Sequence[float] = _CLIP_STD,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Turn frames (T, H, W, 3) uint8 into ``pixel_values_videos`` (P, 3*tp*p*p) and ``grid_thw`` (3,) int64.

    Patches come in the tower's order (units, then merge blocks in raster order), on the frames' device, in
    ``dtype``. A last unit that is not full repeats the last frame. Raises ValueError for any other input.
    """
    _check_frames(frames)
    multiple = patch_size * merge_size
    size = smart_resize(
        frames.shape[1], frames.shape[2], multiple=multiple, min_pixels=min_pixels, max_pixels=max_pixels
    )
    mean = torch.tensor(image_mean, dtype=torch.float32, device=frames.device).view(3, 1, 1)
    std = torch.tensor(image_std, dtype=torch.float32, device=frames.device).view(3, 1, 1)
    parts = [
        ((_resize(chunk, size) / 255.0 - mean) / std).to(dtype) for chunk in _bounded_chunks(frames, size)
    ]
    patches, grid = _patchify(torch.cat(parts), patch_size, temporal_patch_size, merge_size)
    return patches, torch.tensor(grid, dtype=torch.int64, device=frames.device)


def iterate_patches(
    frames: Tensor,
    settings: VisionSettings,
    *,
    units_per_chunk: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Yield the patches of a few units at a time, so that memory does not grow with the video's length.

    ``frames``: (T, H, W, 3) uint8, RGB. Each item is (units*rows*columns, 3*tp*p*p) of ``dtype`` on
    ``device``; only the frames of one chunk are ever there. Raises ValueError for frames of another shape or
    dtype.
    """
    _check_frames(frames)
    step = units_per_chunk * settings.temporal_patch_size
    for start in range(0, len(frames), step):
        chunk = frames[start : start + step].to(device)
        yield frames_to_patches(chunk, dtype=dtype, **vars(settings))[0]


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or frames.shape[0] < 1:
        raise ValueError(
            f"frames of shape {tuple(frames.shape)}, {frames.dtype}; need (T >= 1, H, W, 3) torch.uint8, RGB"
        )


def _bounded_chunks(frames: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    area = max(frames.shape[1] * frames.shape[2], size[0] * size[1], frames.shape[1] * size[1])
    step = max(1, RESIZE_BYTES // (area * 3 * 4))
    yield from (frames[start : start + step] for start in range(0, len(frames), step))


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, H, W, 3) uint8 to (T, 3, h, w) float32 holding whole numbers 0-255.

    PIL resizes along one side, rounds to uint8, then along the other; both at once differ by up to 9 levels.
    """
    pixels = frames.permute(0, 3, 1, 2).float()
    height, width = pixels.shape[2:]
    # Pillow 13's order, found by comparing: the width first, unless that leaves far more rows to work on.
    rows_first = size[0] < height and height - size[0] > 2 * (width - size[1])
    for target in ((size[0], width) if rows_first else (height, size[1]), size):
        if tuple(pixels.shape[2:]) != target:
            pixels = F.interpolate(pixels, target, mode="bicubic", antialias=True, align_corners=False)
            pixels = (pixels + 0.5).floor_().clamp_(0, 255)
    return pixels


def _patchify(
    pixels: Tensor, patch: int, temporal_patch: int, merge: int
) -> tuple[Tensor, tuple[int, int, int]]:
    """(T, 3, h, w) to the tower's patch order."""
    missing = -pixels.shape[0] % temporal_patch
    if missing:
        pixels = torch.cat((pixels, pixels[-1:].expand(missing, -1, -1, -1)))
    units, rows, columns = (
        pixels.shape[0] // temporal_patch,
        pixels.shape[2] // patch,
        pixels.shape[3] // patch,
    )
    blocks = pixels.reshape(
        units, temporal_patch, 3, rows // merge, merge, patch, columns // merge, merge, patch
    ).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return blocks.reshape(units * rows * columns, -1), (units, rows, columns)
