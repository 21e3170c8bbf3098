"""The whole compression against the literal one, and the algebra it promises, on random clips."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvid import FlashVidConfig, compress, plan_compression
from flashvid.arithmetic import UnitBudget, unit_budget
from flashvid.config import TreeMean
from tests.oracles import literal
from tests.property.clips import Clip, axis_clips, clips, configs, joined

usual = settings(max_examples=60)
any_clips = clips(max_units=9, max_tokens=20) | axis_clips()
large_clips = clips(min_units=4, min_tokens=8)
wide_budgets = st.sampled_from([0.2, 0.35, 0.6])


@settings(max_examples=120)
@given(clips() | large_clips, configs(), st.sampled_from(["members", "reference"]))
def test_same_as_literal(clip: Clip, config: FlashVidConfig, tree_mean: TreeMean) -> None:
    config = FlashVidConfig(**{**vars(config), "tree_mean": tree_mean})
    video = compress(clip.features, clip.saliency, config)
    expected = literal.whole(clip.features.double().numpy(), clip.saliency.double().numpy(), config)
    assert video.kept.tolist() == expected.kept
    assert video.group_sizes.tolist() == expected.group_sizes
    np.testing.assert_allclose(video.tokens.numpy(), expected.tokens, rtol=1e-4, atol=1e-5)


@settings(max_examples=120)
@given(any_clips, configs(), st.none() | st.integers(9, 60))
def test_budget_order_and_account(clip: Clip, config: FlashVidConfig, ceiling: int | None) -> None:
    config = FlashVidConfig(**{**vars(config), "max_visual_tokens": ceiling})
    num_units, num_tokens, _ = clip.features.shape
    kept, selected = literal.budget(config, num_units, num_tokens)
    video = compress(clip.features, clip.saliency, config)
    assert len(video.kept) <= num_units * kept
    assert bool((video.kept.diff() > 0).all())
    assert int(video.kept.min()) >= 0
    assert int(video.kept.max()) < num_units * num_tokens
    assert int(video.group_sizes.min()) >= 1
    total = int(video.group_sizes.sum())
    assert total == (len(video.kept) if kept == selected else num_units * num_tokens)


@usual
@given(any_clips, configs())
def test_the_budget_is_used_up(clip: Clip, config: FlashVidConfig) -> None:
    """The floor leaves at least as many roots as places, so the bound is reached, not only held."""
    num_units, num_tokens, _ = clip.features.shape
    video = compress(clip.features, clip.saliency, config)
    assert len(video.kept) == num_units * literal.budget(config, num_units, num_tokens)[0]


@usual
@given(clips(max_units=9), configs(tree_mean="members"))
def test_nothing_is_lost(clip: Clip, config: FlashVidConfig) -> None:
    """Kept tokens times the number of tokens they stand for add up to all tokens."""
    if unit_budget(config, *clip.features.shape[:2]).merged == 0:
        config = FlashVidConfig(**{**vars(config), "alpha": 0.0})
    video = compress(clip.features, clip.saliency, config)
    restored = (video.tokens.double() * video.group_sizes.unsqueeze(-1)).sum(dim=0)
    torch.testing.assert_close(restored, clip.features.double().sum(dim=(0, 1)), rtol=1e-4, atol=1e-3)


@usual
@given(any_clips, configs())
def test_a_plan_says_what_compress_does(clip: Clip, config: FlashVidConfig) -> None:
    plan = plan_compression(clip.features, clip.saliency, config)
    video = compress(clip.features, clip.saliency, config)
    assert plan.shape == tuple(clip.features.shape[:2])
    assert sum(plan.segment_lengths) == plan.shape[0]
    assert plan.budgets == (UnitBudget(*literal.budget(config, *plan.shape)),) * plan.shape[0]
    assert torch.equal(plan.kept, video.kept)
    assert torch.equal(plan.apply(clip.features), video.tokens)
    stands = plan.group >= 0
    assert torch.equal(torch.bincount(plan.group[stands], minlength=len(plan.kept)), plan.group_sizes)
    assert torch.equal(plan.group[plan.kept], torch.arange(len(plan.kept)))  # each stands for itself too
    assert torch.equal(plan.root[plan.root], plan.root)
    assert torch.equal(plan.group[plan.root], plan.group)  # a tree stays together
    assert bool((plan.kept // plan.shape[1] == (plan.root // plan.shape[1])[plan.kept]).all())


@usual
@given(any_clips, configs(temporal_threshold=0.2), wide_budgets)
def test_a_group_never_crosses_a_segment(clip: Clip, config: FlashVidConfig, ratio: float) -> None:
    config = FlashVidConfig(**{**vars(config), "retention_ratio": ratio})
    plan = plan_compression(clip.features, clip.saliency, config)
    segment = torch.repeat_interleave(torch.tensor(plan.segment_lengths)).repeat_interleave(plan.shape[1])
    stands = plan.group >= 0
    assert torch.equal(segment[plan.kept[plan.group[stands]]], segment[stands])


@usual
@given(any_clips, configs())
def test_selected_tokens_stay_as_they_are(clip: Clip, config: FlashVidConfig) -> None:
    plan = plan_compression(clip.features, clip.saliency, config)
    chosen = plan.selected.view(-1).nonzero().squeeze(1)
    rows = torch.searchsorted(plan.kept, chosen)
    assert torch.equal(plan.kept[rows], chosen)
    assert torch.equal(plan.root[chosen], chosen)
    assert torch.equal(plan.apply(clip.features)[rows], clip.features.flatten(0, 1)[chosen])
    assert bool((plan.group_sizes[rows] == 1).all())


@usual
@given(clips(), configs(), st.integers(0, 2**31))
def test_applying_a_plan_is_linear(clip: Clip, config: FlashVidConfig, seed: int) -> None:
    plan = plan_compression(clip.features, clip.saliency, config)
    other = torch.randn(clip.features.shape, generator=torch.Generator().manual_seed(seed))
    both = plan.apply(clip.features + 2 * other)
    torch.testing.assert_close(both, plan.apply(clip.features) + 2 * plan.apply(other), rtol=1e-4, atol=1e-4)


@usual
@given(large_clips, configs(tree_mean="members"))
def test_a_token_is_the_mean_of_its_group(clip: Clip, config: FlashVidConfig) -> None:
    plan = plan_compression(clip.features, clip.saliency, config)
    members = torch.nn.functional.one_hot(plan.group + 1, len(plan.kept) + 1)[:, 1:].double()
    means = members.T @ clip.features.flatten(0, 1).double() / plan.group_sizes.unsqueeze(1)
    torch.testing.assert_close(plan.apply(clip.features).double(), means, rtol=1e-5, atol=1e-5)


@usual
@given(clips(), configs(budget="reference", tree_mean="reference"))
def test_reference_budget_accounts_too(clip: Clip, config: FlashVidConfig) -> None:
    num_units, num_tokens, _ = clip.features.shape
    budget = unit_budget(config, num_units, num_tokens)
    video = compress(clip.features, clip.saliency, config)
    assert len(video.kept) >= num_units * budget.kept
    if budget.merged:
        assert int(video.group_sizes.sum()) == num_units * num_tokens


@usual
@given(
    clips(max_tokens=8),
    clips(max_tokens=8),
    configs(do_segment=True, complementary_segment=False, segment_threshold=0.5),
)
def test_scenes_are_compressed_one_by_one(first: Clip, second: Clip, config: FlashVidConfig) -> None:
    """Two clips with a cut between them come out as each on its own, whichever is first."""
    num_tokens = min(first.features.shape[1], second.features.shape[1])
    parts = [Clip(c.features[:, :num_tokens].clone(), c.saliency[:, :num_tokens]) for c in (first, second)]
    parts[0].features[-1], parts[1].features[0] = 1.0, -1.0  # opposite means, both ways round
    parts[0].features[0], parts[1].features[-1] = 1.0, -1.0
    alone = [compress(part.features, part.saliency, config) for part in parts]
    for order in ([0, 1], [1, 0]):
        both = joined(*(parts[i] for i in order))
        together = compress(both.features, both.saliency, config)
        start = len(parts[order[0]].features) * num_tokens
        kept = torch.cat((alone[order[0]].kept, alone[order[1]].kept + start))
        assert torch.equal(together.kept, kept)
        assert torch.equal(together.group_sizes, torch.cat([alone[i].group_sizes for i in order]))
        torch.testing.assert_close(together.tokens, torch.cat([alone[i].tokens for i in order]))
