"""ADTS: picks in each unit the tokens that are both salient and unlike each other."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvid.compression.merging import Groups
from flashvid.compression.products import TokenProducts, unit_chunks
from flashvid.config import SelectionMethod

__all__ = ["event_relevance", "select_by_diversity", "select_by_saliency", "select_tokens"]


def select_tokens(
    products: TokenProducts,
    saliency: Tensor | None,
    count: int,
    method: SelectionMethod,
    relevance: Tensor | None = None,
) -> Tensor:
    """Positions of the `count` selected tokens of each unit: (T, count) int64 in order of choice, none twice.

    The first n of them are what a smaller count n would choose. products: of the features; saliency: (T, N)
    float32, not needed for `div`; relevance: (T, N) float32 from `event_relevance`, for `attn_div_v2` only.
    Ties go to the lowest position. Raises ValueError where the method misses an argument. (ADTS, FlashVID
    section 3.3.)
    """
    if count == 0:
        return torch.empty(products.shape[0], 0, dtype=torch.int64, device=products.features.device)
    if method == "attn":
        return select_by_saliency(_needed(saliency, "saliency", method), count)
    if method == "div":
        return select_by_diversity(products, None, count)
    scale = _needed(saliency, "saliency", method)
    if method == "attn_div_v2":
        scale = scale * _needed(relevance, "relevance", method)
    return select_by_diversity(products, scale, count)


def _needed(tensor: Tensor | None, name: str, method: str) -> Tensor:
    if tensor is None:
        raise ValueError(
            f"{name} is None, but {method} needs it as a (T, N) tensor; only 'div' goes without saliency"
        )
    return tensor


def select_by_saliency(saliency: Tensor, count: int) -> Tensor:
    """The `count` most salient tokens of each unit: (T, N) float32 -> (T, count) int64, falling.

    Method `attn` of FlashVID section 3.3.
    """
    # sort, not topk: only a stable sort promises the lowest index among equals
    return saliency.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def event_relevance(features: Tensor, means: Tensor, segment_of_unit: Tensor, num_segments: int) -> Tensor:
    """How much each token has in common with its segment: (T, N) float32, mean over its units c of <E[t,j],
    f_c>.

    features: (T, N, D) any float dtype; means: (T, D) float32; segment_of_unit: (T,) int64. (FlashVID section
    3.3, method `attn_div_v2`.)
    """
    units = torch.bincount(segment_of_unit, minlength=num_segments)
    # the mean of dot products is the dot product with the mean
    mean = Groups(segment_of_unit, units, len(means)).mean(means)
    centre = mean[segment_of_unit].unsqueeze(-1)  # (T, D, 1)
    relevance = means.new_empty(features.shape[:2])
    for start, stop in unit_chunks(len(features), 4 * features.shape[1] * features.shape[2]):
        product = torch.bmm(features[start:stop].float(), centre[start:stop])
        relevance[start:stop] = product.squeeze(-1)
    return relevance


def select_by_diversity(products: TokenProducts, scale: Tensor | None, count: int) -> Tensor:
    """Greedy max-min selection on cosine distances whose columns are weighted by `scale`.

    scale: (T, N) float32 or None for 1; returns (T, count) int64 in order of choice. Time O(count * N) per
    unit after the products; memory one (N, N) float32 map per unit, chunked. (FlashVID section 3.3.)
    """
    num_units, num_tokens = products.shape
    chunks = []
    for start, stop in unit_chunks(num_units, 8 * num_tokens**2):
        part = None if scale is None else scale[start:stop]
        chunks.append(_greedy_max_min(_weighted_distances(products, start, stop, part), count))
    return torch.cat(chunks)


def _weighted_distances(products: TokenProducts, start: int, stop: int, scale: Tensor | None) -> Tensor:
    """(C, N, N) float32: 1 - cosine, column j times scale[j]."""
    inverse = products.norms[start:stop].reciprocal()
    maps = inverse.unsqueeze(2) * inverse.unsqueeze(1)  # first, so that rounding keeps the map symmetric
    maps.mul_(products.within(start, stop)).neg_().add_(1)
    maps.diagonal(dim1=1, dim2=2).zero_()  # not a rounding error, whose sign a negative scale would turn
    return maps if scale is None else maps.mul_(scale.unsqueeze(1))


def _greedy_max_min(maps: Tensor, count: int) -> Tensor:
    """(C, N, N) -> (C, count) int64 in order of choice."""
    num_units, num_tokens, _ = maps.shape
    pick = _first_pick(maps)  # (C, 1, 1)
    picks = [pick]
    nearest = maps.new_full((num_units, 1, num_tokens), torch.inf)  # running minimum over the chosen rows
    for _ in range(count - 1):
        row = maps.gather(1, pick.expand(-1, 1, num_tokens))
        # a chosen token is marked by -inf, which every later minimum preserves
        torch.minimum(nearest, row, out=nearest).scatter_(2, pick, -torch.inf)
        pick = nearest.argmax(dim=2, keepdim=True)
        picks.append(pick)
    return torch.cat(picks, dim=2).squeeze(1)


def _first_pick(maps: Tensor) -> Tensor:
    """(C, 1, 1) int64: the column whose second smallest entry is largest."""
    if maps.shape[1] == 1:
        return torch.zeros(len(maps), 1, 1, dtype=torch.int64, device=maps.device)
    # the smallest entry of a column is the token's distance to itself
    second_smallest = maps.topk(2, dim=1, largest=False).values[:, 1:]
    return second_smallest.argmax(dim=2, keepdim=True)
