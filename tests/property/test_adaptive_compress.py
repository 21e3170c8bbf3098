"""Adaptive retention in the whole compression: against the literal one, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashvid import CompressedVideo, FlashVidConfig, compress, plan_compression
from flashvid.config import SelectionMethod, TreeMean
from tests.oracles import adaptive, literal
from tests.property.clips import Clip, axis_clips, clips, configs, joined

any_clips = clips(max_units=9, max_tokens=20) | axis_clips()


def changed(config: FlashVidConfig, **fields: object) -> FlashVidConfig:
    return FlashVidConfig(**{**vars(config), **fields})  # type: ignore[arg-type]


def budget_of(clip: Clip, config: FlashVidConfig) -> tuple[int, int]:
    return literal.budget(config, *clip.features.shape[:2])


def assert_same(one: CompressedVideo, other: CompressedVideo) -> None:
    assert torch.equal(one.kept, other.kept)
    assert torch.equal(one.group_sizes, other.group_sizes)
    assert torch.equal(one.tokens, other.tokens)


def repeated(clip: Clip, times: int) -> Clip:
    """The first unit again and again."""
    return Clip(clip.features[:1].repeat(times, 1, 1), clip.saliency[:1].repeat(times, 1))


def still_end(clip: Clip, times: int) -> Clip:
    return Clip(clip.features[-1:].repeat(times, 1, 1), clip.saliency[-1:].repeat(times, 1))


@given(
    clips(),
    configs(adaptive=True) | configs(adaptive=True, retention_ratio=0.6, alpha=0.3),
    st.sampled_from(["attn_div", "attn", "div"]),  # v2 may weigh by less than 0, where rounding decides
    st.sampled_from(["members", "reference"]),
)
def test_same_as_literal(
    clip: Clip, config: FlashVidConfig, method: SelectionMethod, tree_mean: TreeMean
) -> None:
    config = changed(config, token_selection_method=method, tree_mean=tree_mean)
    features, saliency = clip.features.double().numpy(), clip.saliency.double().numpy()
    for shift in (1e-5, -1e-5):  # where float32 may count one place differently, neither is wrong
        assume(adaptive.allotted(features, config, shift) == adaptive.allotted(features, config))
    expected = adaptive.whole(features, saliency, config)
    video = compress(clip.features, clip.saliency, config)
    assert video.kept.tolist() == expected.kept
    assert video.group_sizes.tolist() == expected.group_sizes
    np.testing.assert_allclose(video.tokens.numpy(), expected.tokens, rtol=1e-4, atol=1e-5)


@settings(max_examples=200)
@given(any_clips, configs(adaptive=True), st.none() | st.integers(9, 60))
def test_never_more_than_the_budget_and_nothing_lost(
    clip: Clip, config: FlashVidConfig, ceiling: int | None
) -> None:
    config = changed(config, max_visual_tokens=ceiling)
    num_units, num_tokens, _ = clip.features.shape
    kept, selected = budget_of(clip, config)
    plan = plan_compression(clip.features, clip.saliency, config)
    assert kept <= len(plan.kept) <= num_units * kept
    assert len(plan.kept) <= (ceiling or num_units * num_tokens)
    assert bool((plan.kept.diff() > 0).all())
    assert 0 <= int(plan.kept.min()) <= int(plan.kept.max()) < num_units * num_tokens
    assert int(plan.group_sizes.min()) >= 1
    if kept == selected:
        assert int(plan.group_sizes.sum()) == len(plan.kept)
    else:
        assert int(plan.group_sizes.sum()) == num_units * num_tokens
        assert int(plan.group.min()) >= 0


@given(clips(max_units=9), configs(adaptive=True, tree_mean="members"))
def test_kept_tokens_add_up_to_all(clip: Clip, config: FlashVidConfig) -> None:
    kept, selected = budget_of(clip, config)
    config = changed(config, alpha=0.0) if kept == selected else config
    video = compress(clip.features, clip.saliency, config)
    restored = (video.tokens.double() * video.group_sizes.unsqueeze(-1)).sum(dim=0)
    torch.testing.assert_close(restored, clip.features.double().sum(dim=(0, 1)), rtol=1e-4, atol=1e-3)


@given(st.integers(1, 8), st.integers(1, 20), configs(), st.integers(0, 2**31))
def test_noise_gives_what_it_gives_without(
    num_units: int, num_tokens: int, config: FlashVidConfig, seed: int
) -> None:
    """In 64 dimensions noise resembles nothing: every token is new."""
    config = changed(config, temporal_threshold=max(0.8, config.temporal_threshold))
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_units, num_tokens, 64, generator=generator)
    saliency = torch.rand(num_units, num_tokens, generator=generator)
    video = compress(features, saliency, changed(config, adaptive=True))
    assert_same(video, compress(features, saliency, config))
    assert len(video.kept) == num_units * literal.budget(config, num_units, num_tokens)[0]


@given(any_clips, configs())
def test_where_nothing_merges_nothing_is_saved(clip: Clip, config: FlashVidConfig) -> None:
    config = changed(config, temporal_threshold=1.0)
    video = compress(clip.features, clip.saliency, changed(config, adaptive=True))
    assert_same(video, compress(clip.features, clip.saliency, config))


@given(clips(), st.integers(2, 30), configs(adaptive=True, temporal_threshold=0.8))
def test_a_frame_repeated_costs_what_one_unit_costs(clip: Clip, times: int, config: FlashVidConfig) -> None:
    """The budget of one unit per segment, and at most one token more for each."""
    still = repeated(clip, times)
    kept, _ = budget_of(still, config)
    plan = plan_compression(still.features, still.saliency, config)
    segments = len(plan.segment_lengths)
    assert segments * kept <= len(plan.kept) <= segments * (kept + 1)


@given(clips(max_units=5), configs(adaptive=True, do_segment=False, temporal_threshold=0.8))
def test_standing_still_at_the_end_costs_nothing(clip: Clip, config: FlashVidConfig) -> None:
    """However long: after two still units the next eighteen cost no token."""
    config = changed(config, token_selection_method="attn_div")  # v2 looks at the whole segment
    short, long = (joined(clip, still_end(clip, times)) for times in (2, 20))
    one, other = (plan_compression(each.features, each.saliency, config) for each in (short, long))
    assert len(one.kept) == len(other.kept)


@given(any_clips, configs(adaptive=True))
def test_same_bits_twice_and_half_precision_decides_alike(clip: Clip, config: FlashVidConfig) -> None:
    half = clip.features.bfloat16()
    low = compress(half, clip.saliency, config)
    full = compress(half.float(), clip.saliency, config)
    assert_same(low, compress(half, clip.saliency, config))
    assert torch.equal(low.kept, full.kept)
    assert torch.equal(low.group_sizes, full.group_sizes)
    torch.testing.assert_close(low.tokens.float(), full.tokens, rtol=2**-7, atol=1e-6)


def edge_cases() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(6, 9, 8, generator=generator)
    return {
        "one unit": noise[:1],
        "one token": noise[:, :1],
        "one of each": noise[:1, :1],
        "identical tokens": noise[:1, :1].expand(6, 9, 8).contiguous(),
        "identical units": noise[:1].expand(6, 9, 8).contiguous(),
        "zeros": torch.zeros(6, 9, 8),
        "zeros in between": torch.cat([noise[:2], torch.zeros(2, 9, 8), noise[2:4]]),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [-1.0, 0.8, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("case", edge_cases())
def test_edges(case: str, alpha: float, threshold: float, dtype: torch.dtype) -> None:
    features = edge_cases()[case].to(dtype)
    num_units, num_tokens, _ = features.shape
    before = features.clone()
    for ratio in (0.05, 0.5, 0.9):
        config = FlashVidConfig(
            retention_ratio=ratio, alpha=alpha, temporal_threshold=threshold, adaptive=True
        )
        video = compress(features, torch.rand(num_units, num_tokens), config)
        kept, selected = literal.budget(config, num_units, num_tokens)
        assert kept <= len(video.kept) <= num_units * kept
        assert video.tokens.dtype == dtype
        assert bool(video.tokens.isfinite().all())
        total = len(video.kept) if kept == selected else num_units * num_tokens
        assert int(video.group_sizes.sum()) == total
    assert torch.equal(features, before)


def test_retention_one_stays_a_bypass() -> None:
    features = torch.randn(1, 5, 8).expand(4, 5, 8).contiguous()
    video = compress(features, torch.rand(4, 5), FlashVidConfig(retention_ratio=1, adaptive=True))
    assert torch.equal(video.tokens, features.view(20, 8))
