"""Adaptive retention, its arithmetic: what counts as new, and how many places that gives."""

from __future__ import annotations

import pytest
import torch

from flashvid.arithmetic import UnitBudget
from flashvid.compression.adaptive import merged_places, unit_budgets, unit_novelty, unit_places


def test_novelty_is_in_proportion_between_the_same_and_the_threshold() -> None:
    cosine = torch.tensor([[1.0, 0.95, 0.9, 0.85, 0.8, 0.5, -1.0, -torch.inf]])
    one_by_one = [int(unit_novelty(cosine[:, n : n + 1], 0.8)) for n in range(8)]
    assert one_by_one == [0, 250, 500, 750, 1000, 1000, 1000, 1000]
    assert unit_novelty(cosine, 0.8).tolist() == [sum(one_by_one)]


def test_a_rounded_cosine_is_not_new() -> None:
    cosine = torch.tensor([[1 - 3e-7, 1 + 3e-7, 1 - 6e-8]]).expand(1, 3).repeat(1, 300)
    assert unit_novelty(cosine, 0.8).tolist() == [0]


@pytest.mark.parametrize("threshold", [1.0, 1.5])
def test_where_nothing_merges_all_is_new(threshold: float) -> None:
    assert unit_novelty(torch.ones(3, 4), threshold).tolist() == [4000, 4000, 4000]


def test_the_lowest_threshold() -> None:
    assert unit_novelty(torch.tensor([[1.0, 0.0, -1.0]]), -1.0).tolist() == [1500]


@pytest.mark.parametrize(
    ("novelty", "lengths", "expected"),
    [
        ([0], [1], [5]),
        ([0, 0, 0, 0], [4], [5, 0, 0, 0]),
        ([0, 0, 0, 0], [2, 2], [5, 0, 5, 0]),
        ([9000] * 4, [4], [5, 5, 5, 5]),
        ([0, 3999, 2000, 0], [4], [5, 3, 2, 0]),
        ([0, 400, 400, 400, 400, 400], [6], [5, 0, 0, 1, 0, 1]),  # a slow pan
        ([0, 9999, 500, 500, 0], [5], [5, 5, 0, 1, 0]),  # more than the budget is not carried on
        ([0, 900, 100, 900, 100], [2, 3], [5, 0, 5, 0, 1]),  # nor anything across a border
    ],
)
def test_places(novelty: list[int], lengths: list[int], expected: list[int]) -> None:
    assert list(unit_places(novelty, lengths, 5)) == expected


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match=r"lengths=\[2, 3\] must sum to the number of units, 4"):
        unit_places([0] * 4, [2, 3], 5)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (UnitBudget(10, 7), [0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 7]),  # one for merged tokens in every unit
        (UnitBudget(10, 10), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (UnitBudget(10, 0), [0] * 11),
        (UnitBudget(1, 1), [0, 1]),
        (UnitBudget(1, 0), [0, 0]),
    ],
)
def test_selected_tokens_keep_their_share(budget: UnitBudget, expected: list[int]) -> None:
    for count, selected in enumerate(expected):
        first, second = unit_budgets([0, 1000 * count], [2], budget)
        assert first == budget
        assert second == UnitBudget(count, selected)


@pytest.mark.parametrize(
    ("roots", "expected"), [([9, 0, 0, 0], 4), ([9, 1, 1, 1], 4), ([9, 1, 1, 1, 1, 1], 6), ([0] * 4, 4)]
)
def test_every_unit_with_roots_has_a_place(roots: list[int], expected: int) -> None:
    budgets = [UnitBudget(10, 7), UnitBudget(1, 0)] + [UnitBudget(0, 0)] * (len(roots) - 2)
    assert merged_places(budgets, roots) == expected
