"""DySeg: cuts a video into segments where neighbouring temporal units stop looking alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["segment_ids", "segment_lengths"]


def segment_lengths(
    means: Tensor,
    *,
    threshold: float = 0.9,
    min_segments: int = 4,
    fill: bool = True,
    reference_ties: bool = False,
) -> tuple[int, ...]:
    """Lengths of the segments, in units, in order; each >= 1, summing to T.

    means: (T, D) float32, mean tokens of the units. A cut comes after unit t where the cosine of means[t] and
    means[t+1] is below the threshold. If that gives fewer than `min_segments` and `fill` is on, the lowest
    remaining cosines are cut too, until there are enough or every unit is alone. Among equal ones the cuts
    are spread evenly: a picture that stands still is cut into equal parts. Means that are equal bit for bit,
    and not zero, have cosine 1 whatever rounding makes of it. (DySeg, FlashVID section 3.2.)

    reference_ties: cut the earliest among equal ones, which makes the first units of a still segments of one.
    """
    normal = F.normalize(means, dim=-1)
    cosines = (normal[:-1] * normal[1:]).sum(dim=-1)  # (T-1,) float32
    if not reference_ties:
        cosines = cosines.masked_fill(_is_same(means[:-1], means[1:]), 1.0)
    is_cut: list[bool] = (cosines < threshold).tolist()
    if fill:
        _fill_cuts(is_cut, cosines.tolist(), min_segments - 1, spread=not reference_ties)
    borders = [0, *(t + 1 for t, cut in enumerate(is_cut) if cut), len(means)]
    return tuple(after - before for before, after in pairwise(borders))


def _is_same(some: Tensor, others: Tensor) -> Tensor:
    return (some == others).all(dim=-1) & (some != 0).any(dim=-1)


def _fill_cuts(is_cut: list[bool], cosines: list[float], wanted: int, *, spread: bool) -> None:
    uncut = [t for t, cut in enumerate(is_cut) if not cut]
    missing = min(max(0, wanted - sum(is_cut)), len(uncut))
    lowest = sorted(uncut, key=cosines.__getitem__)[:missing]  # stable: earliest first among equals
    if spread and lowest:
        highest = cosines[lowest[-1]]
        below = [t for t in lowest if cosines[t] < highest]
        lowest = below + _evenly([t for t in uncut if cosines[t] == highest], missing - len(below))
    for t in lowest:
        is_cut[t] = True


def _evenly(places: list[int], count: int) -> list[int]:
    """`count` of the places, such that they cut a row of len(places) + 1 things into equal parts."""
    return [places[(i + 1) * (len(places) + 1) // (count + 1) - 1] for i in range(count)]


def segment_ids(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Segment number of each unit: lengths summing to T -> (T,) int64, rising."""
    counts = torch.tensor(lengths, dtype=torch.int64, device=device)
    return torch.repeat_interleave(counts, output_size=sum(lengths))
