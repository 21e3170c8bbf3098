"""One clip and one way to compress it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.clips import Kind, make_features, make_saliency
from flashvid import FlashVidConfig

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """`units` x `tokens` x `width` features of `dtype`, compressed at retention ratio `retention`."""

    kind: Kind
    units: int
    tokens: int
    width: int
    retention: float
    dtype: str

    @property
    def config(self) -> FlashVidConfig:
        """Every other setting is the default."""
        return FlashVidConfig(retention_ratio=self.retention)

    @property
    def feature_bytes(self) -> int:
        """Size of the features."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return self.units * self.tokens * self.width * dtype.itemsize

    def inputs(self, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Features (T, N, D) and saliency (T, N)."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        features = make_features(self.kind, self.units, self.tokens, self.width, dtype=dtype, device=device)
        return features, make_saliency(self.units, self.tokens, device=device)
