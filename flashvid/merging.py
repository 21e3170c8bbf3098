"""TSTM: links each token to its best match one unit earlier; each tree of links becomes one token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvid.config import TreeMean
from flashvid.segments import segment_ids
from flashvid.selection import units_per_chunk

__all__ = ["Forest", "add_rows", "grow_trees", "tree_weights"]

_LOWEST_COSINE = -1 + 1e-6


@dataclass(frozen=True)
class Forest:
    """Which tokens merge with which; global token index = unit * N + position.

    root: (T*N,) int64, the root of each token's tree (itself for roots and for selected tokens).
    parent: (T*N,) int64, the token it is linked to (itself where unlinked).
    """

    root: Tensor
    parent: Tensor


def grow_trees(
    features: Tensor, chosen: Tensor, lengths: Sequence[int], *, unit_budget: int, threshold: float
) -> Forest:
    """Links tokens along time inside each segment and finds the roots.

    features: (T, N, D); chosen: (T, N) bool, selected tokens, which neither link nor are linked to; lengths:
    of the segments, in units; unit_budget: b, places per unit. The threshold of a segment rises where linking
    would leave fewer than b tokens per unit. A threshold of 1 or more links nothing. (TSTM, FlashVID section
    3.4.)
    """
    num_units, num_tokens, _ = features.shape
    own = torch.arange(num_units * num_tokens, device=features.device)
    if threshold >= 1:  # stated, because a rounded cosine can exceed 1
        return Forest(own, own)
    cosine, match = _best_matches(features, chosen)
    segment_of_unit = segment_ids(lengths, features.device)
    can_link = _has_earlier_unit(segment_of_unit).unsqueeze(-1) & ~chosen & (cosine > -torch.inf)
    cosine = cosine.masked_fill(~can_link, -1.0)
    limits = _segment_thresholds(cosine, segment_of_unit, lengths, unit_budget, threshold)
    linked = (can_link & (cosine > limits[segment_of_unit].unsqueeze(-1))).view(-1)
    parent = torch.where(linked, match.view(-1) + (own // num_tokens - 1) * num_tokens, own)
    return Forest(_find_roots(parent, max(lengths)), parent)


def _best_matches(features: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine (T, N) float32 and position (T, N) int64 of the best unselected match one unit earlier.

    -inf where there is none; unit 0 has none.
    """
    num_units, num_tokens, width = features.shape
    cosine = torch.full((num_units, num_tokens), -torch.inf, device=features.device)
    match = torch.zeros(num_units, num_tokens, dtype=torch.int64, device=features.device)
    step = units_per_chunk(4 * num_tokens * (num_tokens + 2 * width))
    for start in range(1, num_units, step):
        stop = min(start + step, num_units)
        normal = F.normalize(features[start - 1 : stop].float(), dim=-1)
        maps = torch.bmm(normal[1:], normal[:-1].transpose(1, 2))
        maps.masked_fill_(chosen[start - 1 : stop - 1].unsqueeze(1), -torch.inf)
        # max() returns the first of equal entries
        cosine[start:stop], match[start:stop] = maps.max(dim=-1)
    return cosine, match


def _has_earlier_unit(segment_of_unit: Tensor) -> Tensor:
    inside = torch.zeros_like(segment_of_unit, dtype=torch.bool)
    inside[1:] = segment_of_unit[1:] == segment_of_unit[:-1]
    return inside


def _segment_thresholds(
    cosine: Tensor, segment_of_unit: Tensor, lengths: Sequence[int], unit_budget: int, threshold: float
) -> Tensor:
    """Link threshold per segment, (S,) float32: raised where more than k = F*(N - b) tokens would link."""
    num_tokens = cosine.shape[1]
    per_unit = num_tokens - unit_budget
    if per_unit == 0:
        return torch.full((len(lengths),), torch.inf, device=cosine.device)
    units = torch.tensor(lengths, device=cosine.device)
    most_links = units * per_unit
    links = torch.zeros_like(units).index_add_(0, segment_of_unit, (cosine > threshold).sum(dim=1))
    kth_largest = _ranked_by_segment(cosine, segment_of_unit)[
        (units.cumsum(0) - units) * num_tokens + most_links - 1
    ].clamp(min=_LOWEST_COSINE)
    return torch.where(links > most_links, kth_largest, threshold)


def _ranked_by_segment(cosine: Tensor, segment_of_unit: Tensor) -> Tensor:
    """All cosines, falling inside each segment: (T, N) -> (T*N,). One sort for all segments."""
    falling, order = cosine.view(-1).sort(descending=True)
    by_segment = segment_of_unit.repeat_interleave(cosine.shape[1])[order].sort(stable=True).indices
    return falling[by_segment]


def _find_roots(parent: Tensor, longest_segment: int) -> Tensor:
    """Pointer jumping: each step doubles the distance covered, so log2(F) steps reach every root."""
    root = parent
    for _ in range(math.ceil(math.log2(longest_segment)) if longest_segment > 1 else 0):
        root = root[root]
    return root


def tree_weights(forest: Forest, tree_mean: TreeMean) -> Tensor:
    """Weight of each token within its tree's sum, (T*N,) float32, such that the weighted sum is the tree's
    value.

    `members`: 1 / size of the tree. `reference`: 1 / (1 + direct children of the root), which makes long
    chains too large, as the reference code does.
    """
    own = torch.arange(len(forest.root), device=forest.root.device)
    counted = forest.root if tree_mean == "members" else forest.parent
    divisor = torch.bincount(counted, minlength=len(own))  # a root is its own parent, hence the 1 +
    return 1 / divisor[forest.root].float()


def add_rows(rows: Tensor, index: Tensor, weights: Tensor | None, num_groups: int) -> Tensor:
    """Sums rows by group, the same bits on every run: (M, D), index (M,) -> (num_groups, D) float32."""
    sums = torch.zeros(num_groups, rows.shape[1], dtype=torch.float32, device=rows.device)
    step = units_per_chunk(8 * rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step].float()
        if weights is not None:
            part = part * weights[start : start + step].unsqueeze(-1)
        _accumulate(sums, index[start : start + step], part)
    return sums


def _accumulate(sums: Tensor, index: Tensor, part: Tensor) -> None:
    if sums.is_cuda:
        # index_add_ on CUDA adds atomically, in any order; index_put_ sorts first
        sums.index_put_((index,), part, accumulate=True)
    else:
        sums.index_add_(0, index, part)
