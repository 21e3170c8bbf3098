"""Edge cases and promises of compress() that random clips do not reach."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flashvid import CompressedVideo, FlashVidConfig, compress, plan_compression
from flashvid.arithmetic import unit_budget
from flashvid.compression.merging import Forest, tree_weights
from flashvid.config import SelectionMethod, TreeMean

METHODS: list[SelectionMethod] = ["attn_div", "attn_div_v2", "attn", "div"]


def _clip(num_units: int = 6, num_tokens: int = 16, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(num_tokens, width, generator=generator)
    drift = torch.randn(num_units, num_tokens, width, generator=generator).cumsum(0) * 0.3
    return scene + drift, torch.rand(num_units, num_tokens, generator=generator)


def _check(video: CompressedVideo, features: Tensor) -> None:
    assert video.tokens.dtype == features.dtype
    assert video.tokens.shape == (len(video.kept), features.shape[-1])
    assert bool(video.tokens.isfinite().all())
    assert bool((video.kept.diff() > 0).all())
    assert video.kept.dtype == video.group_sizes.dtype == torch.int64
    assert not video.tokens.requires_grad


@pytest.mark.parametrize("shape", [(1, 16), (6, 1), (1, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_small_shapes(shape: tuple[int, int], method: SelectionMethod, alpha: float) -> None:
    features, saliency = _clip(*shape)
    config = FlashVidConfig(retention_ratio=0.5, token_selection_method=method, alpha=alpha)
    video = compress(features, saliency, config)
    _check(video, features)
    if unit_budget(config, *shape).merged:
        assert int(video.group_sizes.sum()) == shape[0] * shape[1]


def test_ties_go_to_the_lowest_index() -> None:
    """One-hot tokens are all equally far apart, exactly, so only the index can decide."""
    features = torch.eye(8).unsqueeze(0)
    for method in METHODS:
        config = FlashVidConfig(retention_ratio=0.5, expansion=1, alpha=1.0, token_selection_method=method)
        assert compress(features, torch.ones(1, 8), config).kept.tolist() == [0, 1, 2, 3]
    config = FlashVidConfig(retention_ratio=0.5, expansion=1, alpha=0.0)
    assert compress(features, torch.ones(1, 8), config).kept.tolist() == [0, 1, 2, 3]


def test_a_threshold_of_one_links_nothing_even_between_equal_units() -> None:
    features = _clip(1)[0].expand(4, -1, -1)
    saliency = torch.ones(4, 16)
    linked = compress(features, saliency, FlashVidConfig(retention_ratio=0.25, alpha=0.0, do_segment=False))
    apart = plan_compression(
        features,
        saliency,
        FlashVidConfig(retention_ratio=0.25, alpha=0.0, do_segment=False, temporal_threshold=1),
    )
    units = (apart.kept // 16)[apart.group].view(4, 16)
    assert torch.equal(units, torch.arange(4).unsqueeze(1).expand(4, 16))
    assert int(linked.group_sizes.max()) >= 4


@pytest.mark.parametrize(("tree_mean", "factor"), [("members", 1.0), ("reference", 2.5)])
def test_a_chain_of_five_equal_tokens_is_one_times_the_token(tree_mean: TreeMean, factor: float) -> None:
    """The reference divides it by the root and its only direct child."""
    chain = Forest(root=torch.zeros(5, dtype=torch.int64), parent=torch.tensor([0, 0, 1, 2, 3]))
    assert float(tree_weights(chain, tree_mean).sum()) == pytest.approx(factor)


def _edges() -> dict[str, tuple[Tensor, Tensor, dict[str, Any]]]:
    """Name -> features, saliency, settings."""
    plain, saliency = _clip()
    zero = plain.clone()
    zero[:, 3] = 0
    return {
        "one unit": (plain[:1], saliency[:1], {}),
        "one token per unit": (plain[:, :1], saliency[:, :1], {}),
        "one token": (plain[:1, :1], saliency[:1, :1], {}),
        "every unit a segment": (plain, saliency, {"min_segment_num": 6}),
        "one segment": (plain, saliency, {"do_segment": False}),
        "all tokens equal": (torch.ones(6, 16, 8), torch.ones(6, 16), {}),
        "all tokens zero": (torch.zeros(6, 16, 8), torch.ones(6, 16), {}),
        "a zero token in each unit": (zero, saliency, {}),
        "no saliency anywhere": (plain, torch.zeros(6, 16), {}),
        "equal units": (plain[:1].expand(6, -1, -1), saliency, {}),
        "room for everything": (plain, saliency, {"retention_ratio": 0.9}),
        "nothing links": (plain, saliency, {"temporal_threshold": 1.0}),
        "above every cosine": (plain[:1].expand(6, -1, -1), saliency, {"temporal_threshold": 7.5}),
        "everything would link": (plain, saliency, {"temporal_threshold": -1.0}),
        "nothing selected": (plain, saliency, {"alpha": 0.0}),
        "nothing merged": (plain, saliency, {"alpha": 1.0}),
        "one place per unit": (plain, saliency, {"max_visual_tokens": 6}),
    }


@pytest.mark.parametrize("edge", _edges())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grad", [False, True])
def test_edges(edge: str, dtype: torch.dtype, method: SelectionMethod, grad: bool) -> None:
    """Sums close, values are means, inputs stay as they were: also where there is hardly anything to do."""
    features, saliency, settings = _edges()[edge]
    features, saliency = features.to(dtype).requires_grad_(grad), saliency.requires_grad_(grad)
    before = features.detach().clone(), saliency.detach().clone()
    config = FlashVidConfig(**{"retention_ratio": 0.25, "token_selection_method": method, **settings})
    video = compress(features, saliency, config)
    plan = plan_compression(features, saliency, config)
    _check(video, features)
    num_units, num_tokens, width = features.shape
    assert len(video.kept) == num_units * unit_budget(config, num_units, num_tokens).kept
    if unit_budget(config, num_units, num_tokens).merged:
        assert int(video.group_sizes.sum()) == num_units * num_tokens
    rows = features.detach().float().reshape(-1, width)
    for token, number in zip(video.tokens, range(len(video.kept)), strict=True):
        torch.testing.assert_close(token, rows[plan.group == number].mean(dim=0).to(dtype))
    assert torch.equal(features.detach(), before[0])
    assert torch.equal(saliency.detach(), before[1])


def test_room_for_everything_gives_the_same_bits() -> None:
    features, saliency = _clip()
    video = compress(features, saliency, FlashVidConfig(retention_ratio=0.9))
    assert torch.equal(video.tokens, features.view(-1, 8))
    assert bool((video.group_sizes == 1).all())


def test_every_unit_its_own_segment() -> None:
    features, saliency = _clip()
    plan = plan_compression(features, saliency, FlashVidConfig(retention_ratio=0.3, min_segment_num=6))
    assert plan.segment_lengths == (1,) * 6
    assert torch.equal((plan.kept // 16)[plan.group], torch.arange(96) // 16)


class _CountOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _operations(num_units: int, method: SelectionMethod, min_segments: int) -> int:
    features, saliency = _clip(num_units, 24)
    config = FlashVidConfig(
        retention_ratio=0.2, alpha=0.5, token_selection_method=method, min_segment_num=min_segments
    )
    with _CountOperations() as counter:
        compress(features, saliency, config)
    return counter.count


@pytest.mark.parametrize("method", METHODS)
def test_operations_do_not_grow_with_units_or_segments(method: SelectionMethod) -> None:
    few = _operations(8, method, 2)
    assert few > 50  # the counter sees them
    # pointer jumping takes log2 of the longest segment
    assert _operations(64, method, 2) <= few + 8
    assert _operations(64, method, 20) <= few + 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bypass_is_the_same_bits(dtype: torch.dtype) -> None:
    features = _clip()[0].to(dtype)
    features[0, 0, 0] = -0.0
    video = compress(features, None, FlashVidConfig(retention_ratio=1, token_selection_method="div"))
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(video.tokens.view(integers), features.reshape(-1, 8).view(integers))
    assert torch.equal(video.kept, torch.arange(96))


def test_autocast_does_not_reach_the_decisions() -> None:
    features, saliency = _clip(8, 40, 64)
    config = FlashVidConfig(retention_ratio=0.2)
    plain = compress(features, saliency, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (features[0] @ features[0].T).dtype == torch.bfloat16  # autocast is on
        under = compress(features, saliency, config)
    assert torch.equal(plain.kept, under.kept)
    assert torch.equal(plain.tokens, under.tokens)


def test_without_places_for_merging_only_the_selected_stay() -> None:
    features, saliency = _clip()
    plan = plan_compression(features, saliency, FlashVidConfig(retention_ratio=0.25, alpha=1.0))
    assert torch.equal(plan.kept, plan.selected.view(-1).nonzero().squeeze(1))
    assert int((plan.group < 0).sum()) == 96 - len(plan.kept)
    assert bool((plan.group_sizes == 1).all())
    assert torch.equal(plan.apply(features), features.view(-1, 8)[plan.kept])


@pytest.mark.parametrize("ceiling", [6, 11, 12, 20, 35])
def test_the_ceiling_holds(ceiling: int) -> None:
    features, saliency = _clip()
    video = compress(features, saliency, FlashVidConfig(retention_ratio=0.5, max_visual_tokens=ceiling))
    assert len(video.kept) == ceiling // 6 * 6


def test_the_ceiling_is_not_silently_broken_by_the_bypass() -> None:
    features, saliency = _clip()
    assert (
        len(compress(features, saliency, FlashVidConfig(retention_ratio=1, max_visual_tokens=96)).kept) == 96
    )
    with pytest.raises(ValueError, match="more than max_visual_tokens=95"):
        compress(features, saliency, FlashVidConfig(retention_ratio=1, max_visual_tokens=95))


def test_a_plan_serves_other_features_of_its_shape() -> None:
    features, saliency = _clip()
    plan = plan_compression(features, saliency, FlashVidConfig(retention_ratio=0.2))
    ones = torch.ones(6, 16, 3, dtype=torch.float16)
    assert torch.equal(plan.apply(ones), torch.ones(len(plan.kept), 3, dtype=torch.float16))
    with pytest.raises(ValueError, match="do not fit a plan"):
        plan.apply(features[:5])


def test_the_configuration_is_left_alone() -> None:
    features, saliency = _clip()
    config = FlashVidConfig(retention_ratio=0.2)
    before = dataclasses.asdict(config)
    compress(features, saliency, config)
    assert dataclasses.asdict(config) == before


def test_whatever_the_caller_has_set_for_products_stays_set() -> None:
    """The newer switch makes torch refuse to tell the older setting; compression copes with either."""
    switch = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), switch.fp32_precision
    config = FlashVidConfig(retention_ratio=0.2)
    try:
        torch.set_float32_matmul_precision("medium")
        compress(*_clip(), config)
        assert torch.get_float32_matmul_precision() == "medium"
        torch.set_float32_matmul_precision("highest")
        switch.fp32_precision = "tf32"
        compress(*_clip(), config)
        assert switch.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before[0])
        switch.fp32_precision = before[1]


def _refusals() -> list[tuple[str, Tensor, Tensor | None, type[Exception]]]:
    features, saliency = _clip()
    broken, spoilt = features.clone(), saliency.clone()
    broken[2, 3, 4], spoilt[1, 1] = torch.nan, torch.inf
    return [
        ("must be a tensor of bfloat16", features.double(), saliency, TypeError),
        ("must be a tensor of bfloat16", features.int(), saliency, TypeError),
        (r"must be \(T, N, D\)", features[0], saliency, ValueError),
        (r"must be \(T, N, D\)", features[:0], saliency[:0], ValueError),
        ("features must be finite", broken, saliency, ValueError),
        ("needs token_selection_method='div'", features, None, ValueError),
        (r"must be \(T, N\) = \(6, 16\)", features, saliency[:, :15], ValueError),
        ("must be a tensor of float32", features, saliency.long(), TypeError),
        ("saliency must be finite", features, spoilt, ValueError),
        ("saliency is on meta", features, saliency.to("meta"), ValueError),
    ]


@pytest.mark.parametrize(("message", "features", "saliency", "error"), _refusals())
def test_refuses(message: str, features: Tensor, saliency: Tensor | None, error: type[Exception]) -> None:
    with pytest.raises(error, match=message):
        compress(features, saliency, FlashVidConfig(retention_ratio=0.2))


def test_there_is_no_plan_for_the_bypass() -> None:
    with pytest.raises(ValueError, match=r"call compress\(\)"):
        plan_compression(*_clip(), FlashVidConfig(retention_ratio=1))
