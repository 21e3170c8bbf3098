"""Videos that repeat themselves, where thousands of cosines and distances are equal or nearly so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashvid import FlashVidConfig, compress, plan_compression
from flashvid.compression.merging import best_matches, grow_trees
from flashvid.compression.products import token_products
from flashvid.compression.segments import segment_ids
from tests.oracles import literal
from tests.property.clips import Clip, clips, configs
from tests.property.test_determinism import same

usual = settings(max_examples=60)


@st.composite
def repeating_clips(draw: st.DrawFn, max_units: int = 40) -> Clip:
    """Stills, slides and loops of a few pictures, with equal tokens in several places, blocks of one token,
    empty pictures, or noise no larger than a rounding."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_tokens, num_pictures = draw(st.integers(1, 14)), draw(st.integers(1, 3))
    pictures = torch.randn(num_pictures, num_tokens, 8, generator=generator) + 0.5
    pictures = pictures[:, torch.tensor(draw(_inside(num_tokens)))]
    if draw(st.booleans()):
        pictures[-1] = 0
    order = torch.tensor(draw(_shown(num_pictures, max_units)))
    features = pictures[order]
    noise = draw(st.sampled_from([0.0, 0.0, 1e-7, 1e-3]))
    features = features + noise * torch.randn(features.shape, generator=generator)
    saliency = torch.rand(num_pictures, num_tokens, generator=generator)[order] + 0.01
    return Clip(features, torch.ones_like(saliency) if draw(st.booleans()) else saliency)


def _inside(num_tokens: int) -> st.SearchStrategy[list[int]]:
    """Which token stands at each place of a picture: each its own, one on all, or few in any order."""
    few = st.lists(st.integers(0, min(2, num_tokens - 1)), min_size=num_tokens, max_size=num_tokens)
    return st.just(list(range(num_tokens))) | st.just([0] * num_tokens) | few


def _shown(num_pictures: int, max_units: int) -> st.SearchStrategy[list[int]]:
    """The pictures one after the other, each for some units, or in a loop."""
    most = max_units // num_pictures
    slides = st.lists(st.integers(1, most), min_size=num_pictures, max_size=num_pictures).map(
        lambda times: [picture for picture, count in enumerate(times) for _ in range(count)]
    )
    return slides | st.integers(1, most).map(lambda times: list(range(num_pictures)) * times)


@settings(max_examples=150)
@given(repeating_clips(), configs() | configs(retention_ratio=0.1, temporal_threshold=0.8))
def test_the_budget_is_exact_and_nothing_is_lost(clip: Clip, config: FlashVidConfig) -> None:
    num_units, num_tokens, width = clip.features.shape
    kept, selected = literal.budget(config, num_units, num_tokens)
    plan = plan_compression(clip.features, clip.saliency, config)
    assert len(plan.kept) == num_units * kept
    if kept > selected:
        assert int(plan.group_sizes.sum()) == num_units * num_tokens
        restored = (plan.apply(clip.features).double() * plan.group_sizes.unsqueeze(1)).sum(dim=0)
        torch.testing.assert_close(
            restored, clip.features.double().view(-1, width).sum(dim=0), rtol=1e-4, atol=1e-3
        )


@usual
@given(repeating_clips(), configs(adaptive=True, temporal_threshold=0.8))
def test_adaptive_stays_below_it(clip: Clip, config: FlashVidConfig) -> None:
    num_units, num_tokens, _ = clip.features.shape
    kept, selected = literal.budget(config, num_units, num_tokens)
    plan = plan_compression(clip.features, clip.saliency, config)
    assert kept <= len(plan.kept) <= num_units * kept
    if kept > selected:
        assert int(plan.group_sizes.sum()) == num_units * num_tokens


@usual
@given(repeating_clips(), configs(), st.integers(-6, 6))
def test_the_same_again_scaled_and_in_half_precision(
    clip: Clip, config: FlashVidConfig, exponent: int
) -> None:
    video = compress(clip.features, clip.saliency, config)
    assert same(video, compress(clip.features.clone(), clip.saliency.clone(), config))
    low = compress(clip.features.bfloat16(), clip.saliency, config)
    full = compress(clip.features.bfloat16().float(), clip.saliency, config)
    assert torch.equal(low.kept, full.kept)
    assert torch.equal(low.group_sizes, full.group_sizes)
    config = FlashVidConfig(**{**vars(config), "alpha": 1.0})  # distances of clusters know a scale
    plain, scaled = (
        plan_compression(features, clip.saliency, config)
        for features in (clip.features, clip.features * 2.0**exponent)
    )
    assert torch.equal(plain.kept, scaled.kept)


@usual
@given(repeating_clips(), st.sampled_from([0.05, 0.1, 0.25, 0.5]), st.sampled_from([1.0, 1.25]))
def test_as_many_link_as_may(clip: Clip, ratio: float, expansion: float) -> None:
    """All whose cosine is high enough, or one fewer than the floor of their segment allows; never less."""
    config = FlashVidConfig(retention_ratio=ratio, expansion=expansion)
    plan = plan_compression(clip.features, clip.saliency, config)
    if not plan.budgets[0].merged:
        return
    num_tokens = plan.shape[1]
    products = token_products(clip.features, across=True)
    cosine, _ = best_matches(products, plan.selected)
    segment = segment_ids(plan.segment_lengths, cosine.device)
    can_link = (cosine > config.temporal_threshold) & ~plan.selected
    can_link[0] = False
    can_link[1:] &= (segment[1:] == segment[:-1]).unsqueeze(1)
    own = torch.arange(plan.root.numel()).view(plan.shape)
    linked = plan.root.view(plan.shape) != own
    parts = zip(*(torch.split(mask, plan.segment_lengths) for mask in (can_link, linked)), strict=True)
    for could, did in parts:
        most = len(could) * (num_tokens - plan.budgets[0].kept)
        wanted = int(could.sum())
        assert int(did.sum()) == (wanted if wanted <= most else max(0, most - 1))


@usual
@given(clips(max_units=9), st.sampled_from([-1.0, 0.2, 0.8]), st.data())
def test_without_ties_the_reference_links_alike(clip: Clip, threshold: float, data: st.DataObject) -> None:
    products = token_products(clip.features, across=True)
    num_units, num_tokens = products.shape
    nothing = torch.zeros(products.shape, dtype=torch.bool)
    most = [num_units * data.draw(st.integers(0, num_tokens - 1))]
    ours, theirs = (
        grow_trees(
            products, nothing, [num_units], most_links=most, threshold=threshold, reference_ties=reference
        )
        for reference in (False, True)
    )
    assert torch.equal(ours.parent, theirs.parent)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def still(num_units: int, num_tokens: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    picture = torch.randn(1, num_tokens, width, generator=generator)
    saliency = torch.rand(1, num_tokens, generator=generator)
    return picture.repeat(num_units, 1, 1), saliency.repeat(num_units, 1)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_threads_do_not_choose_among_equal_ones(dtype: torch.dtype) -> None:
    features, saliency = still(40, 64, 192)
    config = FlashVidConfig(retention_ratio=0.1, min_segment_num=1)
    videos = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        videos.append(compress(features.to(dtype), saliency, config))
    assert all(same(videos[0], video) for video in videos[1:])
