"""How many places each temporal unit has, and how a segment's places are shared out. Exact integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flashvid.config import FlashVidConfig
from flashvid.rounding import ceil_product

__all__ = ["UnitBudget", "share_places", "unit_budget"]


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
