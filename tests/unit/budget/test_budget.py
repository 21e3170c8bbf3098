from __future__ import annotations

import math

import pytest

from flashvid import FlashVidConfig
from flashvid.arithmetic import UnitBudget, share_places, unit_budget
from flashvid.budget.grids import frames_for_budget, visual_tokens
from flashvid.budget.schedule import (
    PruningSchedule,
    kv_lengths_by_layer,
    llm_ratio_for_budget,
    mean_visual_tokens,
    pruned_tokens,
    pruning_schedule,
)


@pytest.mark.parametrize(
    ("layers", "layer", "ratio"), [(28, 20, 0.30), (36, 28, 0.10), (36, 20, 0.55), (64, 45, 0.326)]
)
def test_schedule_follows_the_budget_equation(layers: int, layer: int, ratio: float) -> None:
    schedule = pruning_schedule(layers, 1.25, layer)
    assert schedule.layer == layer
    assert schedule.ratio == pytest.approx(ratio, abs=5e-4)
    spent = 1.25 * (layer + schedule.ratio * (layers - layer)) / layers
    assert spent == pytest.approx(1.0)


@pytest.mark.parametrize(("layers", "layer"), [(28, 20), (36, 25), (64, 45), (2, 1), (4, 3), (8, 6)])
def test_derived_layer_is_near_seven_tenths(layers: int, layer: int) -> None:
    assert pruning_schedule(layers, 1.25).layer == layer


@pytest.mark.parametrize("layers", range(2, 100))
@pytest.mark.parametrize("expansion", [1.0, 1.25, 1.5, 1.8])
def test_derived_schedule_always_keeps_a_tenth(layers: int, expansion: float) -> None:
    schedule = pruning_schedule(layers, expansion)
    assert 1 <= schedule.layer < layers
    assert 0.1 <= schedule.ratio <= 1


