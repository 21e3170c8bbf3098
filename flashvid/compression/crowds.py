"""Units with more trees than places, brought to one number of roots so that all are clustered together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvid.arithmetic import MAP_BYTES
from flashvid.compression.clustering import Clusters
from flashvid.compression.merging import Forest, Groups
from flashvid.compression.products import TokenProducts, unit_chunks

__all__ = ["Crowd", "CrowdSizes", "Trees", "ValueJob", "crowd_of", "value_jobs"]


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

    @property
    def width(self) -> int:
        """D."""
        return self.products.features.shape[2]

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


@dataclass(frozen=True)
class CrowdSizes:
    """The most roots, places and trees with values of their own in any unit of a crowd; memory for a unit.

    in_place: nearly all tokens are roots, so that to move the roots together would cost more than it saves.
    """

    points: int
    places: int
    values: int
    bytes_per_unit: int
    in_place: bool


@dataclass(frozen=True)
class Crowd:
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
    map_bytes: int
    in_place: bool

    @property
    def num_points(self) -> int:
        """n."""
        return self.positions.shape[1]

    @property
    def token_bytes(self) -> int:
        """Memory that `times_tokens` takes for one unit's features."""
        return 4 * self.trees.width * min(2 * self.num_points, self.trees.is_root.shape[1])

    def roots(self) -> Tensor:
        """Global index of each root, (U, n) int64."""
        return self.positions + self.units.unsqueeze(-1) * self.trees.is_root.shape[1]

    def valued_roots(self) -> Tensor:
        """Global index of the root of each slot, (U, q) int64; T*N for padding."""
        return F.pad(self.roots(), (0, 1), value=self.trees.is_root.numel()).gather(1, self.slots)

    def assign(self, center: Tensor, clusters: Clusters) -> None:
        """Writes each root's centre into (T*N,) `center`."""
        roots = self.roots()
        center[roots[self.valid]] = roots.gather(1, clusters.center_of_point())[self.valid]

    def token_products(self) -> Tensor:
        """Products of the roots' own tokens, (U, n, n) float32, read only.

        Where some trees have values of their own (U, n+1, n+1), to be filled: the last row and column take
        what padding writes.
        """
        num_units, num_tokens = self.trees.is_root.shape
        products = self.trees.products
        is_all = len(self.units) == num_units  # then there is no need of a copy
        maps = products.within(0, num_units) if is_all else products.within_units(self.units)
        if not self.in_place:
            rows = maps.gather(1, _along(self.positions, 2, num_tokens))
            maps = rows.gather(2, _along(self.positions, 1, self.num_points))
        return F.pad(maps, (0, 1, 0, 1)) if self.slots.shape[1] else maps

    def times_tokens(self, values: Tensor, start: int) -> Tensor:
        """Times the roots' own tokens, from unit `start` on: (u, q, D) float32 -> (u, q, n) float32."""
        features = self.trees.products.features
        stop = start + len(values)
        if 2 * self.num_points < features.shape[1]:
            rows = features[self.units[start:stop].unsqueeze(-1), self.positions[start:stop]].float()
            return torch.bmm(values, rows.transpose(1, 2))
        is_all = len(self.units) == len(features)
        units = features[start:stop] if is_all else features[self.units[start:stop]]
        products = torch.bmm(values, units.float().transpose(1, 2))
        if self.in_place:
            return products
        return products.gather(2, _along(self.positions[start:stop], 1, values.shape[1]))


def crowd_of(
    trees: Trees, units: Sequence[int], places: Sequence[int], valued: Tensor, most: CrowdSizes
) -> Crowd:
    """units: their numbers; places: of each; valued: (T, N) bool, roots of trees with values of their own."""
    index, wanted = torch.tensor((tuple(units), tuple(places)), device=valued.device)
    if most.in_place:
        valid = trees.is_root[index]
        positions = torch.arange(valid.shape[1], device=index.device).expand_as(valid)
    else:
        positions, valid = _pad_by_unit(trees.is_root[index], most.points)
    slots, is_real = _pad_by_unit(valued[index].gather(1, positions) & valid, most.values)
    slots = slots.masked_fill(~is_real, most.points)
    map_bytes = len(units) * most.bytes_per_unit
    return Crowd(trees, index, positions, valid, slots, wanted, most.places, map_bytes, most.in_place)


@dataclass(frozen=True)
class ValueJob:
    """Some units of a crowd whose trees' values are held at once, and the maps (U, n+1, n+1) they go into.

    start: the first of the units within the crowd. slots, roots: (u, q) int64, as in `Crowd`.
    """

    crowd: Crowd
    maps: Tensor
    start: int
    slots: Tensor
    roots: Tensor

    @property
    def value_bytes(self) -> int:
        """Twice the memory of the values, since the tokens they are multiplied with may take as much."""
        return 8 * self.roots.numel() * self.crowd.trees.width

    def fill(self, values: Tensor) -> None:
        """Overwrites the products of the slots' tokens with those of the trees' values, (u, q, D) float32.

        For trees of one token the two are the same.
        """
        num_points, slots = self.crowd.num_points, self.slots
        maps = self.maps[self.start : self.start + len(slots)]
        step = max(1, MAP_BYTES // (2 * self.crowd.token_bytes))
        with_tokens = torch.cat(
            [
                self.crowd.times_tokens(part, self.start + index * step)
                for index, part in enumerate(torch.split(values, step))
            ]
        )
        maps.scatter_(1, _along(slots, 2, num_points), with_tokens)
        maps.scatter_(2, _along(slots, 1, num_points), with_tokens.transpose(1, 2))
        pairs = slots.unsqueeze(2) * (num_points + 1) + slots.unsqueeze(1)
        maps.flatten(1).scatter_(1, pairs.flatten(1), torch.bmm(values, values.transpose(1, 2)).flatten(1))


def value_jobs(crowd: Crowd, maps: Tensor) -> Iterator[ValueJob]:
    """The crowd's units, as many together as their values may take memory; none where no tree has one.

    maps: (U, n+1, n+1) float32, from `Crowd.token_products`.
    """
    num_units, num_values = crowd.slots.shape
    if num_values == 0:
        return
    roots = crowd.valued_roots()
    for start, stop in unit_chunks(num_units, 8 * num_values * crowd.trees.width):
        yield ValueJob(crowd, maps, start, crowd.slots[start:stop], roots[start:stop])


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
