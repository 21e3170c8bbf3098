"""The arithmetic of places, layers and frames against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flashvid import FlashVidConfig
from flashvid.arithmetic import share_places, unit_budget
from flashvid.budget.grids import frames_for_budget
from flashvid.budget.schedule import (
    kv_lengths_by_layer,
    llm_ratio_for_budget,
    mean_visual_tokens,
    pruned_tokens,
    pruning_schedule,
)
from tests.oracles import literal

hundredths = st.integers(1, 100).map(lambda n: n / 100)
expansions = st.integers(100, 200).map(lambda n: n / 100)
many = settings(max_examples=120)


@many
@given(hundredths, expansions, st.integers(0, 100), st.integers(1, 400), st.integers(1, 20))
def test_places_of_a_unit(ratio: float, expansion: float, alpha: int, num_tokens: int, units: int) -> None:
    config = FlashVidConfig(retention_ratio=ratio, expansion=expansion, alpha=alpha / 100)
    budget = unit_budget(config, units, num_tokens)
    assert (budget.kept, budget.selected) == literal.budget(config, units, num_tokens)
    assert 1 <= budget.kept <= num_tokens
    assert 0 <= budget.selected <= budget.kept
    assert budget.merged == budget.kept - budget.selected


@many
@given(hundredths, expansions, st.integers(1, 400), st.integers(1, 20), st.integers(1, 4000))
def test_the_ceiling(ratio: float, expansion: float, num_tokens: int, units: int, ceiling: int) -> None:
    config = FlashVidConfig(retention_ratio=ratio, expansion=expansion, max_visual_tokens=ceiling)
    if units > ceiling:
        with pytest.raises(ValueError, match="max_visual_tokens"):
            unit_budget(config, units, num_tokens)
    else:
        budget = unit_budget(config, units, num_tokens)
        assert (budget.kept, budget.selected) == literal.budget(config, units, num_tokens)
        assert budget.kept * units <= ceiling


@many
@given(hundredths, st.integers(0, 100), st.integers(1, 400))
def test_the_reference_rounds_up_as_the_products_come(ratio: float, alpha: int, num_tokens: int) -> None:
    config = FlashVidConfig(retention_ratio=ratio, alpha=alpha / 100, budget="reference")
    kept = min(num_tokens, math.ceil(num_tokens * ratio * 1.25))
    assert unit_budget(config, 3, num_tokens).kept == kept
    assert unit_budget(config, 3, num_tokens).selected == min(kept, math.ceil(alpha / 100 * kept))


roots_and_places = st.lists(st.integers(0, 60), min_size=1, max_size=12).flatmap(
    lambda roots: st.tuples(st.just(roots), st.integers(sum(n > 0 for n in roots), sum(roots) + 5))
)


@many
@given(roots_and_places)
def test_places_are_shared_like_the_literal_division(case: tuple[list[int], int]) -> None:
    roots, places = case
    assert share_places(roots, places) == literal.places(roots, places)


@many
@given(roots_and_places)
def test_shares_add_up_and_leave_no_unit_out(case: tuple[list[int], int]) -> None:
    roots, places = case
    shares = share_places(roots, places)
    assert sum(shares) == min(places, sum(roots))
    assert all(min(1, n) <= share <= n for n, share in zip(roots, shares, strict=True))
    order = sorted(range(len(roots)), key=lambda t: (-roots[t], t))  # more roots, or as many and earlier
    assert [shares[t] for t in order] == sorted(shares, reverse=True)


@many
@given(roots_and_places)
def test_shares_are_within_one_place_of_proportion(case: tuple[list[int], int]) -> None:
    roots, places = case
    assume(places <= sum(roots) and all(places * n >= sum(roots) for n in roots if n))
    for n, share in zip(roots, share_places(roots, places), strict=True):
        assert abs(share - Fraction(places * n, max(1, sum(roots)))) < 1


@many
@given(st.integers(2, 100), expansions, st.integers(1, 99))
def test_the_schedule_spends_exactly_the_budget(layers: int, expansion: float, layer: int) -> None:
    """The equation of the paper: R*L = x*R*(K + r*(L - K)), whatever R."""
    assume(layer < layers and layer * expansion < layers - 1e-6)
    schedule = pruning_schedule(layers, expansion, layer)
    assert schedule.layer == layer
    assert 0 < schedule.ratio <= 1
    exact = Fraction(str(expansion))
    spent = exact * (layer + Fraction(schedule.ratio) * (layers - layer))
    assert float(spent) == pytest.approx(layers, rel=1e-12)


@many
@given(st.integers(1, 3000), hundredths)
def test_pruned_tokens(tokens: int, ratio: float) -> None:
    assert pruned_tokens(tokens, ratio) == math.ceil(Fraction(str(ratio)) * tokens)


@many
@given(st.integers(2, 80), st.integers(1, 79), st.integers(1, 3000), st.floats(0.3, 1.2))
def test_the_derived_ratio_is_the_largest_within_the_budget(
    layers: int, layer: int, kept: int, share: float
) -> None:
    assume(layer < layers)
    budget = kept * share
    try:
        ratio = llm_ratio_for_budget(layers, layer, kept, budget)
    except ValueError:  # then not even one token per late layer fits
        assert kept * layer + (layers - layer) > budget * layers * (1 - 1e-9)
        return
    left = pruned_tokens(kept, ratio)
    assert kept * layer + left * (layers - layer) <= budget * layers * (1 + 1e-8)
    assert left == kept or kept * layer + (left + 1) * (layers - layer) > budget * layers * (1 - 1e-8)


@many
@given(st.integers(0, 500), st.integers(1, 3000), st.integers(2, 80), st.integers(1, 79), hundredths)
def test_cache_lengths_by_layer(text: int, kept: int, layers: int, layer: int, ratio: float) -> None:
    assume(layer < layers)
    lengths = kv_lengths_by_layer(text, kept, layers, layer, ratio)
    left = math.ceil(Fraction(str(ratio)) * kept)
    assert lengths == (text + kept,) * layer + (text + left,) * (layers - layer)
    mean = Fraction(layer * kept + (layers - layer) * left, layers)
    assert mean_visual_tokens(kept, layers, layer, ratio) == pytest.approx(float(mean), rel=1e-12)


@given(st.integers(1, 64), hundredths)
def test_frames_for_budget(baseline: int, ratio: float) -> None:
    assert frames_for_budget(baseline, ratio) == math.floor(baseline / Fraction(str(ratio)))
