"""Scores that are no numbers: greedy decoding would take the first token for the best, without an error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["FiniteScores"]


class FiniteScores:
    """A logits processor that changes nothing; ``check`` says what it saw. Never waits for the device."""

    def __init__(self) -> None:
        self._broken: Tensor | None = None  # () bool, on the scores' device

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at the scores (B, V) float of one step; those of banned tokens are minus infinity."""
        broken = ~(scores < math.inf).all()  # NaN is less than nothing
        self._broken = broken if self._broken is None else self._broken | broken
        return scores

    def check(self, dtype: torch.dtype) -> None:
        """Raises ValueError where there was NaN or infinity; ``dtype``: the model's, for the message."""
        if self._broken is not None and bool(self._broken):
            raise ValueError(
                "the model's scores are NaN or infinite: its weights are damaged, or its numbers too large "
                f"for {str(dtype).removeprefix('torch.')}; download it again, or take bfloat16 or float32"
            )
