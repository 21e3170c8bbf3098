"""M-RoPE positions of a multimodal prompt, computed the way Qwen2.5-VL was trained.

transformers 5.23's ``get_rope_index`` starts the text after a video at ``start + max(height, width)``, which
lies inside a long video's own time range; 4.57 truncates fractional seconds. Neither is what the model saw in
training, so the positions are computed here and handed to the model explicitly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import torch
from torch import Tensor

__all__ = ["PositionStyle", "VisionSpan", "find_spans", "mrope_positions"]

PositionStyle = Literal["trained", "transformers"]
Kind = Literal["image", "video"]
Grid = tuple[int, int, int]

_KIND_OF_TYPE: dict[int, Kind] = {1: "image", 2: "video"}


@dataclass(frozen=True)
class VisionSpan:
    """One image or video inside a prompt: the half-open token range ``[start, stop)`` it occupies.

    ``grid`` is (units, rows, columns) in merged tokens; ``second_per_grid`` the seconds between two units
    (0 for images). Raises ValueError for seconds that are negative or not finite.
    """

    kind: Kind
    start: int
    grid: Grid
    second_per_grid: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.second_per_grid) and self.second_per_grid >= 0):
            raise ValueError(
                f"second_per_grid_ts={self.second_per_grid!r} must be finite and at least 0: the seconds "
                "between two temporal units"
            )

    @property
    def num_tokens(self) -> int:
        """Number of placeholders the uncompressed image or video takes."""
        units, rows, columns = self.grid
        return units * rows * columns

    @property
    def stop(self) -> int:
        """First token after the span."""
        return self.start + self.num_tokens


def find_spans(
    token_types: Sequence[int],
    image_grids: Iterator[Grid],
    video_grids: Iterator[tuple[Grid, float]],
    *,
    merge_size: int,
) -> list[VisionSpan]:
    """Locate every image and video of one prompt, taking grids from the iterators in order of appearance.

    ``token_types``: 0 text, 1 image, 2 video, one per token. Grids are in patches, as processors return them;
    video grids come with their seconds per unit. Raises ValueError when placeholders and grids disagree.
    """
    spans: list[VisionSpan] = []
    index = 0
    while index < len(token_types):
        if token_types[index] == 0:
            index += 1
            continue
        span = _next_span(token_types, index, image_grids, video_grids, merge_size)
        spans.append(span)
        index = span.stop
    return spans


def _next_span(
    token_types: Sequence[int],
    start: int,
    image_grids: Iterator[Grid],
    video_grids: Iterator[tuple[Grid, float]],
    merge_size: int,
) -> VisionSpan:
    token_type = token_types[start]
    if token_type not in _KIND_OF_TYPE:
        raise ValueError(f"token type {token_type} at position {start}; known are 0 text, 1 image, 2 video")
    kind = _KIND_OF_TYPE[token_type]
    entry = next(video_grids, None) if kind == "video" else _still(next(image_grids, None))
    if entry is None:
        raise ValueError(
            f"a {kind} placeholder at token {start} has no row in {kind}_grid_thw; pass one row per {kind}"
        )
    (units, height, width), second_per_grid = entry
    span = VisionSpan(kind, start, (units, height // merge_size, width // merge_size), second_per_grid)
    found = len(list(takewhile(token_type.__eq__, token_types[start : span.stop])))
    if found != span.num_tokens:
        raise ValueError(
            f"the {kind} at token {start} has grid {(units, height, width)}, that is {span.num_tokens} "
            f"tokens, but only {found} placeholders follow; expand the prompt's to {span.num_tokens}"
        )
    return span


def _still(grid: Grid | None) -> tuple[Grid, float] | None:
    return None if grid is None else (grid, 0.0)


def mrope_positions(
    num_tokens: int,
    spans: Iterable[VisionSpan],
    *,
    tokens_per_second: float,
    style: PositionStyle = "trained",
) -> Tensor:
    """Positions (3, num_tokens) int64, axes temporal, height, width, of a full (uncompressed) prompt.

    ``"trained"``: temporal = floor(unit * second_per_grid * tokens_per_second) in float32, text after an
    image or video starts at the maximum of all three axes + 1; generation goes on from the last position + 1.
    ``"transformers"``: what ``get_rope_index`` returns from 5.18 on, for parity tests only. Raises
    ValueError for another style.
    """
    if style not in ("trained", "transformers"):
        raise ValueError(f'positions {style!r} is unknown; use "trained" or "transformers"')
    pieces: list[Tensor] = []
    done, position = 0, 0
    for span in spans:
        pieces.append(_text(span.start - done, position))
        position += span.start - done
        vision = _vision(span, tokens_per_second, style) + position
        pieces.append(vision)
        position += max(span.grid[1:]) if style == "transformers" else int(vision.max()) + 1 - position
        done = span.stop
    pieces.append(_text(num_tokens - done, position))
    return torch.cat(pieces, dim=1)


def _text(length: int, start: int) -> Tensor:
    return (torch.arange(length) + start).expand(3, -1)


def _vision(span: VisionSpan, tokens_per_second: float, style: PositionStyle) -> Tensor:
    units, rows, columns = span.grid
    steps = torch.arange(units, dtype=torch.float32)
    if span.kind == "image" and style == "transformers":
        seconds = steps
    elif style == "transformers":
        seconds = steps * (tokens_per_second * span.second_per_grid)
    else:  # the training code multiplies in this order, in float32; another order rounds differently
        seconds = steps * span.second_per_grid * tokens_per_second
    axes = torch.meshgrid(seconds.long(), torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack(axes).reshape(3, -1)
