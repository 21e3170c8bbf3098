"""DPC-kNN: gathers what is left of each unit around its densest, best separated tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MOST_NEIGHBOURS", "Clusters", "cluster_products", "cluster_units"]

MOST_NEIGHBOURS = 7  # k of the density estimate, as in the paper

# of the unit's largest distance; that of two equal points misses 0 by less where products round differently
_COINCIDING = 1e-3


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
    number of valid points. Ties go to the earliest point, and to the highest-ranked centre. Among points that
    coincide and are equally dense the earliest counts as the denser: of the many equal tokens of an empty
    background one becomes a centre, and not all before the first other token. Memory: a few (n, n) float32
    maps for each unit. (FlashVID section 3.4; Du et al. 2016.)

    library_ties: none of that; break ties between scores as torch.topk happens to, which is what the
    reference code does. They are common: with one cluster a point's only neighbour is itself and all
    densities are 1. Slow, unit by unit.
    """
    most = int(counts.max())
    if library_ties:
        return _cluster(_library_distances(points, valid), valid, counts, most, library_ties=True)
    dots = torch.bmm(points, points.transpose(1, 2))
    return cluster_products(dots, valid, counts, width=points.shape[2], most_centers=most)


def cluster_products(
    dots: Tensor, valid: Tensor, counts: Tensor, *, width: int, most_centers: int
) -> Clusters:
    """The same from the points' products, (U, n, n) float32; width: D; most_centers: the largest count."""
    return _cluster(_distances(dots, valid, width), valid, counts, most_centers)


def _cluster(
    distances: Tensor, valid: Tensor, counts: Tensor, most_centers: int, *, library_ties: bool = False
) -> Clusters:
    density = _density(distances, counts)
    separation = _separation(distances, density, coinciding=not library_ties)
    score = (density * separation).masked_fill_(~valid, -torch.inf)
    centers = score.sort(dim=1, descending=True, stable=True).indices[:, :most_centers]
    if library_ties:
        _use_topk_order(centers, score, valid, counts)
    return Clusters(centers, _nearest_center(distances, centers, counts))


def _use_topk_order(centers: Tensor, score: Tensor, valid: Tensor, counts: Tensor) -> None:
    for row, points, is_point, count in zip(centers, score, valid, counts.tolist(), strict=True):
        row[:count] = points[is_point].topk(count).indices


def _distances(dots: Tensor, valid: Tensor, width: int) -> Tensor:
    """Distances over sqrt(D) from dot products: (U, n, n) -> the same; inf where a point is padding."""
    squares = dots.diagonal(dim1=1, dim2=2)
    maps = (squares.unsqueeze(1) + squares.unsqueeze(2)).sub_(dots, alpha=2)
    # mutual neighbours have the same density; a product rounded differently either way would break that tie
    maps = torch.maximum(maps, maps.transpose(1, 2)).clamp_(min=0).div_(width).sqrt_()
    maps.diagonal(dim1=1, dim2=2).zero_()
    padding = torch.zeros_like(squares).masked_fill_(~valid, torch.inf)
    return maps.add_(padding.unsqueeze(1)).add_(padding.unsqueeze(2))


def _library_distances(points: Tensor, valid: Tensor) -> Tensor:
    """The same as torch.cdist rounds them, unit by unit: with its own tiny distance of a point to itself."""
    maps = points.new_full((*valid.shape, valid.shape[1]), torch.inf)
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


def _separation(distances: Tensor, density: Tensor, *, coinciding: bool) -> Tensor:
    """Distance to the nearest denser point, or the largest in the unit where none is denser: (U, n).

    coinciding: whether of equally dense points that coincide the earliest counts as denser.
    """
    largest = torch.where(distances < torch.inf, distances, 0).amax(dim=(1, 2)).unsqueeze(1)
    is_denser = density.unsqueeze(1) > density.unsqueeze(2)  # [u, i, j]: j is denser than i
    if coinciding:
        is_twin = (distances <= _COINCIDING * largest.unsqueeze(2)).tril_(-1)
        is_denser |= is_twin & (density.unsqueeze(1) == density.unsqueeze(2))
    nearest = torch.where(is_denser, distances, torch.inf).amin(dim=2)
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
