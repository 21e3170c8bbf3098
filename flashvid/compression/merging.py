"""TSTM: links each token to its best match one unit earlier; each tree of links becomes one token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvid.compression.products import TokenProducts, unit_chunks, widened
from flashvid.compression.segments import segment_ids
from flashvid.config import TreeMean

__all__ = ["Forest", "Groups", "best_matches", "grow_trees", "tree_weights"]

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
    products: TokenProducts,
    chosen: Tensor,
    lengths: Sequence[int],
    *,
    most_links: Sequence[int],
    threshold: float,
    reference_ties: bool = False,
) -> Forest:
    """Links tokens along time inside each segment and finds the roots.

    products: of the features, with `across` unless threshold >= 1; chosen: (T, N) bool, selected tokens,
    which neither link nor are linked to; lengths: of the segments, in units; most_links: per segment of F
    units, F*N less the places it has: where more tokens would link, only the first `most_links - 1` do, by
    falling cosine and among equal ones by rising index. A threshold of 1 or more links nothing. (TSTM,
    FlashVID section 3.4.)

    reference_ties: link what lies strictly above the `most_links`-th cosine, as published. The same where no
    two cosines are equal; in a still picture thousands are, and then none of them would link.
    """
    num_units, num_tokens = products.shape
    own = torch.arange(num_units * num_tokens, device=chosen.device)
    if threshold >= 1 or num_units == 1:  # stated, because a rounded cosine can exceed 1
        return Forest(own, own)
    cosine, match = best_matches(products, chosen)
    segment_of_unit = segment_ids(lengths, chosen.device)
    can_link = _has_earlier_unit(segment_of_unit).unsqueeze(-1) & ~chosen & (cosine > -torch.inf)
    cosine = cosine.masked_fill(~can_link, -1.0)
    floor = _floor(cosine, segment_of_unit, lengths, most_links, threshold)
    would_link = _above_kth(cosine, floor) if reference_ties else _first_ranked(cosine, floor)
    linked = (can_link & would_link).view(-1)
    parent = torch.where(linked, match.view(-1) + (own // num_tokens - 1) * num_tokens, own)
    return Forest(_find_roots(parent, max(lengths)), parent)


def best_matches(products: TokenProducts, excluded: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Best match of each token one unit earlier: its cosine (T, N) float32 and its position (T, N) int64.

    excluded: (T, N) bool, tokens that are nobody's match. -inf where there is none; unit 0 has none. Ties go
    to the lowest position. (FlashVID section 3.4.)
    """
    num_units, num_tokens = products.shape
    inverse = products.norms.reciprocal()
    cosine = torch.full_like(inverse, -torch.inf)
    match = torch.zeros(num_units, num_tokens, dtype=torch.int64, device=inverse.device)
    barred = torch.zeros_like(inverse)
    if excluded is not None:
        barred.masked_fill_(excluded, -torch.inf)
    width = products.features.shape[2] if products.maps is None else 0
    for start, stop in unit_chunks(num_units, 4 * num_tokens * (3 * num_tokens + width), start=1):
        earlier = slice(start - 1, stop - 1)
        maps = torch.addcmul(
            barred[earlier].unsqueeze(1), products.across(start, stop), inverse[earlier].unsqueeze(1)
        )
        # max() returns the first of equal entries
        best, match[start:stop] = maps.max(dim=2)
        torch.mul(best, inverse[start:stop], out=cosine[start:stop])
    return cosine, match


def _has_earlier_unit(segment_of_unit: Tensor) -> Tensor:
    inside = torch.zeros_like(segment_of_unit, dtype=torch.bool)
    inside[1:] = segment_of_unit[1:] == segment_of_unit[:-1]
    return inside


@dataclass(frozen=True)
class _Floor:
    """How far linking may go in each of S segments.

    segment: (T, 1) int64, of each unit. most: (S,) int64, links allowed; is_over: (S,) bool, where more
    tokens lie above the threshold. order: (T*N,) int64, tokens segment by segment, by falling cosine and
    among equal ones by rising index. start: (S,) int64, where each segment begins in it.
    """

    segment: Tensor
    threshold: float
    most: Tensor
    is_over: Tensor
    order: Tensor
    start: Tensor


