"""Dot products between the tokens of neighbouring units: every similarity and distance here comes from them.

They are taken from the features as they are, not from normalised copies. So one batched product per unit
serves the selection, the trees and the clusters, no second set of features is ever held, and bfloat16 values
multiply exactly in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvid.arithmetic import MAP_BYTES, WIDENED_PIECES

__all__ = ["TokenProducts", "products_of", "token_products", "unit_chunks", "widened"]

# torch >= 2.8 on Nvidia multiplies half precision into float32
_MIXES_DTYPES = torch.version.hip is None and hasattr(torch.ops.aten.bmm, "dtype_out")
_SMALLEST_NORM = 1e-12  # a zero vector has cosine 0 to everything


def unit_chunks(num_units: int, bytes_per_unit: int, *, start: int = 0) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of units covering [start, num_units), each within MAP_BYTES or of one unit."""
    step = max(1, MAP_BYTES // max(1, bytes_per_unit))
    for first in range(start, num_units, step):
        yield first, min(first + step, num_units)


@dataclass(frozen=True)
class TokenProducts:
    """Products of a video's tokens with those of their own unit and of the unit before.

    features: (T, N, D) contiguous. means: (T, D) float32, mean token of each unit. norms: (T, N) float32,
    lengths of the tokens, at least 1e-12. maps: (T, N, N) or (T, N, 2N) float32, or None where they are too
    large to be held and made anew when asked for; the last N columns are those of `within`, the first of 2N
    those of `across` (without meaning for unit 0).
    """

    features: Tensor
    means: Tensor
    norms: Tensor
    maps: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)."""
        return self.features.shape[0], self.features.shape[1]

    def within(self, start: int, stop: int) -> Tensor:
        """<E[t,i], E[t,j]> for the units [start, stop): (C, N, N) float32, often a view: read only."""
        if self.maps is None:
            return products_of(self.features[start:stop], reach=0)
        return self.maps[start:stop, :, -self.shape[1] :]

    def within_units(self, units: Tensor) -> Tensor:
        """`within` for the listed units, (U,) int64, as a copy."""
        if self.maps is None:
            return products_of(self.features[units], reach=0)
        return self.maps[:, :, -self.shape[1] :].index_select(0, units)

    def across(self, start: int, stop: int) -> Tensor:
        """<E[t,i], E[t-1,j]> for the units [start, stop), start >= 1: as `within`."""
        num_tokens = self.shape[1]
        if self.maps is None or self.maps.shape[2] == num_tokens:
            return products_of(self.features[start - 1 : stop], reach=1)[:, :, :num_tokens]
        return self.maps[start:stop, :, :num_tokens]


def token_products(features: Tensor, *, across: bool) -> TokenProducts:
    """Multiplies the tokens of (T, N, D) features, bfloat16, float16 or float32; reads them once.

    across: also with the unit before. Maps that would not fit in MAP_BYTES are left to be made when needed.
    """
    features = features.detach().contiguous()
    num_units, num_tokens, width = features.shape
    reach = int(across and num_units > 1)
    shape = (num_units, num_tokens, (1 + reach) * num_tokens)
    maps = _new(features, *shape) if 4 * math.prod(shape) <= MAP_BYTES else None
    means, norms = _new(features, num_units, width), _new(features, num_units, num_tokens)
    if maps is not None and reach:
        maps[:1, :, num_tokens:] = products_of(features[:1], reach=0)
    for start, rows in _pieces(features, reach):
        stop = start + len(rows)
        torch.mean(rows, dim=1, dtype=torch.float32, out=means[start:stop])
        if maps is None:
            norms[start:stop] = torch.linalg.vector_norm(rows, dim=2, dtype=torch.float32)
        else:
            _multiply(rows, maps[start + reach : stop], reach)
    if maps is not None:
        torch.sqrt(maps[:, :, -num_tokens:].diagonal(dim1=1, dim2=2), out=norms)
    return TokenProducts(features, means, norms.clamp_(min=_SMALLEST_NORM), maps)


def products_of(features: Tensor, *, reach: int) -> Tensor:
    """Products of the units from `reach` on with [the unit before and] themselves, reach 0 or 1.

    features: (C + reach, N, D) contiguous -> (C, N, (1 + reach) * N) float32.
    """
    num_units, num_tokens, _ = features.shape
    maps = _new(features, num_units - reach, num_tokens, (1 + reach) * num_tokens)
    _multiply(features if _multiplies_exactly(features) else features.float(), maps, reach)
    return maps


def _new(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _multiplies_exactly(features: Tensor) -> bool:
    """Whether products with float32 results take this dtype; tensor cores multiply half precision exactly."""
    return features.dtype == torch.float32 or (features.is_cuda and _MIXES_DTYPES)


def _multiply(rows: Tensor, maps: Tensor, reach: int) -> None:
    num_tokens = rows.shape[1]
    # tokens of each unit [and of the one before], transposed: a view (C, D, (1 + reach) * N)
    windows = rows.flatten(0, 1).unfold(0, (1 + reach) * num_tokens, num_tokens)
    if rows.dtype == torch.float32:
        torch.bmm(rows[reach:], windows, out=maps)
    else:
        torch.bmm(rows[reach:], windows, torch.float32, out=maps)


def _pieces(features: Tensor, reach: int) -> Iterator[tuple[int, Tensor]]:
    """The units as they can be multiplied, in pieces that overlap by `reach` units; see `widened`."""
    if _multiplies_exactly(features):
        return iter([(0, features)])
    return widened(features, overlap=reach)


def widened(rows: Tensor, *, overlap: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Rows (R, ...) in float32, piece by piece, with the number of the first; pieces share `overlap` rows.

    A piece is only good until the next one, which is put into the same memory, and may be written.
    """
    num_rows = len(rows)
    step = 2 * max(1, -(-num_rows // (2 * WIDENED_PIECES)))  # even, or one of two cores waits
    piece = _new(rows, min(step + overlap, num_rows), *rows.shape[1:])
    for start in range(0, num_rows - overlap, step):
        part = rows[start : start + step + overlap]
        yield start, piece[: len(part)].copy_(part)
