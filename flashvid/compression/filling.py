"""Spatial fill: brings the trees of units that have too many of them down to their places, by DPC-kNN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from flashvid.arithmetic import MAP_BYTES
from flashvid.compression.clustering import Clusters, cluster_products, cluster_units
from flashvid.compression.crowds import Crowd, CrowdSizes, Trees, crowd_of, value_jobs
from flashvid.compression.products import TokenProducts, unit_chunks

__all__ = ["cluster_trees"]

_T = TypeVar("_T")


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
    for group in _runs(crowds, [crowd.map_bytes for crowd in crowds], MAP_BYTES):
        clusters = _by_value(trees, group) if library_ties else _by_product(trees, group)
        for crowd, found in zip(group, clusters, strict=True):
            crowd.assign(center, found)
    return center


def _by_value(trees: Trees, crowds: Sequence[Crowd]) -> Iterator[Clusters]:
    """With the reference code's ties, from the values of all trees: every root has a slot."""
    for crowd in crowds:
        values = trees.values(crowd.valued_roots().flatten()).view(*crowd.slots.shape, trees.width)
        yield cluster_units(values, crowd.valid, crowd.places, library_ties=True)


def _by_product(trees: Trees, crowds: Sequence[Crowd]) -> Iterator[Clusters]:
    """From products: of tokens, which are there, and of the values of trees of several tokens."""
    dots = [crowd.token_products() for crowd in crowds]
    jobs = [job for crowd, maps in zip(crowds, dots, strict=True) for job in value_jobs(crowd, maps)]
    # one pass over the features for the values of as many trees as may be held
    for run in _runs(jobs, [job.value_bytes for job in jobs], MAP_BYTES):
        values = trees.values(torch.cat([job.roots.flatten() for job in run]))
        for job, part in zip(run, torch.split(values, [job.roots.numel() for job in run]), strict=True):
            job.fill(part.view(*job.roots.shape, trees.width))
    for crowd, maps in zip(crowds, dots, strict=True):
        points = maps[:, : crowd.num_points, : crowd.num_points]
        yield cluster_products(
            points, crowd.valid, crowd.places, width=trees.width, most_centers=crowd.most_places
        )


def _runs(items: Sequence[_T], sizes: Sequence[int], limit: int) -> Iterator[Sequence[_T]]:
    """The items in order, as many together as stay within the limit, or one that alone does not."""
    start, held = 0, 0
    for index, size in enumerate(sizes):
        if index > start and held + size > limit:
            yield items[start:index]
            start, held = index, 0
        held += size
    if items:
        yield items[start:]


def _crowds(
    trees: Trees, crowded: Sequence[int], counts: Sequence[tuple[int, int]], library_ties: bool
) -> Iterator[Crowd]:
    valued = trees.is_root if library_ties else trees.merged()
    num_values: list[int] = valued.sum(dim=1).tolist()
    num_tokens = valued.shape[1]
    for alike in _alike(crowded, [roots for roots, _ in counts]):
        most = max(counts[t][0] for t in alike)
        in_place = 4 * most >= 3 * num_tokens and not library_ties
        need = _bytes_per_unit(trees.products, num_tokens if in_place else most, library_ties)
        for first, last in unit_chunks(len(alike), need):
            units = alike[first:last]
            sizes = CrowdSizes(
                points=num_tokens if in_place else max(counts[t][0] for t in units),
                places=max(counts[t][1] for t in units),
                values=max(num_values[t] for t in units),
                bytes_per_unit=need,
                in_place=in_place,
            )
            yield crowd_of(trees, units, [counts[t][1] for t in units], valued, sizes)


def _alike(units: Sequence[int], roots: Sequence[int]) -> list[list[int]]:
    """The units in one batch, or in two of like numbers of roots where that saves a quarter of the maps.

    All units of a batch are padded to its largest; the first unit of a scene has many roots, those that
    repeat it have few.
    """
    falling = sorted(units, key=lambda t: -roots[t])

    def cost(split: int) -> int:
        rest = falling[split:]
        return split * roots[falling[0]] ** 2 + (len(rest) * roots[rest[0]] ** 2 if rest else 0)

    best = min(range(1, len(falling) + 1), key=cost)
    if 4 * cost(best) > 3 * cost(len(falling)):
        return [sorted(falling)]
    return [sorted(falling[:best]), sorted(falling[best:])]


def _bytes_per_unit(products: TokenProducts, most: int, library_ties: bool) -> int:
    num_tokens, width = products.features.shape[1:]
    maps = 4 * most * (num_tokens + 5 * most)
    if products.maps is None:
        maps += 4 * num_tokens * (num_tokens + width)
    return maps + (8 * most * width if library_ties else 0)