def test_given_values_are_taken_as_they_are() -> None:
    assert pruning_schedule(28, 1.25, 25, 0.5) == PruningSchedule(25, 0.5)
    assert pruning_schedule(28, 1.25, None, 1.0) == PruningSchedule(20, 1.0)
    assert pruning_schedule(28, 1.0, 10).ratio == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((28, 1.25, 23), "use a layer of at most 22"),
        ((28, 1.25, 28), r"must be in \[1, 28\)"),
        ((28, 1.25, 0), r"must be in \[1, 28\)"),
        ((28, 0.5), "must be at least 1"),
        ((0,), "must be at least 1"),
        ((1,), "no pruning layer fits 1 layers"),
        ((2, 2.0), "no pruning layer fits 2 layers"),
        ((28, 1.25, 20, 0.0), r"must be in \(0, 1\]"),
    ],
)
def test_schedule_refuses(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruning_schedule(*arguments)  # type: ignore[arg-type]


def test_the_layer_an_error_recommends_works() -> None:
    assert pruning_schedule(28, 1.25, 22).ratio > 0


@pytest.mark.parametrize("kept", [40, 400, 3910])
@pytest.mark.parametrize("share", [0.75, 0.8, 0.9, 0.999])
def test_ratio_from_the_actual_tokens_holds_the_budget(kept: int, share: float) -> None:
    budget = kept * share
    ratio = llm_ratio_for_budget(28, 20, kept, budget)
    assert mean_visual_tokens(kept, 28, 20, ratio) <= budget + 1e-6
    one_more = (pruned_tokens(kept, ratio) + 1) / kept
    assert mean_visual_tokens(kept, 28, 20, one_more) > budget


def test_nothing_is_pruned_where_the_budget_is_not_spent() -> None:
    assert llm_ratio_for_budget(28, 20, 100, 100) == 1.0


def test_no_ratio_where_the_first_layers_spend_everything() -> None:
    with pytest.raises(ValueError, match="prune at an earlier layer"):
        llm_ratio_for_budget(28, 20, 100, 71)


def test_pruned_tokens_rounds_up_but_not_by_a_binary_rounding() -> None:
    assert pruned_tokens(10, 0.31) == 4
    assert 0.07 * 100 > 7  # so a plain ceil would say 8
    assert pruned_tokens(100, 0.07) == 7


def test_lengths_by_layer() -> None:
    assert kv_lengths_by_layer(5, 100, 4, 3, 0.2) == (105, 105, 105, 25)
    assert mean_visual_tokens(100, 4, 3, 0.2) == 80


def test_frames_for_budget() -> None:
    assert frames_for_budget(16, 0.1) == 160
    assert frames_for_budget(16, 0.2) == 80
    assert frames_for_budget(16, 1) == 16
    assert frames_for_budget(16, 0.3) == 53
    for arguments in ((0, 0.1), (16, 0), (16, 1.5)):
        with pytest.raises(ValueError, match="must be"):
            frames_for_budget(*arguments)


def test_visual_tokens() -> None:
    assert visual_tokens(160, 336, 448) == 80 * 12 * 16
    assert visual_tokens(3, 28, 28) == 2
    with pytest.raises(ValueError, match="width=450 must be a multiple of 28"):
        visual_tokens(160, 336, 450)


def test_unit_budget_of_a_tenth() -> None:
    assert unit_budget(FlashVidConfig(), 80, 64) == UnitBudget(8, 6)
    assert unit_budget(FlashVidConfig(), 80, 64).merged == 2


def test_exact_budget_ignores_binary_rounding_and_the_reference_does_not() -> None:
    assert 100 * 0.07 * 1.0 > 7
    assert unit_budget(FlashVidConfig(retention_ratio=0.07, expansion=1.0), 1, 100).kept == 7
    assert (
        unit_budget(FlashVidConfig(retention_ratio=0.07, expansion=1.0, budget="reference"), 1, 100).kept == 8
    )


@pytest.mark.parametrize(("alpha", "selected"), [(0.0, 0), (0.01, 1), (0.7, 6), (1.0, 8)])
def test_alpha_shares_the_unit(alpha: float, selected: int) -> None:
    assert unit_budget(FlashVidConfig(alpha=alpha), 2, 64).selected == selected


def test_a_unit_never_keeps_more_than_it_has() -> None:
    assert unit_budget(FlashVidConfig(retention_ratio=0.9), 2, 10).kept == 10


@pytest.mark.parametrize(("ceiling", "kept"), [(10_000, 8), (80 * 8, 8), (80 * 8 - 1, 7), (80, 1)])
def test_a_ceiling_lowers_the_unit_budget(ceiling: int, kept: int) -> None:
    assert unit_budget(FlashVidConfig(max_visual_tokens=ceiling), 80, 64).kept == kept


def test_a_ceiling_below_one_token_per_unit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_visual_tokens=79 .* sample fewer frames"):
        unit_budget(FlashVidConfig(max_visual_tokens=79), 80, 64)


def test_share_places() -> None:
    assert share_places([3, 0, 2], 5) == [3, 0, 2]
    assert share_places([10, 10, 10], 7) == [3, 2, 2]  # equal remainders go to the earliest
    assert share_places([1000, 1, 1], 4) == [2, 1, 1]  # at least one each, taken from the large one
    with pytest.raises(ValueError, match="at least the number of units with roots"):
        share_places([1, 1, 1], 2)


def test_mean_of_the_derived_schedule_meets_the_retention() -> None:
    """28 layers, 160 frames of 12 x 16 tokens at a tenth: the mean over layers is a tenth of all tokens."""
    total = visual_tokens(160, 336, 448)
    kept = 80 * unit_budget(FlashVidConfig(), 80, 192).kept
    schedule = pruning_schedule(28)
    assert kept == math.ceil(192 * 0.125) * 80
    assert mean_visual_tokens(kept, 28, schedule.layer, schedule.ratio) == pytest.approx(total / 10, rel=1e-3)
