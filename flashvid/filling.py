"""Spatial fill: brings the trees of units that have too many of them down to their places, by DPC-kNN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvid.clustering import Clusters, cluster_products, cluster_units
from flashvid.limits import MAP_BYTES
from flashvid.merging import Forest, Groups
from flashvid.products import TokenProducts, unit_chunks

__all__ = ["Trees", "cluster_trees"]

_UNLIKE = 3  # units with a third of the roots are clustered apart
_MOST_BATCHES = 2


@dataclass(frozen=True)
class Trees:
    """The trees of a video and, when asked for, their values.

    products: of the features (T, N, D). is_root: (T, N) bool, roots of trees; selected tokens are none.
    shares: (T*N,) float32, weight of each token in its tree's value; None for the mean of its tokens.
    """

    products: TokenProducts
    forest: Forest
    is_root: Tensor
    shares: Tensor | None

    def merged(self) -> Tensor:
        """(T, N) bool, roots of trees of more than one token."""
        sizes = torch.bincount(self.forest.root, minlength=self.is_root.numel())
        return self.is_root & (sizes > 1).view_as(self.is_root)

    def values(self, roots: Tensor) -> Tensor:
        """Values of some trees: (M,) int64 global indices of roots -> (M, D) float32.

        T*N in place of a root is padding, its value 0; no root comes twice.
        """
        num_tokens = self.is_root.numel()
        place = torch.full((num_tokens + 1,), -1, device=roots.device)
        place[roots] = torch.arange(len(roots), device=roots.device)
        group = place[self.forest.root]
        sizes = torch.bincount(group + 1, minlength=len(roots) + 1)[1:]  # the first are in none of the trees
        groups = Groups(group, sizes, int(sizes.sum()))
        return groups.mean(self.products.features.flatten(0, 1), self.shares)


def cluster_trees(trees: Trees, counts: Sequence[tuple[int, int]], *, library_ties: bool = False) -> Tensor:
    """For each root the global index of its cluster's centre, for every other token its own: (T*N,) int64.

    counts: (roots, places) of each unit, places >= 1 where there are roots. A unit with room for all its
    roots keeps them. library_ties: see `cluster_units`. Memory: a few (n, n) float32 maps for each unit of a
    chunk, n the most roots of a unit. (FlashVID section 3.4.)
    """
    center = torch.arange(trees.is_root.numel(), device=trees.is_root.device)
    crowded = [t for t, (roots, places) in enumerate(counts) if roots > places]
    if not crowded:
        return center
    crowds = list(_crowds(trees, crowded, counts, library_ties))
    for pack in _packs(crowds, trees.products.features.shape[2]):
        values = trees.values(torch.cat([crowd.valued_roots().flatten() for crowd in pack]))
        for crowd, part in zip(
            pack, torch.split(values, [crowd.slots.numel() for crowd in pack]), strict=True
        ):
            clusters = crowd.cluster(part.view(*crowd.slots.shape, values.shape[1]), library_ties)
            crowd.assign(center, clusters)
    return center


def _crowds(
    trees: Trees, crowded: Sequence[int], counts: Sequence[tuple[int, int]], library_ties: bool
) -> Iterator[_Crowd]:
    valued = trees.is_root if library_ties else trees.merged()
    num_values: list[int] = valued.sum(dim=1).tolist()
    for alike in _alike(crowded, [roots for roots, _ in counts]):
        most = max(counts[t][0] for t in alike)
        need = _bytes_per_unit(trees.products, most, max(num_values[t] for t in alike))
        for first, last in unit_chunks(len(alike), need):
            units = alike[first:last]
            most = max(counts[t][0] for t in units)
            sizes = _Sizes(
                points=most,
                places=max(counts[t][1] for t in units),
                values=max(num_values[t] for t in units),
                in_place=4 * most >= 3 * valued.shape[1] and not library_ties,
            )
            yield _Crowd.of(trees, units, [counts[t][1] for t in units], valued, sizes)


def _alike(units: Sequence[int], roots: Sequence[int]) -> list[list[int]]:
    """The units in at most three batches of like numbers of roots, largest first: less is lost to padding.

    The first unit of a scene has many roots, those that repeat it have few.
    """
    batches: list[list[int]] = [[]]
    for t in sorted(units, key=lambda t: -roots[t]):
        if batches[-1] and roots[t] * _UNLIKE <= roots[batches[-1][0]] and len(batches) < _MOST_BATCHES:
            batches.append([])
        batches[-1].append(t)
    return [sorted(batch) for batch in batches]


def _bytes_per_unit(products: TokenProducts, most: int, most_values: int) -> int:
    """Memory for one unit of a crowd; counted twice where as much again holds the trees' values."""
    num_tokens, width = products.features.shape[1:]
    maps = 4 * most * (num_tokens + 5 * most)
    if products.maps is None:
        maps += 4 * num_tokens * (num_tokens + width)
    return 2 * max(maps, 4 * width * (most_values + num_tokens)) if most_values else maps


def _packs(crowds: Sequence[_Crowd], width: int) -> Iterator[Sequence[_Crowd]]:
    """Runs of crowds whose trees' values are held together: one pass over the features for each."""
    start, held = 0, 0
    for index, crowd in enumerate(crowds):
        need = 4 * width * crowd.slots.numel()
        if index > start and held + need > MAP_BYTES // 2:
            yield crowds[start:index]
            start, held = index, 0
        held += need
    yield crowds[start:]


