"""The compression once more, token by token in plain Python and float64: slow, obvious, sharing no code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["LiteralVideo", "clusters", "compress", "parents", "segments", "select"]

Array = NDArray[np.float64]


def cosine(a: Array, b: Array) -> float:
    length = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else 0.0


def segments(features: Array, threshold: float, least: int, fill: bool) -> list[int]:
    means = [unit.mean(axis=0) for unit in features]
    similar = [cosine(a, b) for a, b in pairwise(means)]
    cuts = {t for t, s in enumerate(similar) if s < threshold}
    while fill and len(cuts) + 1 < least and len(cuts) < len(similar):
        cuts.add(min((s, t) for t, s in enumerate(similar) if t not in cuts)[1])
    lengths, start = [], 0
    for cut in sorted(cuts):
        lengths.append(cut + 1 - start)
        start = cut + 1
    return [*lengths, len(features) - start]


def select(
    features: Array, saliency: Array, count: int, method: str, lengths: Sequence[int]
) -> list[list[int]]:
    """Ascending positions chosen in each unit."""
    picks: list[list[int]] = []
    for length in lengths:
        segment = features[len(picks) : len(picks) + length]
        means = [unit.mean(axis=0) for unit in segment]
        for unit in segment:
            received = saliency[len(picks)]
            relevance = [float(np.mean([token @ mean for mean in means])) for token in unit]
            picks.append(sorted(_pick(unit, received, relevance, count, method)))
    return picks


def _pick(unit: Array, received: Array, relevance: list[float], count: int, method: str) -> list[int]:
    tokens = range(len(unit))
    if method == "attn":
        return sorted(tokens, key=lambda j: -received[j])[:count]
    scale = {
        "div": lambda j: 1.0,
        "attn_div": lambda j: received[j],
        "attn_div_v2": lambda j: received[j] * relevance[j],
    }[method]
    weighted = [[(1 - cosine(unit[i], unit[j])) * scale(j) for j in tokens] for i in tokens]
    chosen: list[int] = []
    while len(chosen) < count:
        if not chosen:
            scores = {j: sorted(weighted[i][j] for i in tokens)[min(1, len(unit) - 1)] for j in tokens}
        else:
            scores = {j: min(weighted[i][j] for i in chosen) for j in tokens if j not in chosen}
        chosen.append(max(scores, key=scores.__getitem__))  # the first of equal ones
    return chosen


def parents(
    features: Array, chosen: Sequence[Sequence[int]], lengths: Sequence[int], budget: int, threshold: float
) -> list[int]:
    """Global index of each token's parent, its own where it has none."""
    num_tokens = features.shape[1]
    result: list[int] = []
    start = 0
    for length in lengths:
        result += _segment_parents(features, chosen, range(start, start + length), budget, threshold)
        start += length
    assert len(result) == len(features) * num_tokens
    return result


def _segment_parents(
    features: Array, chosen: Sequence[Sequence[int]], units: range, budget: int, threshold: float
) -> list[int]:
    num_tokens = features.shape[1]
    best: list[tuple[float, int | None]] = []
    for t in units:
        for n in range(num_tokens):
            candidates = [p for p in range(num_tokens) if t > units.start and p not in chosen[t - 1]]
            if n in chosen[t] or not candidates:
                best.append((-1.0, None))
                continue
            found = [(cosine(features[t, n], features[t - 1, p]), p) for p in candidates]
            top = max(found, key=lambda pair: pair[0])
            best.append((top[0], (t - 1) * num_tokens + top[1]))
    most = len(units) * (num_tokens - budget)
    if sum(s > threshold for s, _ in best) > most:
        ranked = sorted((s for s, _ in best), reverse=True)
        threshold = max(ranked[most - 1], -1 + 1e-6) if most else math.inf
    own = range(units.start * num_tokens, units.stop * num_tokens)
    return [
        parent if parent is not None and s > threshold and threshold < 1 else index
        for (s, parent), index in zip(best, own, strict=True)
    ]


def clusters(points: Array, count: int) -> tuple[list[int], list[int]]:
    """Centres by falling score, and for each point the rank of its centre."""
    size = range(len(points))
    distance = np.zeros((len(points), len(points)))
    for i in size:
        for j in range(i):
            distance[i, j] = distance[j, i] = np.linalg.norm(points[i] - points[j]) / math.sqrt(
                points.shape[1]
            )
    k = min(count, 7)
    density = [math.exp(-float(np.mean(np.sort(distance[i])[:k] ** 2))) for i in size]
    score = []
    for i in size:
        denser = [distance[i, j] for j in size if density[j] > density[i]]
        score.append(density[i] * (min(denser) if denser else distance.max()))
    centers = sorted(size, key=lambda i: -score[i])[:count]
    nearest = [min(range(count), key=lambda c: distance[i, centers[c]]) for i in size]
    return centers, [centers.index(i) if i in centers else nearest[i] for i in size]


@dataclass(frozen=True)
class LiteralVideo:
    tokens: Array
    kept: list[int]
    group_sizes: list[int]


def compress(
    features: Array,
    chosen: Sequence[Sequence[int]],
    parent: Sequence[int],
    lengths: Sequence[int],
    places_of: dict[int, int],
) -> LiteralVideo:
    """Trees, then clusters of them, with the true mean of all members; places_of: unit -> clusters wanted."""
    num_units, num_tokens, width = features.shape
    flat = features.reshape(-1, width)
    members: dict[int, list[int]] = {}
    for token in range(len(flat)):
        root = token
        while parent[root] != root:
            root = parent[root]
        members.setdefault(root, []).append(token)
    picked = {t * num_tokens + n for t in range(num_units) for n in chosen[t]}
    groups = {token: [token] for token in picked}
    for t in range(num_units):
        roots = [r for r in sorted(members) if r // num_tokens == t and r not in picked]
        if not roots:
            continue
        values = np.stack([flat[members[r]].mean(axis=0) for r in roots])
        centers, rank = clusters(values, places_of[t])
        for root, own in zip(roots, rank, strict=True):
            groups.setdefault(roots[centers[own]], []).extend(members[root])
    kept = sorted(groups)
    tokens = np.stack([flat[groups[index]].mean(axis=0) for index in kept])
    return LiteralVideo(tokens, kept, [len(groups[index]) for index in kept])
