"""Adaptive retention once more, in plain loops, exact fractions and float64, sharing no code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from flashvid import FlashVidConfig
from tests.oracles import literal
from tests.oracles.literal import Array, LiteralVideo, cosine

__all__ = ["allotted", "novelty", "parents", "places", "selected", "whole"]


def novelty(features: Array, threshold: float, shift: float = 0.0) -> list[Fraction]:
    """What is new in each unit, in tokens; unit 0 counts whole. shift: added to every cosine."""
    units = []
    for t, unit in enumerate(features):
        total = Fraction(0)
        for token in unit:
            if t == 0 or threshold >= 1:
                total += 1
                continue
            best = max(cosine(token, other) for other in features[t - 1]) + shift
            share = min(1.0, max(0.0, (1 - best) / (1 - threshold)))
            total += Fraction(round(1000 * share), 1000)
        units.append(total)
    return units


def places(news: Sequence[Fraction], lengths: Sequence[int], most: int) -> list[int]:
    """b places for the first unit of a segment; up to any later one the whole tokens that were new until
    then."""
    result: list[int] = []
    for length in lengths:
        part = [min(new, Fraction(most)) for new in news[len(result) : len(result) + length]]
        given = [most]
        for t in range(1, length):
            given.append(math.floor(sum(part[1 : t + 1])) - sum(given[1:]))
        result += given
    return result


def selected(count: int, most: int, most_selected: int) -> int:
    """How many of a unit's places are for selected tokens."""
    if most_selected == most:
        return count
    share = math.ceil(Fraction(count * most_selected, most))
    return share if share < count else max(0, count - 1)


def parents(
    features: Array,
    chosen: Sequence[Sequence[int]],
    lengths: Sequence[int],
    unlinked: Sequence[int],
    threshold: float,
) -> list[int]:
    """Global index of each token's parent, its own where it has none; unlinked: least number of unlinked
    tokens in each segment."""
    num_tokens = features.shape[1]
    parent = list(range(len(features) * num_tokens))
    start = 0
    for length, least in zip(lengths, unlinked, strict=True):
        matches: dict[int, tuple[float, int]] = {}
        for t in range(start + 1, start + length):
            others = [p for p in range(num_tokens) if p not in chosen[t - 1]]
            for n in range(num_tokens):
                if n not in chosen[t] and others:
                    best = max(others, key=lambda p: cosine(features[t, n], features[t - 1, p]))
                    found = cosine(features[t, n], features[t - 1, best])
                    matches[t * num_tokens + n] = (found, (t - 1) * num_tokens + best)
        would_link = [token for token, (found, _) in matches.items() if found > threshold]
        most = length * num_tokens - least
        if len(would_link) > most:
            ranked = sorted(would_link, key=lambda token: -matches[token][0])  # earliest first among equals
            would_link = (
                [token for token in ranked[: most - 1] if matches[token][0] > -1 + 1e-6] if most else []
            )
        for token in would_link if threshold < 1 else []:
            parent[token] = matches[token][1]
        start += length
    return parent


def allotted(features: Array, config: FlashVidConfig, shift: float = 0.0) -> tuple[list[int], list[int]]:
    """Lengths of the segments and the places of every unit. shift: as in `novelty`."""
    lengths = [len(features)]
    if config.do_segment:
        least, fill = config.min_segment_num, config.complementary_segment
        lengths = literal.segments(features, config.segment_threshold, least, fill)
    most, _ = literal.budget(config, *features.shape[:2])
    return lengths, places(novelty(features, config.temporal_threshold, shift), lengths, most)


def whole(features: Array, saliency: Array, config: FlashVidConfig) -> LiteralVideo:
    """All stages in a row."""
    num_units, num_tokens, width = features.shape
    most, most_selected = literal.budget(config, num_units, num_tokens)
    lengths, given = allotted(features, config)
    counts = [selected(count, most, most_selected) for count in given]
    method = config.token_selection_method
    first = {count: literal.select(features, saliency, count, method, lengths) for count in set(counts)}
    chosen = [first[count][t] for t, count in enumerate(counts)]
    if most == most_selected:
        indices = [t * num_tokens + n for t in range(num_units) for n in chosen[t]]
        return LiteralVideo(features.reshape(-1, width)[indices], indices, [1] * len(indices))
    segments = [slice(sum(lengths[:s]), sum(lengths[: s + 1])) for s in range(len(lengths))]
    unlinked = [sum(given[part]) for part in segments]
    parent = parents(features, chosen, lengths, unlinked, config.temporal_threshold)
    picked = {t * num_tokens + n for t in range(num_units) for n in chosen[t]}
    roots = [0] * num_units
    for token, above in enumerate(parent):
        roots[token // num_tokens] += above == token and token not in picked
    clusters: list[int] = []
    for part, least in zip(segments, unlinked, strict=True):
        with_roots = sum(count > 0 for count in roots[part])
        clusters += literal.places(roots[part], max(least - sum(counts[part]), with_roots))
    return literal.compress(features, chosen, parent, lengths, clusters, tree_mean=config.tree_mean)
