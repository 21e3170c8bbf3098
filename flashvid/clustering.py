"""DPC-kNN: gathers what is left of each unit around its densest, best separated tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvid.merging import Forest, add_rows
from flashvid.selection import units_per_chunk

__all__ = ["MOST_NEIGHBOURS", "Clusters", "TreeValues", "cluster_trees", "cluster_units"]

MOST_NEIGHBOURS = 7  # k of the density estimate, as in the paper


@dataclass(frozen=True)
class Clusters:
    """Clusters of U units with up to n points each.

    centers: (U, c) int64, positions of the centres by falling score; entries past a unit's count mean
    nothing.
    assignment: (U, n) int64, for each point the rank of its centre in `centers`; meaningless for padding.
    """

    centers: Tensor
    assignment: Tensor

    def center_of_point(self) -> Tensor:
        """Position of each point's centre, (U, n) int64."""
        return self.centers.gather(1, self.assignment)


def cluster_units(points: Tensor, valid: Tensor, counts: Tensor, *, library_ties: bool = False) -> Clusters:
    """Clusters the points of each unit by density peaks, all units at once.

    points: (U, n, D) float32, padded; valid: (U, n) bool; counts: (U,) int64 clusters wanted, from 1 to the
    number of valid points. Ties go to the earliest point, and to the highest-ranked centre. Memory: a few (n,
    n) float32 maps for each unit of a chunk. (FlashVID section 3.4; Du et al. 2016.)

    library_ties: break ties between scores as torch.topk happens to, which is what the reference code does.
    They
    are common: with one cluster a point's only neighbour is itself and all densities are 1. Slow, unit by
    unit.
    """
    num_points, width = points.shape[1:]
    most_centers = int(counts.max())
    step = units_per_chunk(4 * num_points * (4 * num_points + 2 * width))
    chunks = (torch.split(tensor, step) for tensor in (points, valid, counts))
    parts = [
        _cluster_chunk(some_points, some_valid, some_counts, most_centers, library_ties)
        for some_points, some_valid, some_counts in zip(*chunks, strict=True)
    ]
    return Clusters(torch.cat([p.centers for p in parts]), torch.cat([p.assignment for p in parts]))


def _cluster_chunk(
    points: Tensor, valid: Tensor, counts: Tensor, most_centers: int, library_ties: bool
) -> Clusters:
    distances = _library_distances(points, valid) if library_ties else _distances(points, valid)
    density = _density(distances, counts)
    separation = _separation(distances, density, valid)
    score = (density * separation).masked_fill_(~valid, -torch.inf)
    centers = score.sort(dim=1, descending=True, stable=True).indices[:, :most_centers]
    if library_ties:
        _use_topk_order(centers, score, valid, counts)
    return Clusters(centers, _nearest_center(distances, centers, counts))


def _use_topk_order(centers: Tensor, score: Tensor, valid: Tensor, counts: Tensor) -> None:
    for row, points, is_point, count in zip(centers, score, valid, counts.tolist(), strict=True):
        row[:count] = points[is_point].topk(count).indices


def _distances(points: Tensor, valid: Tensor) -> Tensor:
    """Pairwise distances over sqrt(D): (U, n, D) -> (U, n, n) float32; inf where a point is padding."""
    weight = valid.unsqueeze(-1).float()
    # around their mean the points' squares stay small, so the difference of squares below keeps its digits
    points = (points - (points * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)) * weight
    squares = points.square().sum(-1)
    maps = torch.baddbmm(
        squares.unsqueeze(1) + squares.unsqueeze(2), points, points.transpose(1, 2), alpha=-2.0
    )
    # mutual neighbours have the same density; a product rounded differently either way would break that tie
    maps = torch.maximum(maps, maps.transpose(1, 2))
    maps = maps.clamp_(min=0).div_(points.shape[-1]).sqrt_()
    maps.diagonal(dim1=1, dim2=2).zero_()
    return maps.masked_fill_(~(valid.unsqueeze(1) & valid.unsqueeze(2)), torch.inf)


def _library_distances(points: Tensor, valid: Tensor) -> Tensor:
    """The same as torch.cdist rounds them, unit by unit: with its own tiny distance of a point to itself."""
    maps = torch.full((*valid.shape, valid.shape[1]), torch.inf, device=points.device)
    for row, some, is_point in zip(maps, points, valid, strict=True):
        chosen = some[is_point].unsqueeze(0)
        distances = torch.cdist(chosen, chosen)[0] / math.sqrt(points.shape[-1])
        row[is_point.unsqueeze(0) & is_point.unsqueeze(1)] = distances.flatten()
    return maps


