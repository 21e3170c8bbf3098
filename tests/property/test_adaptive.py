"""Adaptive retention: the algebra of its arithmetic."""

from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvid.arithmetic import UnitBudget
from flashvid.compression.adaptive import (
    NOVELTY_STEPS,
    merged_places,
    unit_budgets,
    unit_novelty,
    unit_places,
)
from tests.oracles import adaptive
from tests.property.clips import Clip, clips

many = settings(max_examples=200, deadline=None)


@st.composite
def segmented(draw: st.DrawFn) -> tuple[list[int], list[int], UnitBudget]:
    """(novelty, lengths, budget): novelty in thousandths, often small, often above the budget."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    amounts = st.one_of(st.just(0), st.integers(0, 999), st.integers(0, 40_000))
    novelty = draw(st.lists(amounts, min_size=sum(lengths), max_size=sum(lengths)))
    kept = draw(st.integers(1, 30))
    return novelty, lengths, UnitBudget(kept, draw(st.integers(0, kept)))


def _starts(lengths: list[int]) -> list[int]:
    return [sum(lengths[:number]) for number in range(len(lengths))]


@many
@given(segmented())
def test_same_as_the_oracle(case: tuple[list[int], list[int], UnitBudget]) -> None:
    novelty, lengths, budget = case
    expected = adaptive.places([Fraction(new, NOVELTY_STEPS) for new in novelty], lengths, budget.kept)
    assert list(unit_places(novelty, lengths, budget.kept)) == expected
    budgets = unit_budgets(novelty, lengths, budget)
    assert [unit.kept for unit in budgets] == expected
    assert [unit.selected for unit in budgets] == [
        adaptive.selected(count, budget.kept, budget.selected) for count in expected
    ]


@many
@given(segmented())
def test_bounds(case: tuple[list[int], list[int], UnitBudget]) -> None:
    novelty, lengths, budget = case
    budgets = unit_budgets(novelty, lengths, budget)
    assert len(budgets) == len(novelty)
    for unit in budgets:
        assert 0 <= unit.kept <= budget.kept
        assert 0 <= unit.selected <= min(unit.kept, budget.selected)
        assert unit.merged <= budget.merged
        assert (unit.merged > 0) == (unit.kept > 0 and budget.merged > 0)
    assert all(budgets[start] == budget for start in _starts(lengths))


@many
@given(segmented(), st.data())
def test_more_that_is_new_never_gives_less(
    case: tuple[list[int], list[int], UnitBudget], data: st.DataObject
) -> None:
    """Counted from the start of a segment up to any unit, in all and for either kind of token."""
    novelty, lengths, budget = case
    more = list(novelty)
    more[data.draw(st.integers(0, len(more) - 1))] += data.draw(st.integers(0, 5000))
    before, after = (unit_places(values, lengths, budget.kept) for values in (novelty, more))
    for start, length in zip(_starts(lengths), lengths, strict=True):
        for stop in range(start, start + length + 1):
            assert sum(before[start:stop]) <= sum(after[start:stop])


@many
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.data())
def test_more_places_are_more_of_either_kind(few: int, many_: int, kept: int, data: st.DataObject) -> None:
    budget = UnitBudget(kept, data.draw(st.integers(0, kept)))
    novelty = [0, 1000 * min(few, many_, kept), 1000 * min(max(few, many_), kept)]
    _, less, more = unit_budgets(novelty, [3], budget)
    assert less.selected <= more.selected
    assert less.merged <= more.merged


@many
@given(segmented())
def test_a_segment_where_every_unit_is_new_enough_keeps_its_budget(
    case: tuple[list[int], list[int], UnitBudget],
) -> None:
    novelty, lengths, budget = case
    busy = [new + NOVELTY_STEPS * budget.kept for new in novelty]
    assert set(unit_budgets(busy, lengths, budget)) == {budget}
    still = unit_budgets([0] * len(novelty), lengths, budget)
    assert sum(unit.kept for unit in still) == len(lengths) * budget.kept


@many
@given(segmented(), st.data())
def test_the_places_used_stay_within_the_budget(
    case: tuple[list[int], list[int], UnitBudget], data: st.DataObject
) -> None:
    novelty, lengths, budget = case
    if budget.merged == 0:
        return
    budgets = unit_budgets(novelty, lengths, budget)
    roots = data.draw(st.lists(st.integers(0, 40), min_size=len(novelty), max_size=len(novelty)))
    for start, length in zip(_starts(lengths), lengths, strict=True):
        part, own = budgets[start : start + length], roots[start : start + length]
        places = merged_places(part, own)
        assert places >= max(sum(unit.merged for unit in part), sum(n > 0 for n in own))
        quiet = sum(unit.kept == 0 and n > 0 for unit, n in zip(part, own, strict=True))
        assert places + sum(unit.selected for unit in part) <= sum(unit.kept for unit in part) + quiet
        assert places + sum(unit.selected for unit in part) <= length * budget.kept


@settings(max_examples=60, deadline=None)
@given(clips(), st.sampled_from([-1.0, 0.2, 0.8, 0.99, 1.0]))
def test_novelty_is_that_of_the_oracle(clip: Clip, threshold: float) -> None:
    features = clip.features
    normal = torch.nn.functional.normalize(features, dim=-1)
    cosine = torch.full(features.shape[:2], -torch.inf)
    cosine[1:] = torch.bmm(normal[1:], normal[:-1].transpose(1, 2)).amax(dim=2)
    expected = [float(new) for new in adaptive.novelty(features.double().numpy(), threshold)]
    found = unit_novelty(cosine, threshold).tolist()
    most = features.shape[1] * NOVELTY_STEPS
    assert all(0 <= new <= most for new in found)
    # a thousandth per token may fall to either side
    assert all(
        abs(new - NOVELTY_STEPS * exact) <= features.shape[1] + 0.5
        for new, exact in zip(found, expected, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.2, 0.8]), st.sampled_from([0.8, 0.99]))
def test_novelty_falls_with_likeness_and_rises_with_the_threshold(seed: int, low: float, high: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    cosine = torch.rand(4, 9, generator=generator) * 2 - 1
    closer = cosine + torch.rand(4, 9, generator=generator) * (1 - cosine)
    assert bool((unit_novelty(closer, low) <= unit_novelty(cosine, low)).all())
    assert bool((unit_novelty(cosine, low) <= unit_novelty(cosine, high)).all())