@dataclass(frozen=True)
class _Sizes:
    """The most roots, places and trees with values of their own in any unit of a crowd."""

    points: int
    places: int
    values: int
    in_place: bool  # nearly all tokens are roots: to move them together would cost more than it saves


@dataclass(frozen=True)
class _Crowd:
    """Some units that are clustered together, with their roots brought to one number n by padding.

    units: (U,) int64. positions: (U, n) int64 of the roots in their unit, and of other tokens as padding; or
    of all tokens in order. valid: (U, n) bool, False for padding. slots: (U, q) int64, which of the n have
    another value than their token, n for padding. places: (U,) int64.
    """

    trees: Trees
    units: Tensor
    positions: Tensor
    valid: Tensor
    slots: Tensor
    places: Tensor
    most_places: int
    in_place: bool

    @classmethod
    def of(
        cls, trees: Trees, units: Sequence[int], places: Sequence[int], valued: Tensor, most: _Sizes
    ) -> _Crowd:
        index, wanted = torch.tensor((tuple(units), tuple(places)), device=valued.device)
        if most.in_place:
            valid = trees.is_root[index]
            positions = torch.arange(valid.shape[1], device=index.device).expand_as(valid)
        else:
            positions, valid = _pad_by_unit(trees.is_root[index], most.points)
        slots, is_real = _pad_by_unit(valued[index].gather(1, positions) & valid, most.values)
        slots = slots.masked_fill(~is_real, positions.shape[1])
        return cls(trees, index, positions, valid, slots, wanted, most.places, most.in_place)

    def valued_roots(self) -> Tensor:
        """Global index of the root of each slot, (U, q) int64; T*N for padding."""
        roots = F.pad(self._roots(), (0, 1), value=self.trees.is_root.numel())
        return roots.gather(1, self.slots)

    def cluster(self, values: Tensor, library_ties: bool) -> Clusters:
        """values: (U, q, D) float32, of the slots' trees."""
        if library_ties:  # every root has a slot
            return cluster_units(values, self.valid, self.places, library_ties=True)
        dots = self._token_products()
        if values.shape[1]:
            dots = self._with_values(dots, values)
        width = self.trees.products.features.shape[2]
        return cluster_products(dots, self.valid, self.places, width=width, most_centers=self.most_places)

    def assign(self, center: Tensor, clusters: Clusters) -> None:
        """Writes each root's centre into (T*N,) `center`."""
        roots = self._roots()
        center[roots[self.valid]] = roots.gather(1, clusters.center_of_point())[self.valid]

    def _roots(self) -> Tensor:
        """Global index of each root, (U, n) int64."""
        return self.positions + self.units.unsqueeze(-1) * self.trees.is_root.shape[1]

    def _with_values(self, dots: Tensor, values: Tensor) -> Tensor:
        """(U, n, n) products of the roots' tokens -> those of the trees' values.

        For trees of one token they are the same; only the others' are computed.
        """
        num_points = self.positions.shape[1]
        dots = F.pad(dots, (0, 1, 0, 1))  # the last row and column take what padding writes
        with_points = self._products_with_points(values)
        dots.scatter_(1, _along(self.slots, 2, num_points), with_points)
        dots.scatter_(2, _along(self.slots, 1, num_points), with_points.transpose(1, 2))
        pairs = self.slots.unsqueeze(2) * (num_points + 1) + self.slots.unsqueeze(1)
        dots.flatten(1).scatter_(1, pairs.flatten(1), torch.bmm(values, values.transpose(1, 2)).flatten(1))
        return dots[:, :num_points, :num_points]

    def _products_with_points(self, values: Tensor) -> Tensor:
        """(U, q, D) values, times the roots' own tokens: (U, q, n) float32."""
        features = self.trees.products.features
        num_points = self.positions.shape[1]
        if 2 * num_points < features.shape[1]:
            rows = features[self.units.unsqueeze(-1), self.positions].float()
            return torch.bmm(values, rows.transpose(1, 2))
        units = features if len(self.units) == len(features) else features[self.units]
        products = torch.bmm(values, units.float().transpose(1, 2))
        if self.in_place:
            return products
        return products.gather(2, _along(self.positions, 1, values.shape[1]))

    def _token_products(self) -> Tensor:
        """Products of the roots' own tokens, (U, n, n) float32; read only."""
        num_units, num_tokens = self.trees.is_root.shape
        products = self.trees.products
        is_all = len(self.units) == num_units  # then there is no need of a copy
        maps = products.within(0, num_units) if is_all else products.within_units(self.units)
        if self.in_place:
            return maps
        rows = maps.gather(1, _along(self.positions, 2, num_tokens))
        return rows.gather(2, _along(self.positions, 1, rows.shape[1]))


def _along(indices: Tensor, dim: int, size: int) -> Tensor:
    """(U, k) -> (U, k, size) or (U, size, k), without a copy."""
    shape = list(indices.shape)
    shape.insert(dim, size)
    return indices.unsqueeze(dim).expand(shape)


def _pad_by_unit(mask: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Rising positions of each row's true entries, (U, longest) int64, and which of them are real.

    Padding consists of the row's other positions, so no position comes twice.
    """
    positions = (~mask).to(torch.uint8).sort(dim=1, stable=True).indices[:, :longest]
    return positions, mask.gather(1, positions)