def _floor(
    cosine: Tensor,
    segment_of_unit: Tensor,
    lengths: Sequence[int],
    most_links: Sequence[int],
    threshold: float,
) -> _Floor:
    units, most = torch.tensor((tuple(lengths), tuple(most_links)), device=cosine.device)
    links = torch.zeros_like(units).index_add_(0, segment_of_unit, (cosine > threshold).sum(dim=1))
    num_tokens = cosine.shape[1]
    falling = cosine.view(-1).sort(descending=True, stable=True).indices
    by_segment = segment_of_unit[falling // num_tokens].sort(stable=True).indices
    start = (units.cumsum(0) - units) * num_tokens
    return _Floor(segment_of_unit.unsqueeze(-1), threshold, most, links > most, falling[by_segment], start)


def _first_ranked(cosine: Tensor, floor: _Floor) -> Tensor:
    """(T, N) bool: above the threshold and, where that would be too many, among the first most - 1."""
    rank = torch.empty_like(floor.order)
    rank[floor.order] = torch.arange(len(rank), device=rank.device)
    stop = floor.start + floor.most - floor.is_over.long()
    limits = cosine.new_full(stop.shape, floor.threshold)
    limits[floor.is_over] = max(floor.threshold, _LOWEST_COSINE)
    return (cosine > limits[floor.segment]) & (rank.view_as(cosine) < stop[floor.segment])


def _above_kth(cosine: Tensor, floor: _Floor) -> Tensor:
    """(T, N) bool: above a threshold that rises, where too many would link, to the `most`-th cosine."""
    kth = floor.order[(floor.start + floor.most - 1).clamp_(min=0)]
    kth_largest = cosine.view(-1)[kth].clamp_(min=_LOWEST_COSINE).masked_fill_(floor.most == 0, torch.inf)
    return cosine > torch.where(floor.is_over, kth_largest, floor.threshold)[floor.segment]


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
    chains too large, as the reference code does. (FlashVID section 3.4.)
    """
    counted = forest.root if tree_mean == "members" else forest.parent
    divisor = torch.bincount(counted, minlength=len(counted))  # a root is its own parent, hence the 1 +
    return divisor[forest.root].float().reciprocal_()


@dataclass(frozen=True)
class Groups:
    """Disjoint groups of rows; the mean of an empty one is 0.

    group: (R,) int64 in [0, G), or -1 for rows in none. sizes: (G,) int64. num_members: their sum.
    """

    group: Tensor
    sizes: Tensor
    num_members: int

    def mean(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean of each group; with weights, (R,) float32, the weighted sum instead.

        rows: (R, D) bfloat16, float16 or float32, contiguous. Returns (G, D) float32, the same on every run.
        """
        if rows.dtype != torch.float32:  # embedding_bag would round the sum, and then again the mean
            return self._widened_mean(rows, weights)
        members, offsets = self._in_order()
        mode = "mean" if weights is None else "sum"
        shares = None if weights is None else weights[members]
        return F.embedding_bag(
            members, rows, offsets, mode=mode, per_sample_weights=shares, include_last_offset=True
        )

    def _in_order(self) -> tuple[Tensor, Tensor]:
        """Members group by group, rising inside each, and where each group begins among them."""
        order = self.group.sort(stable=True).indices[len(self.group) - self.num_members :]
        return order, F.pad(self.sizes.cumsum(0), (1, 0))

    def _widened_mean(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        num_groups, group = len(self.sizes), self.group
        if 2 * self.num_members < len(rows):
            members = (group >= 0).nonzero().squeeze(1)
            rows, group = rows[members], group[members]
            weights = None if weights is None else weights[members]
        else:
            group = torch.where(group < 0, num_groups, group)
        # the last sum is for rows in no group
        sums = rows.new_zeros(num_groups + 1, rows.shape[1], dtype=torch.float32)
        for start, part in widened(rows):
            piece = slice(start, start + len(part))
            weighted = part if weights is None else part.mul_(weights[piece].unsqueeze(-1))
            _accumulate(sums, group[piece], weighted)
        if weights is None:
            sums[:num_groups].div_(self.sizes.clamp(min=1).unsqueeze(-1))
        return sums[:num_groups]


def _accumulate(sums: Tensor, index: Tensor, part: Tensor) -> None:
    if sums.is_cuda:
        # index_add_ on CUDA adds atomically, in any order; index_put_ sorts first
        sums.index_put_((index,), part, accumulate=True)
    else:
        sums.index_add_(0, index, part)
