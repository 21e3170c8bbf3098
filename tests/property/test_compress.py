"""The whole compression against the literal one, and the algebra it promises, on random clips."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings

from flashvid import FlashVidConfig, compress, plan_compression
from flashvid.budget import share_places, unit_budget
from tests.oracles import literal
from tests.property.clips import Clip, clips, configs

many = settings(max_examples=100, deadline=None)


def _literal(clip: Clip, config: FlashVidConfig) -> literal.LiteralVideo:
    features, saliency = clip.features.double().numpy(), clip.saliency.double().numpy()
    num_units, num_tokens, _ = features.shape
    budget = unit_budget(config, num_units, num_tokens)
    lengths = [num_units]
    if config.do_segment:
        lengths = literal.segments(
            features, config.segment_threshold, config.min_segment_num, config.complementary_segment
        )
    chosen = literal.select(features, saliency, budget.selected, config.token_selection_method, lengths)
    parent = literal.parents(features, chosen, lengths, budget.kept, config.temporal_threshold)
    roots = [
        [
            n
            for n in range(num_tokens)
            if parent[t * num_tokens + n] == t * num_tokens + n and n not in chosen[t]
        ]
        for t in range(num_units)
    ]
    places: list[int] = []
    for length in lengths:
        part = [len(unit) for unit in roots[len(places) : len(places) + length]]
        places += share_places(part, budget.merged * length)
    return literal.compress(features, chosen, parent, lengths, dict(enumerate(places)))


@many
@given(clips(), configs(alpha=0.3) | configs(alpha=0.0))
def test_same_as_literal(clip: Clip, config: FlashVidConfig) -> None:
    num_units, num_tokens, _ = clip.features.shape
    if unit_budget(config, num_units, num_tokens).merged == 0:
        return
    video = compress(clip.features, clip.saliency, config)
    expected = _literal(clip, config)
    assert video.kept.tolist() == expected.kept
    assert video.group_sizes.tolist() == expected.group_sizes
    np.testing.assert_allclose(video.tokens.numpy(), expected.tokens, rtol=1e-4, atol=1e-5)


@many
@given(clips(max_units=9, max_tokens=20), configs())
def test_budget_order_and_account(clip: Clip, config: FlashVidConfig) -> None:
    num_units, num_tokens, _ = clip.features.shape
    budget = unit_budget(config, num_units, num_tokens)
    video = compress(clip.features, clip.saliency, config)
    assert len(video.kept) == num_units * budget.kept  # the bound, and it is reached
    assert bool((video.kept.diff() > 0).all())
    assert int(video.kept.min()) >= 0
    assert int(video.kept.max()) < num_units * num_tokens
    assert int(video.group_sizes.min()) >= 1
    total = int(video.group_sizes.sum())
    assert total == (num_units * num_tokens if budget.merged else len(video.kept))


@many
@given(clips(max_units=9), configs())
def test_nothing_is_lost(clip: Clip, config: FlashVidConfig) -> None:
    """Kept tokens times the number of tokens they stand for add up to all tokens."""
    if unit_budget(config, *clip.features.shape[:2]).merged == 0:
        return
    video = compress(clip.features, clip.saliency, config)
    restored = (video.tokens.double() * video.group_sizes.unsqueeze(-1)).sum(dim=0)
    torch.testing.assert_close(restored, clip.features.double().sum(dim=(0, 1)), rtol=1e-4, atol=1e-3)


@many
@given(clips(), configs())
def test_selected_tokens_stay_as_they_are(clip: Clip, config: FlashVidConfig) -> None:
    plan = plan_compression(clip.features, clip.saliency, config)
    num_tokens, width = clip.features.shape[1:]
    chosen = (plan.selected + torch.arange(len(plan.selected)).unsqueeze(1) * num_tokens).view(-1)
    rows = torch.searchsorted(plan.kept, chosen)
    assert torch.equal(plan.kept[rows], chosen)
    assert torch.equal(plan.apply(clip.features)[rows], clip.features.view(-1, width)[chosen])
    assert bool((plan.group_sizes[rows] == 1).all())


@many
@given(clips(), configs(budget="reference", tree_mean="reference"))
def test_reference_budget_accounts_too(clip: Clip, config: FlashVidConfig) -> None:
    num_units, num_tokens, _ = clip.features.shape
    budget = unit_budget(config, num_units, num_tokens)
    video = compress(clip.features, clip.saliency, config)
    assert len(video.kept) >= num_units * budget.kept
    if budget.merged:
        assert int(video.group_sizes.sum()) == num_units * num_tokens


@settings(max_examples=15, deadline=None)
@given(clips(max_units=9, max_tokens=24), configs())
def test_same_bits_whatever_the_threads(clip: Clip, config: FlashVidConfig) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = compress(clip.features, clip.saliency, config)
        torch.set_num_threads(2)
        two = compress(clip.features, clip.saliency, config)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one.kept, two.kept)
    assert torch.equal(one.group_sizes, two.group_sizes)
    assert torch.equal(one.tokens, two.tokens)


@settings(max_examples=30, deadline=None)
@given(clips(), configs())
def test_decisions_do_not_depend_on_the_half_precision_dtype(clip: Clip, config: FlashVidConfig) -> None:
    """bfloat16 features give the decisions of the same numbers in float32."""
    half = clip.features.bfloat16()
    low = compress(half, clip.saliency, config)
    full = compress(half.float(), clip.saliency, config)
    assert low.tokens.dtype == torch.bfloat16
    assert torch.equal(low.kept, full.kept)
    assert torch.equal(low.tokens, full.tokens.bfloat16())
