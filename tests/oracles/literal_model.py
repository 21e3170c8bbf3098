"""What stands between the model and the compression, once more in loops: saliency, positions, pruning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["attention_of_last", "pooled", "positions", "received", "survivors"]

Array = NDArray[np.float64]


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())


def received(query: Array, key: Array, lengths: Sequence[int], scaling: float) -> Array:
    """Attention each token receives, mean over heads and over the queries of its run; (S, heads, d)."""
    result: list[float] = []
    for length in lengths:
        run = range(len(result), len(result) + length)
        total = np.zeros(length)
        for head in range(query.shape[1]):
            for i in run:
                total += softmax(np.array([query[i, head] @ key[j, head] * scaling for j in run]))
        result += (total / (length * query.shape[1])).tolist()
    return np.array(result)


def pooled(patches: Array, per_token: int, order: Sequence[int]) -> Array:
    """Mean over each token's patches, put where it belongs in the raster; order: of the windowed tokens."""
    result = np.zeros(len(order))
    for place, raster in enumerate(order):
        result[raster] = np.mean(patches[place * per_token : (place + 1) * per_token])
    return result


def attention_of_last(query: Array, key: Array, scaling: float) -> Array:
    """query (heads, d), key (S, kv_heads, d): neighbouring query heads share a key head."""
    share = len(query) // key.shape[1]
    heads = [softmax(key[:, head // share] @ query[head] * scaling) for head in range(len(query))]
    return np.asarray(np.mean(heads, axis=0))


def positions(
    parts: Sequence[int | tuple[tuple[int, int, int], float]], tokens_per_second: float
) -> list[list[int]]:
    """Three axes, token by token. A part is a number of text tokens or ((units, rows, columns), seconds)."""
    found: list[tuple[int, int, int]] = []
    start = 0
    for part in parts:
        if isinstance(part, int):
            new = [(start + i,) * 3 for i in range(part)]
        else:
            (units, rows, columns), seconds = part
            # the model was trained with positions from float32 products, in this order
            ticks = [
                math.floor(np.float32(np.float32(t) * np.float32(seconds)) * np.float32(tokens_per_second))
                for t in range(units)
            ]
            new = [
                (start + ticks[t], start + row, start + column)
                for t in range(units)
                for row in range(rows)
                for column in range(columns)
            ]
        found += new
        start = max([start - 1, *(max(place) for place in new)]) + 1
    return [[place[axis] for place in found] for axis in range(3)]


def survivors(attention: Sequence[float], visual: Sequence[bool], ratio: float) -> list[int]:
    """All text tokens and the ceil(r*V) visual ones with most attention, the earliest among equals."""
    places = [i for i, is_visual in enumerate(visual) if is_visual]
    count = math.ceil(Fraction(str(ratio)) * len(places))
    best = sorted(places, key=lambda i: -attention[i])[:count]
    return [i for i in range(len(visual)) if not visual[i] or i in best]
