"""From what a processor returns to one shortened prompt per row of the batch, with its features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvid.compression import CompressedVideo
from flashvid.config import FlashVidConfig
from flashvid.generation.reports import VideoReport, budget_tokens
from flashvid.inside import (
    Grid,
    PositionStyle,
    ShortPrompt,
    VisionSpan,
    find_spans,
    shorten_prompt,
    token_types,
)
from flashvid.models import Qwen25VLAdapter, needs_saliency

__all__ = ["Row", "RowReader", "VisualInputs"]


@dataclass(frozen=True)
class VisualInputs:
    """Pixels and grids of a call, as the Hugging Face processor returns them, in order of appearance.

    pixel_values_videos, pixel_values: (patches, C*tp*p*p) float; video_grid_thw, image_grid_thw: (videos, 3)
    int64, in patches; second_per_grid_ts: seconds between two units, one per video, float.
    """

    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    second_per_grid_ts: Tensor | Sequence[float] | float | None = None
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None


@dataclass(frozen=True)
class Row:
    """One prompt of a call with the features that belong to it; images: (N, D) each, in the model's dtype."""

    prompt: ShortPrompt
    videos: tuple[CompressedVideo, ...]
    images: tuple[Tensor, ...]
    reports: tuple[VideoReport, ...]


class RowReader:
    """Encodes, compresses and shortens with one model and one configuration."""

    def __init__(
        self, adapter: Qwen25VLAdapter, config: FlashVidConfig, positions: PositionStyle = "trained"
    ) -> None:
        self._adapter = adapter
        self._config = config
        self._positions = positions

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        mm_token_type_ids: Tensor | None,
        visual: VisualInputs,
    ) -> list[Row]:
        """One row per prompt; ``input_ids``, ``attention_mask``, ``mm_token_type_ids``: (B, S) int64.

        Raises ValueError where placeholders, grids, pixels and seconds do not belong together.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
        _check_ids(input_ids, mask)
        self._check_types(input_ids, mm_token_type_ids)
        images = self._images(visual)
        videos = self._videos(visual)
        rows = [
            self._row(ids[keep.bool()], images, videos) for ids, keep in zip(input_ids, mask, strict=True)
        ]
        for name, left in (("image", images), ("video", videos)):
            if next(left, None) is not None:
                raise ValueError(
                    f"{name}_grid_thw has more rows than input_ids has {name}s; pass one row per {name}"
                )
        return rows

    def compress(self, pixels: Tensor, grid: Grid) -> tuple[CompressedVideo, VideoReport]:
        """One video from its patches (P, C*tp*p*p) float32; ``grid`` (units, rows, columns) in patches.

        Raises ValueError where the patches do not fill the grid.
        """
        units, rows, columns = grid
        merge = self._adapter.merge_size
        needed = needs_saliency(self._config)
        encoded = self._adapter.encode_video(pixels, grid, with_saliency=needed)
        compressed = encoded.compress(self._config)
        most = budget_tokens(self._config, *encoded.features.shape[:2])
        return compressed, VideoReport((units, rows // merge, columns // merge), compressed.kept, most)

    def _check_types(self, input_ids: Tensor, given: Tensor | None) -> None:
        if given is not None and not torch.equal(given.to(input_ids), self._types(input_ids)):
            raise ValueError("mm_token_type_ids disagrees with the placeholders in input_ids; leave it out")

    def _types(self, input_ids: Tensor) -> Tensor:
        return token_types(
            input_ids,
            image_token_id=self._adapter.image_token_id,
            video_token_id=self._adapter.video_token_id,
        )

    def _images(self, visual: VisualInputs) -> Iterator[tuple[Grid, Tensor]]:
        pixels, grids = visual.pixel_values, visual.image_grid_thw
        if (pixels is None) != (grids is None):
            raise ValueError("pixel_values and image_grid_thw belong together; pass both or neither")
        if pixels is None or grids is None:
            return iter(())
        sizes = _grids("image_grid_thw", grids, self._adapter.merge_size)
        _check_patches("pixel_values", pixels, sizes)
        features = self._adapter.encode_images(pixels, torch.tensor(sizes)) if sizes else []
        return iter(list(zip(sizes, features, strict=True)))

    def _videos(self, visual: VisualInputs) -> Iterator[tuple[Grid, float, Tensor]]:
        pixels, grids, seconds = (
            visual.pixel_values_videos,
            visual.video_grid_thw,
            visual.second_per_grid_ts,
        )
        if (pixels is None) != (grids is None):
            raise ValueError("pixel_values_videos and video_grid_thw belong together; pass both or neither")
        if pixels is None or grids is None:
            return iter(())
        if seconds is None:
            raise ValueError(
                "second_per_grid_ts is missing; pass the seconds between two temporal units of each video "
                "(frames per unit / sampled frames per second), else the model cannot tell when things happen"
            )
        sizes = _grids("video_grid_thw", grids, self._adapter.merge_size)
        patches = torch.split(pixels, _check_patches("pixel_values_videos", pixels, sizes))
        every = torch.as_tensor(seconds, dtype=torch.float64).flatten().tolist()
        if len(every) != len(patches):
            raise ValueError(f"{len(every)} second_per_grid_ts for {len(patches)} videos; pass one per video")
        return iter(list(zip(sizes, every, patches, strict=True)))

    def _row(
        self,
        input_ids: Tensor,
        images: Iterator[tuple[Grid, Tensor]],
        videos: Iterator[tuple[Grid, float, Tensor]],
    ) -> Row:
        taken_images: list[Tensor] = []
        taken: list[tuple[CompressedVideo, VideoReport]] = []

        def image_grids() -> Iterator[Grid]:
            for grid, features in images:
                taken_images.append(features)
                yield grid

        def video_grids() -> Iterator[tuple[Grid, float]]:
            # One video after another, so that only one has its full features in memory.
            for grid, second, patches in videos:
                taken.append(self.compress(patches, grid))
                yield grid, second

        spans = find_spans(
            self._types(input_ids).tolist(), image_grids(), video_grids(), merge_size=self._adapter.merge_size
        )
        prompt = self._shorten(input_ids, spans, [video for video, _ in taken])
        return Row(
            prompt,
            tuple(video for video, _ in taken),
            tuple(taken_images),
            tuple(report for _, report in taken),
        )

    def _shorten(
        self, input_ids: Tensor, spans: list[VisionSpan], videos: list[CompressedVideo]
    ) -> ShortPrompt:
        return shorten_prompt(
            input_ids,
            spans,
            [video.kept for video in videos],
            tokens_per_second=self._adapter.tokens_per_second,
            style=self._positions,
        )


def _check_ids(input_ids: Tensor, mask: Tensor) -> None:
    if input_ids.ndim != 2 or mask.shape != input_ids.shape or not len(input_ids):
        raise ValueError(
            f"input_ids of shape {tuple(input_ids.shape)} and attention_mask of {tuple(mask.shape)} must "
            "both be (B, S), with B at least 1"
        )
    if not bool(mask.bool().any(dim=1).all()):
        raise ValueError("attention_mask hides every token of a prompt; each needs at least one")


def _grids(name: str, grids: Tensor, merge_size: int) -> list[Grid]:
    listed = torch.as_tensor(grids)
    if listed.ndim != 2 or listed.shape[1] != 3:
        raise ValueError(f"{name} of shape {tuple(listed.shape)} must be (number of them, 3)")
    found = [(int(units), int(high), int(wide)) for units, high, wide in listed.tolist()]
    for grid in found:
        if min(grid) < 1 or grid[1] % merge_size or grid[2] % merge_size:
            raise ValueError(
                f"{name} has {grid}, which must be (units, rows, columns) in patches, each at least 1, rows "
                f"and columns multiples of {merge_size}; pass it as the processor returns it"
            )
    return found


def _check_patches(name: str, pixels: Tensor, grids: Sequence[Grid]) -> list[int]:
    """Patches of each; raises ValueError where they are not those in ``pixels``."""
    sizes = [units * high * wide for units, high, wide in grids]
    if pixels.ndim != 2 or sum(sizes) != len(pixels):
        raise ValueError(
            f"{name} of shape {tuple(pixels.shape)} has {len(pixels)} patches, its grids stand for "
            f"{sum(sizes)}; pass both as the processor returns them: (patches, values), (number of them, 3)"
        )
    return sizes
