"""ADTS: picks in each unit the tokens that are both salient and unlike each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvid.config import SelectionMethod

__all__ = [
    "MAP_BYTES",
    "event_relevance",
    "select_by_diversity",
    "select_by_saliency",
    "select_tokens",
    "units_per_chunk",
]

# Units are worked on together as far as their (N, N) float32 maps fit in this. 160 frames of ordinary video
# fit at once, so the number of kernel launches does not depend on the length; only very large frames take
# several rounds.
MAP_BYTES = 512 * 2**20


def units_per_chunk(bytes_per_unit: int) -> int:
    """How many units to work on at once so that their maps stay within MAP_BYTES; at least one."""
    return max(1, MAP_BYTES // max(1, bytes_per_unit))


def select_tokens(
    features: Tensor,
    saliency: Tensor | None,
    count: int,
    method: SelectionMethod,
    relevance: Tensor | None = None,
) -> Tensor:
    """Indices of the `count` selected tokens of each unit: (T, count) int64, ascending, no index twice.

    features: (T, N, D); saliency: (T, N) float32, not needed for `div`; relevance: (T, N) float32 from
    `event_relevance`, needed for `attn_div_v2` only. Ties go to the lowest index. (ADTS, FlashVID section
    3.3.)
    """
    if count == 0:
        return torch.empty(features.shape[0], 0, dtype=torch.int64, device=features.device)
    if method == "attn":
        return select_by_saliency(_needed(saliency, "saliency", method), count)
    if method == "div":
        return select_by_diversity(features, None, count)
    scale = _needed(saliency, "saliency", method)
    if method == "attn_div_v2":
        scale = scale * _needed(relevance, "relevance", method)
    return select_by_diversity(features, scale, count)


def _needed(tensor: Tensor | None, name: str, method: str) -> Tensor:
    if tensor is None:
        raise ValueError(
            f"{name} is None, but {method} needs it as a (T, N) tensor; only 'div' goes without saliency"
        )
    return tensor


def select_by_saliency(saliency: Tensor, count: int) -> Tensor:
    """The `count` most salient tokens of each unit: (T, N) -> (T, count) int64, ascending."""
    # sort, not topk: only a stable sort promises the lowest index among equals
    order = saliency.sort(dim=-1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=-1).values


def event_relevance(features: Tensor, means: Tensor, segment_of_unit: Tensor, num_segments: int) -> Tensor:
    """How much each token has in common with its segment: (T, N) float32, mean over its units c of <E[t,j],
    f_c>.

    features: (T, N, D); means: (T, D) float32; segment_of_unit: (T,) int64.
    """
    sums = means.new_zeros(num_segments, means.shape[-1]).index_add_(0, segment_of_unit, means)
    units = torch.bincount(segment_of_unit, minlength=num_segments).unsqueeze(-1)
    # the mean of dot products is the dot product with the mean
    centre = (sums / units)[segment_of_unit]  # (T, D)
    step = units_per_chunk(4 * features.shape[1] * features.shape[2])
    chunks = [
        torch.bmm(part.float(), middle.unsqueeze(-1)).squeeze(-1)
        for part, middle in zip(torch.split(features, step), torch.split(centre, step), strict=True)
    ]
    return torch.cat(chunks)


def select_by_diversity(features: Tensor, scale: Tensor | None, count: int) -> Tensor:
    """Greedy max-min selection on cosine distances whose columns are weighted by `scale`.

    features: (T, N, D); scale: (T, N) float32 or None for 1; returns (T, count) int64, ascending.
    Time O(count * N) per unit after the distance map; memory one (N, N) float32 map per unit, chunked.
    """
    num_units, num_tokens, width = features.shape
    scale = torch.ones(num_units, num_tokens, device=features.device) if scale is None else scale
    step = units_per_chunk(4 * num_tokens * (num_tokens + width))
    chunks = [
        _greedy_max_min(_weighted_distances(part, weight), count)
        for part, weight in zip(torch.split(features, step), torch.split(scale, step), strict=True)
    ]
    return torch.cat(chunks).sort(dim=-1).values


def _weighted_distances(features: Tensor, scale: Tensor) -> Tensor:
    normal = F.normalize(features.float(), dim=-1)
    maps = torch.bmm(normal, normal.transpose(1, 2))
    return maps.neg_().add_(1).mul_(scale.unsqueeze(1))  # (C, N, N); column j weighted by scale[j]


def _greedy_max_min(maps: Tensor, count: int) -> Tensor:
    """(C, N, N) -> (C, count) int64 in order of choice."""
    num_units, num_tokens, _ = maps.shape
    pick = _first_pick(maps)  # (C, 1)
    picks = [pick]
    nearest = maps.new_full((num_units, num_tokens), torch.inf)  # running minimum over the chosen rows
    for _ in range(count - 1):
        row = maps.gather(1, pick.unsqueeze(-1).expand(-1, 1, num_tokens)).squeeze(1)
        # a chosen token is marked by -inf, which every later minimum preserves
        nearest = torch.minimum(nearest, row).scatter_(1, pick, -torch.inf)
        pick = nearest.argmax(dim=1, keepdim=True)
        picks.append(pick)
    return torch.cat(picks, dim=1)


def _first_pick(maps: Tensor) -> Tensor:
    if maps.shape[1] == 1:
        return torch.zeros(maps.shape[0], 1, dtype=torch.int64, device=maps.device)
    # the smallest entry of a column is the token's distance to itself
    second_smallest = maps.topk(2, dim=1, largest=False).values[:, 1]
    return second_smallest.argmax(dim=1, keepdim=True)