def _density(distances: Tensor, counts: Tensor) -> Tensor:
    """exp(-mean squared distance to the k nearest, itself included), k = min(count, 7): (U, n)."""
    most = min(MOST_NEIGHBOURS, distances.shape[-1])
    nearest = distances.topk(most, dim=-1, largest=False).values.square_()  # (U, n, k), rising
    k = counts.clamp(max=most).view(-1, 1, 1)
    is_counted = torch.arange(most, device=distances.device) < k
    mean = torch.where(is_counted, nearest, 0).sum(-1) / k.squeeze(-1)
    return mean.neg_().exp_()


def _separation(distances: Tensor, density: Tensor, valid: Tensor) -> Tensor:
    """Distance to the nearest denser point, or the largest in the unit where none is denser: (U, n)."""
    is_denser = density.unsqueeze(1) > density.unsqueeze(2)  # [u, i, j]: j is denser than i
    nearest = distances.masked_fill(~is_denser, torch.inf).amin(dim=2)
    largest = distances.masked_fill(distances == torch.inf, 0).amax(dim=(1, 2)).unsqueeze(1)
    return torch.where(nearest < torch.inf, nearest, largest)


def _nearest_center(distances: Tensor, centers: Tensor, counts: Tensor) -> Tensor:
    num_points = distances.shape[1]
    rank = torch.arange(centers.shape[1], device=distances.device)
    is_spare = (rank >= counts.unsqueeze(-1)).unsqueeze(1)  # (U, 1, c)
    to_centers = distances.gather(2, centers.unsqueeze(1).expand(-1, num_points, -1)).masked_fill_(
        is_spare, torch.inf
    )
    assignment = to_centers.argmin(dim=2)
    # a centre stands for itself even where another centre coincides with it
    own = torch.where(is_spare.squeeze(1), assignment.gather(1, centers), rank)
    return assignment.scatter_(1, centers, own)


@dataclass(frozen=True)
class TreeValues:
    """The trees' averages, computed when asked for.

    features: (T, N, D); shares: (T*N,) float32, weight of each token in its tree's value.
    """

    features: Tensor
    forest: Forest
    shares: Tensor

    def of_roots(self, is_root: Tensor) -> Tensor:
        """Value of each tree whose root is marked, (T*N,) bool -> (roots, D) float32, in order."""
        row = is_root.cumsum(0) - 1
        members = is_root[self.forest.root].nonzero().squeeze(1)
        rows = self.features.reshape(-1, self.features.shape[-1])[members]
        return add_rows(rows, row[self.forest.root[members]], self.shares[members], int(is_root.sum()))


def cluster_trees(
    values: TreeValues, is_root: Tensor, counts: list[tuple[int, int]], *, library_ties: bool = False
) -> Tensor:
    """For each root the global index of its cluster's centre, for every other token its own: (T*N,) int64.

    is_root: (T, N) bool; counts: (roots, places) of each unit, places >= 1 where there are roots. A unit with
    room for all its roots keeps them. library_ties: see `cluster_units`.
    """
    center = torch.arange(is_root.numel(), device=is_root.device)
    crowded = [t for t, (roots, places) in enumerate(counts) if roots > places]
    if not crowded:
        return center
    units = torch.tensor(crowded, device=is_root.device)
    is_clustered = torch.zeros_like(is_root).index_copy_(0, units, is_root[units]).view(-1)
    positions, valid = _pad_by_unit(is_root[units], max(counts[t][0] for t in crowded))
    indices = positions + units.unsqueeze(-1) * is_root.shape[1]  # (U, n) global
    row = (is_clustered.cumsum(0) - 1).clamp_(min=0)
    points = values.of_roots(is_clustered)[row[indices]]  # padding repeats some root
    places = torch.tensor([counts[t][1] for t in crowded], device=is_root.device)
    clusters = cluster_units(points, valid, places, library_ties=library_ties)
    center[indices[valid]] = indices.gather(1, clusters.center_of_point())[valid]
    return center


def _pad_by_unit(mask: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Rising positions of each row's true entries, (U, longest) int64, and which of them are real."""
    positions = (~mask).to(torch.uint8).sort(dim=1, stable=True).indices[:, :longest]
    return positions, mask.gather(1, positions)
