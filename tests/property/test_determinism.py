"""The same clip gives the same bits: whatever the run, seed, threads, order of clips, chunks or strides."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashvid import CompressedVideo, FlashVidConfig, compress
from flashvid.compression.products import unit_chunks
from flashvid.config import SelectionMethod
from tests.property.clips import Clip, clips, configs

few = settings(max_examples=40)
METHODS: list[SelectionMethod] = ["attn_div", "attn_div_v2", "attn", "div"]


def big_clip(num_units: int = 8, num_tokens: int = 64, width: int = 192) -> Clip:
    """Large enough that torch spreads its work over threads."""
    generator = torch.Generator().manual_seed(7)
    scene = torch.randn(num_tokens, width, generator=generator)
    drift = torch.randn(num_units, num_tokens, width, generator=generator).cumsum(0) * 0.3
    return Clip(scene + drift, torch.rand(num_units, num_tokens, generator=generator))


def same(one: CompressedVideo, other: CompressedVideo) -> bool:
    pairs = ((one.kept, other.kept), (one.group_sizes, other.group_sizes), (one.tokens, other.tokens))
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads(method: SelectionMethod, dtype: torch.dtype) -> None:
    clip = big_clip()
    config = FlashVidConfig(retention_ratio=0.2, token_selection_method=method, alpha=0.5)
    videos = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        assert torch.get_num_threads() == count
        videos.append(compress(clip.features.to(dtype), clip.saliency, config))
    assert all(same(videos[0], video) for video in videos[1:])


@few
@given(clips(), configs(), st.integers(0, 2**31))
def test_seeds(clip: Clip, config: FlashVidConfig, seed: int) -> None:
    videos = []
    for number in (seed, seed + 1):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        videos.append(compress(clip.features, clip.saliency, config))
        assert torch.equal(torch.get_rng_state(), before)  # no random number is even drawn
    assert same(*videos)


@few
@given(st.lists(clips(max_units=4, max_tokens=8), min_size=2, max_size=4), configs(), st.data())
def test_order_of_clips(some: list[Clip], config: FlashVidConfig, data: st.DataObject) -> None:
    first = [compress(clip.features, clip.saliency, config) for clip in some]
    for i in data.draw(st.permutations(range(len(some)))):
        assert same(first[i], compress(some[i].features, some[i].saliency, config))


# the fixture only puts back what each example sets
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clips(max_units=9) | clips(min_units=4, min_tokens=8), configs(), st.sampled_from([1, 3000, 9000]))
def test_chunks_of_units(
    monkeypatch: pytest.MonkeyPatch, clip: Clip, config: FlashVidConfig, limit: int
) -> None:
    whole = compress(clip.features, clip.saliency, config)
    with monkeypatch.context() as patch:
        for module in list(sys.modules.values()):
            if "MAP_BYTES" not in getattr(module, "__dict__", {}):
                continue  # asked for a name, some would load others
            patch.setattr(module, "MAP_BYTES", limit)
        assert list(unit_chunks(2, limit)) == [(0, 1), (1, 2)]  # so it is seen
        chunked = compress(clip.features, clip.saliency, config)
    assert torch.equal(whole.kept, chunked.kept)
    assert torch.equal(whole.group_sizes, chunked.group_sizes)
    torch.testing.assert_close(whole.tokens, chunked.tokens)


def strided(tensor: Tensor) -> Tensor:
    """The same numbers with gaps between them in memory, and units and tokens the other way round."""
    spread = torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1).transpose(0, 1).contiguous()
    return spread.transpose(0, 1)[..., 0]


@few
@given(clips(), configs(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_strides(clip: Clip, config: FlashVidConfig, dtype: torch.dtype) -> None:
    features = clip.features.to(dtype)
    assert torch.equal(strided(features), features)
    plain = compress(features, clip.saliency, config)
    assert same(plain, compress(strided(features), strided(clip.saliency), config))


@few
@given(clips(max_units=1), configs(), st.integers(2, 5))
def test_expanded_inputs(clip: Clip, config: FlashVidConfig, num_units: int) -> None:
    """A still picture held for some units without a copy of it."""
    features = clip.features.expand(num_units, -1, -1)
    saliency = clip.saliency.expand(num_units, -1)
    before = clip.features.clone(), clip.saliency.clone()
    assert same(compress(features, saliency, config), compress(features.clone(), saliency.clone(), config))
    assert torch.equal(clip.features, before[0])
    assert torch.equal(clip.saliency, before[1])


@few
@given(clips(), configs(), st.sampled_from([torch.bfloat16, torch.float16]))
def test_half_precision_decides_like_the_same_numbers_in_float32(
    clip: Clip, config: FlashVidConfig, dtype: torch.dtype
) -> None:
    half = clip.features.to(dtype)
    low = compress(half, clip.saliency, config)
    full = compress(half.float(), clip.saliency, config)
    assert low.tokens.dtype == dtype
    assert torch.equal(low.kept, full.kept)
    step = torch.finfo(dtype).eps  # sums in another order may fall on the other side of a rounding
    torch.testing.assert_close(low.tokens, full.tokens.to(dtype), rtol=step, atol=1e-6)
