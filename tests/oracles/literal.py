"""The compression once more, token by token in plain Python and float64: slow, obvious, sharing no code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from flashvid import FlashVidConfig

__all__ = [
    "LiteralVideo",
    "best_matches",
    "budget",
    "cluster_scores",
    "clusters",
    "compress",
    "parents",
    "places",
    "roots_of",
    "segments",
    "select",
    "whole",
]

Array = NDArray[np.float64]


def cosine(a: Array, b: Array) -> float:
    length = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else 0.0


def budget(config: FlashVidConfig, num_units: int, num_tokens: int) -> tuple[int, int]:
    """(b, a): places of a unit and how many of them are for selected tokens, in exact decimal fractions."""
    share = Fraction(str(config.retention_ratio)) * Fraction(str(config.expansion))
    kept = max(1, min(num_tokens, math.ceil(num_tokens * share)))
    if config.max_visual_tokens is not None:
        kept = min(kept, config.max_visual_tokens // num_units)
    return kept, math.ceil(Fraction(str(config.alpha)) * kept)


def segments(
    features: Array, threshold: float, least: int, fill: bool, *, earliest: bool = False
) -> list[int]:
    """earliest: cut these of equal neighbours, as the reference does, and not places spread among them."""
    means = [unit.mean(axis=0) for unit in features]
    similar = [1.0 if np.array_equal(a, b) and np.any(a) else cosine(a, b) for a, b in pairwise(means)]
    cuts = {t for t, s in enumerate(similar) if s < threshold}
    while fill and len(cuts) + 1 < least and len(cuts) < len(similar):
        rest = [t for t in range(len(similar)) if t not in cuts]
        equal = [t for t in rest if similar[t] == min(similar[u] for u in rest)]
        missing = least - 1 - len(cuts)
        chosen = equal[:missing] if earliest or len(equal) <= missing else spread(equal, missing)
        cuts |= set(chosen)
    lengths, start = [], 0
    for cut in sorted(cuts):
        lengths.append(cut + 1 - start)
        start = cut + 1
    return [*lengths, len(features) - start]


def spread(places: Sequence[int], count: int) -> list[int]:
    """Cuts at `count` of the places into parts of equal length; of parts that cannot be equal the later ones
    are longer."""
    parts = count + 1
    borders = [math.floor(Fraction(part, parts) * (len(places) + 1)) for part in range(1, parts)]
    return [places[border - 1] for border in borders]


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
    scale = [1.0] * len(unit) if method == "div" else [float(a) for a in received]
    if method == "attn_div_v2":
        scale = [a * q for a, q in zip(scale, relevance, strict=True)]
    weighted = [[(1 - cosine(unit[i], unit[j])) * scale[j] for j in tokens] for i in tokens]
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


def best_matches(
    features: Array, chosen: Sequence[Sequence[int]], units: range
) -> list[tuple[float, int | None]]:
    """Of each token: the highest cosine with one of the unit before in its segment, and the index of that."""
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
    return best


def _segment_parents(
    features: Array, chosen: Sequence[Sequence[int]], units: range, budget: int, threshold: float
) -> list[int]:
    num_tokens = features.shape[1]
    best = best_matches(features, chosen, units)
    most = len(units) * (num_tokens - budget)
    above = [i for i, (s, _) in enumerate(best) if s > threshold and threshold < 1]
    if len(above) > most:
        best_first = sorted(above, key=lambda i: (-best[i][0], i))[: max(0, most - 1)]
        above = [i for i in best_first if best[i][0] > -1 + 1e-6]
    parents = list(range(units.start * num_tokens, units.stop * num_tokens))
    for i in above:
        parent = best[i][1]
        parents[i] = parents[i] if parent is None else parent
    return parents


def places(roots: Sequence[int], total: int) -> list[int]:
    """Places of each unit: in proportion to its roots, at least one where there are any, never more than
    them; what rounding down leaves goes to the largest remainders, the earliest first."""
    if sum(roots) <= total:
        return list(roots)
    single: set[int] = set()
    while True:
        rest = [t for t, n in enumerate(roots) if n > 0 and t not in single]
        left = total - len(single)
        quota = {t: Fraction(left * roots[t], sum(roots[u] for u in rest)) for t in rest}
        if not any(q < 1 for q in quota.values()):
            break
        single |= {t for t, q in quota.items() if q < 1}
    result = [int(t in single) + math.floor(quota.get(t, 0)) for t in range(len(roots))]
    for t in sorted(rest, key=lambda t: (math.floor(quota[t]) - quota[t], t))[: total - sum(result)]:
        result[t] += 1
    return result


def cluster_scores(points: Array, count: int) -> tuple[Array, list[float], list[float]]:
    """Distances (n, n) over sqrt(D), and of each point its density and its density times separation."""
    size = range(len(points))
    distance = np.zeros((len(points), len(points)))
    for i in size:
        for j in range(i):
            distance[i, j] = distance[j, i] = np.linalg.norm(points[i] - points[j]) / math.sqrt(
                points.shape[1]
            )
    k = min(count, 7)
    near = 1e-3 * distance.max()
    density = [math.exp(-float(np.mean(np.sort(distance[i])[:k] ** 2))) for i in size]
    score = []
    for i in size:
        denser = [distance[i, j] for j in size if density[j] > density[i]]
        twins = [j for j in range(i) if density[j] == density[i] and distance[i, j] <= near]
        denser += [distance[i, j] for j in twins]  # of points in one place the first is the denser
        score.append(density[i] * (min(denser) if denser else distance.max()))
    return distance, density, score


def clusters(points: Array, count: int) -> tuple[list[int], list[int]]:
    """Centres by falling score, and for each point the rank of its centre."""
    size = range(len(points))
    distance, _, score = cluster_scores(points, count)
    centers = sorted(size, key=lambda i: -score[i])[:count]
    nearest = [min(range(count), key=lambda c: distance[i, centers[c]]) for i in size]
    return centers, [centers.index(i) if i in centers else nearest[i] for i in size]


def roots_of(parent: Sequence[int]) -> list[int]:
    """Climbs from each token to where it ends."""
    result = []
    for token in range(len(parent)):
        root = token
        while parent[root] != root:
            root = parent[root]
        result.append(root)
    return result


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
    places_of: Sequence[int] | Mapping[int, int],
    *,
    tree_mean: str = "members",
) -> LiteralVideo:
    """Trees, then clusters of them; places_of: clusters wanted of each unit.

    A group's value is the mean of all its members, or with "reference" the mean of its trees' values, each of
    them its members' sum over 1 + the direct children of its root.
    """
    num_units, num_tokens, width = features.shape
    flat = features.reshape(-1, width)
    root = roots_of(parent)
    segment = [s for s, length in enumerate(lengths) for _ in range(length * num_tokens)]
    assert all(segment[i] == segment[r] for i, r in enumerate(root))  # no tree crosses a border
    members = {r: [i for i, owner in enumerate(root) if owner == r] for r in set(root)}
    children = {r: sum(p == r for p in parent) - 1 for r in members}
    mean = {r: flat[members[r]].mean(axis=0) for r in members}
    if tree_mean == "reference":
        mean = {r: flat[members[r]].sum(axis=0) / (1 + children[r]) for r in members}
    picked = {t * num_tokens + n for t in range(num_units) for n in chosen[t]}
    trees_of = {token: [token] for token in picked}
    for t in range(num_units):
        roots = [r for r in sorted(members) if r // num_tokens == t and r not in picked]
        if not roots:
            continue
        centers, rank = clusters(np.stack([mean[r] for r in roots]), places_of[t])
        for r, own in zip(roots, rank, strict=True):
            trees_of.setdefault(roots[centers[own]], []).append(r)
    kept = sorted(trees_of)
    absorbed = [[i for r in trees_of[index] for i in members[r]] for index in kept]
    values = [flat[group].mean(axis=0) for group in absorbed]
    if tree_mean == "reference":
        values = [np.mean([mean[r] for r in trees_of[index]], axis=0) for index in kept]
    return LiteralVideo(np.stack(values), kept, [len(group) for group in absorbed])


def whole(features: Array, saliency: Array, config: FlashVidConfig) -> LiteralVideo:
    """All stages in a row, with `budget="exact"`."""
    num_units, num_tokens, width = features.shape
    kept, selected = budget(config, num_units, num_tokens)
    lengths = [num_units]
    if config.do_segment:
        least, fill = config.min_segment_num, config.complementary_segment
        lengths = segments(features, config.segment_threshold, least, fill)
    chosen = select(features, saliency, selected, config.token_selection_method, lengths)
    if kept == selected:  # no places for merged tokens: only the selected stay
        indices = [t * num_tokens + n for t in range(num_units) for n in chosen[t]]
        return LiteralVideo(features.reshape(-1, width)[indices], indices, [1] * len(indices))
    parent = parents(features, chosen, lengths, kept, config.temporal_threshold)
    picked = {t * num_tokens + n for t in range(num_units) for n in chosen[t]}
    roots = [0] * num_units
    for token, above in enumerate(parent):
        roots[token // num_tokens] += above == token and token not in picked
    places_of: list[int] = []
    for length in lengths:
        part = roots[len(places_of) : len(places_of) + length]
        places_of += places(part, (kept - selected) * length)
    return compress(features, chosen, parent, lengths, places_of, tree_mean=config.tree_mean)
