"""Saliency: how much attention each visual token receives, without ever holding a whole attention map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

__all__ = ["last_query_attention", "pool_patches", "received_attention"]

# Attention weights held at once, in float32: 64 MiB. A unit of 720p alone would need 1.5 GB with 16 heads.
_MAX_WEIGHTS = 2**24


def received_attention(
    query: Tensor,
    key: Tensor,
    lengths: Sequence[int],
    *,
    scaling: float,
    max_weights: int = _MAX_WEIGHTS,
) -> Tensor:
    """Mean over heads and queries of softmax(q k^T * scaling) inside each run of ``lengths``: (S,) float32.

    The saliency of section 3.3. ``query``, ``key``: (S, heads, head_dim), any float dtype, rotary positions
    applied; tokens attend only within their run. At most ``max_weights`` weights exist at once (or one row of
    queries per head, where that is more).
    """
    pieces: list[Tensor] = []
    start = 0
    for length, count in _equal_runs(lengths):
        stop = start + length * count
        shape = (count, length, *query.shape[1:])
        pieces.extend(
            _received_batched(
                query[start:stop].view(shape), key[start:stop].view(shape), scaling, max_weights
            )
        )
        start = stop
    return torch.cat(pieces)


def _equal_runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    for length, run in groupby(lengths):
        yield length, len(list(run))


def _received_batched(query: Tensor, key: Tensor, scaling: float, max_weights: int) -> Iterator[Tensor]:
    """Yield the received attention of (runs, length, heads, head_dim), a few runs at a time."""
    _, length, heads, _ = query.shape
    runs_at_once = max(1, max_weights // (heads * length * length))
    rows_at_once = max(1, min(length, max_weights // (heads * length)))
    for start in range(0, len(query), runs_at_once):
        q, k = query[start : start + runs_at_once], key[start : start + runs_at_once]
        k_columns = k.float().permute(0, 2, 3, 1)  # (runs, heads, head_dim, length)
        total = torch.zeros(q.shape[0], length, dtype=torch.float32, device=q.device)
        q_rows = q.float().transpose(1, 2)  # (runs, heads, length, head_dim)
        for row in range(0, length, rows_at_once):
            rows = q_rows[:, :, row : row + rows_at_once]
            total += (rows @ k_columns).mul_(scaling).softmax(dim=-1).sum(dim=(1, 2))
        yield (total / (heads * length)).flatten()


def pool_patches(received: Tensor, patches_per_token: int, order: Tensor) -> Tensor:
    """Average over each merged token's patches and undo the window order: (S,) to (S/patches_per_token,).

    ``received``: (S,) float32, in the tower's window order; S a multiple of ``patches_per_token``.
    ``order``: (S/patches_per_token,) int64, raster index of the merged token at each windowed place.
    """
    pooled = received.view(-1, patches_per_token).mean(dim=1)
    raster = torch.empty_like(pooled)
    raster[order.to(pooled.device)] = pooled
    return raster


def last_query_attention(
    query: Tensor, key: Tensor, *, scaling: float, valid: Tensor | None = None
) -> Tensor:
    """Attention of one query over all keys, averaged over heads: (..., S) float32 (section 3.5).

    ``query`` (..., heads, head_dim), ``key`` (..., S, kv_heads, head_dim), rotary positions applied; query
    heads share key heads in consecutive groups. ``valid`` (..., S) bool: keys that are no padding; None: all.
    Costs one row of the attention map, never the map.
    """
    shape = (*query.shape[:-2], key.shape[-2], -1, query.shape[-1])
    grouped = query.float().reshape(shape)  # (..., kv_heads, group, head_dim)
    scores = torch.einsum("...kgd,...skd->...kgs", grouped, key.float()) * scaling
    if valid is not None:
        scores = scores.masked_fill(~valid[..., None, None, :], -math.inf)
    return scores.softmax(dim=-1).mean(dim=(-3, -2))
