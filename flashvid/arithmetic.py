"""Unit budgets, how places are shared out, rounding, and how much is worked on at once.

Plain numbers, no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flashvid.config import FlashVidConfig

__all__ = [
    "MAP_BYTES",
    "PATCHES_PER_CHUNK",
    "RESIZE_BYTES",
    "SALIENCY_WEIGHTS",
    "WIDENED_PIECES",
    "UnitBudget",
    "ceil_product",
    "floor_product",
    "share_places",
    "unit_budget",
]

# How much is worked on at once: memory that is in use at any time follows from these.

# Patches that go through the vision tower at once: about 2 GB of activations in bfloat16 at 7B size.
PATCHES_PER_CHUNK = 32768

# Attention weights held at once while saliency is taken, in float32: 64 MiB.
SALIENCY_WEIGHTS = 2**24

# Maps between tokens held at once while a video is compressed. Those of 2000 frames of 256 tokens fit, so the
# number of kernel launches does not depend on the length; only very large frames take several rounds.
MAP_BYTES = 512 * 2**20

# float32 working copy of the frames that are resized together
RESIZE_BYTES = 128 * 2**20

# Pieces in which half precision features are widened to float32 where they are multiplied: as many for a long
# video as for a short one.
WIDENED_PIECES = 8


def ceil_product(value: float) -> int:
    """Rounds up, but takes a product that misses a whole number by binary rounding alone for that number."""
    return math.ceil(value - 1e-9 * max(1.0, abs(value)))


def floor_product(value: float) -> int:
    """Rounds down, with the same pardon as :func:`ceil_product`."""
    return math.floor(value + 1e-9 * max(1.0, abs(value)))


@dataclass(frozen=True)
class UnitBudget:
    """Places of one temporal unit: `kept` in all, `selected` of them for ADTS, the rest for merged tokens."""

    kept: int
    selected: int

    @property
    def merged(self) -> int:
        """Places for merged tokens."""
        return self.kept - self.selected


def unit_budget(config: FlashVidConfig, num_units: int, num_tokens: int) -> UnitBudget:
    """b = ceil(N*R*x) places per unit, ceil(alpha*b) of them for selected tokens; 1 <= b <= N.

    With `budget="exact"` products that miss a whole number by rounding alone count as that number, and
    `max_visual_tokens` lowers b to max_visual_tokens // T; with "reference" the products are rounded up as
    they come. Raises ValueError where the ceiling is below one token per unit.
    """
    ceil = ceil_product if config.budget == "exact" else math.ceil
    kept = min(num_tokens, max(1, ceil(num_tokens * config.retention_ratio * config.expansion)))
    if config.max_visual_tokens is not None:
        if num_units > config.max_visual_tokens:
            raise ValueError(
                f"max_visual_tokens={config.max_visual_tokens} must be at least the number of temporal "
                f"units, {num_units}: every unit keeps one token; sample fewer frames or raise it"
            )
        kept = min(kept, config.max_visual_tokens // num_units)
    return UnitBudget(kept, min(kept, ceil(config.alpha * kept)))


def share_places(roots: Sequence[int], places: int) -> list[int]:
    """Spreads places over units in proportion to their roots by largest remainder; exact integers.

    Every unit with roots gets at least one place and none gets more than its roots, so the sum is
    min(places, sum(roots)). Equal remainders go to the earliest unit. Raises ValueError where there are fewer
    places than units with roots.
    """
    if sum(roots) <= places:
        return list(roots)
    if places < sum(n > 0 for n in roots):
        raise ValueError(f"{places=} must be at least the number of units with roots in {list(roots)}")
    shares = [0] * len(roots)
    waiting = [t for t, n in enumerate(roots) if n > 0]
    # units whose proportional share is below one place take one; the others share the rest
    total = sum(roots)
    while small := [t for t in waiting if places * roots[t] < total]:
        for t in small:
            shares[t] = 1
        places -= len(small)
        total -= sum(roots[t] for t in small)
        waiting = [t for t in waiting if shares[t] == 0]
    for t in waiting:
        shares[t] = places * roots[t] // total
    by_remainder = sorted(waiting, key=lambda t: -(places * roots[t] % total))
    for t in by_remainder[: places - sum(shares[t] for t in waiting)]:
        shares[t] += 1
    return shares
