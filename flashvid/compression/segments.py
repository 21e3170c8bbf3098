"""DySeg: cuts a video into segments where neighbouring temporal units stop looking alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["segment_ids", "segment_lengths"]


def segment_lengths(
    means: Tensor, *, threshold: float = 0.9, min_segments: int = 4, fill: bool = True
) -> tuple[int, ...]:
    """Lengths of the segments, in units, in order; each >= 1, summing to T.

    means: (T, D) float32, mean tokens of the units. A cut comes after unit t where the cosine of means[t] and
    means[t+1] is below the threshold. If that gives fewer than `min_segments` and `fill` is on, the lowest
    remaining cosines are cut too, earliest first among equals, until there are enough or every unit is alone.
    (DySeg, FlashVID section 3.2.)
    """
    normal = F.normalize(means, dim=-1)
    cosines = (normal[:-1] * normal[1:]).sum(dim=-1)  # (T-1,) float32
    is_cut: list[bool] = (cosines < threshold).tolist()
    if fill:
        _fill_cuts(is_cut, cosines.tolist(), min_segments - 1)
    borders = [0, *(t + 1 for t, cut in enumerate(is_cut) if cut), len(means)]
    return tuple(after - before for before, after in pairwise(borders))


def _fill_cuts(is_cut: list[bool], cosines: list[float], wanted: int) -> None:
    missing = max(0, wanted - sum(is_cut))
    uncut = [t for t, cut in enumerate(is_cut) if not cut]
    for t in sorted(uncut, key=cosines.__getitem__)[
        :missing
    ]:  # sorted() is stable: earliest first among equals
        is_cut[t] = True


def segment_ids(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Segment number of each unit: lengths summing to T -> (T,) int64, rising."""
    counts = torch.tensor(lengths, dtype=torch.int64, device=device)
    return torch.repeat_interleave(counts, output_size=sum(lengths))
