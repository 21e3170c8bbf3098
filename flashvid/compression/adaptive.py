"""Content-adaptive retention: a unit that repeats the one before uses fewer places than its budget.

A token's novelty is 0 where the unit before holds the same token, 1 where nothing there resembles it by more
than the merge threshold, and in proportion between. A unit gets a place for every whole new token, at most
its budget; the first unit of a segment, which has nothing before it, gets its budget.

In proportion, and with fractions carried on along the segment, because a slow pan resembles itself from unit
to unit and yet ends somewhere else: it must not be paid for as if it stood still. This is ours, not the
paper's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashvid.arithmetic import UnitBudget

__all__ = ["NOVELTY_STEPS", "merged_places", "unit_budgets", "unit_novelty", "unit_places"]

# Whole numbers add up to the same sum in any order, so the places do not depend on threads or device; the
# rounding also takes a token for the same as itself, whose cosine may miss 1 by 1e-7.
NOVELTY_STEPS = 1000


def unit_novelty(cosine: Tensor, threshold: float) -> Tensor:
    """How much is new in each unit, in thousandths of a token: (T, N) -> (T,) int64, from 0 to 1000 * N.

    cosine: (T, N) float32, of each token with its best match among all tokens of the unit before, selected or
    not; -inf where there is none. threshold: temporal_threshold; from 1 on nothing merges, so all is new.
    """
    if threshold >= 1:
        return torch.full((len(cosine),), NOVELTY_STEPS * cosine.shape[1], device=cosine.device)
    share = (1 - cosine).mul_(NOVELTY_STEPS / (1 - threshold)).clamp_(0, NOVELTY_STEPS)
    return share.round_().to(torch.int64).sum(dim=1)


def unit_places(novelty: Sequence[int], lengths: Sequence[int], most: int) -> tuple[int, ...]:
    """Places of each unit, from 0 to `most`: a place per 1000 of novelty, `most` for first units of segments.

    novelty: per unit, from `unit_novelty`; lengths: of the segments, in units, summing to their number. What
    a unit leaves over is carried to the next of its segment, so up to any unit more novelty never gives fewer
    places. Raises ValueError where the lengths do not fit.
    """
    if sum(lengths) != len(novelty):
        raise ValueError(f"{lengths=} must sum to the number of units, {len(novelty)}")
    places: list[int] = []
    for length in lengths:
        part = novelty[len(places) + 1 : len(places) + length]
        places.append(most)
        left_over = 0
        for new in part:
            count, left_over = divmod(min(new, most * NOVELTY_STEPS) + left_over, NOVELTY_STEPS)
            places.append(count)
    return tuple(places)


def unit_budgets(
    novelty: Sequence[int], lengths: Sequence[int], budget: UnitBudget
) -> tuple[UnitBudget, ...]:
    """The budget of each unit, at most `budget` in every part; `budget` itself where enough is new.

    Selected tokens keep their share of the places, but where merged ones have any they have one in every unit
    with a place: what is new in a quiet unit are its unlinked tokens, and selection does not know them.
    novelty and lengths as in `unit_places`. Raises ValueError where the lengths do not fit.
    """
    return tuple(_split(kept, budget) for kept in unit_places(novelty, lengths, budget.kept))


def _split(kept: int, budget: UnitBudget) -> UnitBudget:
    selected = -(-kept * budget.selected // budget.kept)
    return UnitBudget(kept, min(selected, max(0, kept - 1)) if budget.merged else selected)


def merged_places(budgets: Sequence[UnitBudget], roots: Sequence[int]) -> int:
    """Places for the trees of one segment: those of its units, but one for each unit with roots.

    budgets, roots: of the segment's units. A quiet unit may have roots though it has no place: tokens whose
    only match was selected. Nothing may be lost, so it gets one; its budget without `adaptive` allows that.
    """
    return max(sum(budget.merged for budget in budgets), sum(count > 0 for count in roots))
