"""Stills, slides, loops and empty backgrounds: every token stays close to the one that stands for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashvid import CompressionPlan, FlashVidConfig, plan_compression
from flashvid.config import Budget

_SIDE = 12  # 144 tokens a unit
_DTYPES = (torch.float32, torch.bfloat16)


def _pictures(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Pictures whose neighbouring tokens resemble each other, (count, 144, 64), and their saliency."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 64, 4, 4, generator=generator) + 0.3
    fine = torch.nn.functional.interpolate(coarse, (_SIDE, _SIDE), mode="bicubic", align_corners=True)
    return fine.flatten(2).transpose(1, 2).to(dtype), torch.rand(count, _SIDE**2, generator=generator)


def _shown(kind: str, units: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One picture; three, one after the other; or a screen on which something small goes on and off."""
    unit = torch.arange(units)
    pictures, saliency = _pictures(3, dtype)
    if kind == "screen":
        pictures[1] = pictures[0]
        pictures[1, :6] = pictures[2, :6]
    order = {"still": 0 * unit, "slides": unit * 3 // units, "screen": unit // 5 % 2}[kind]
    return pictures[order], saliency[0 * order if kind == "screen" else order]


def _cosines(plan: CompressionPlan, features: Tensor) -> Tensor:
    """Of each token with the kept token that stands for it."""
    tokens = plan.apply(features).float()[plan.group]
    return torch.nn.functional.cosine_similarity(features.flatten(0, 1).float(), tokens, dim=1)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("ratio", [0.1, 0.25])
@pytest.mark.parametrize("units", [80, 160])
@pytest.mark.parametrize("kind", ["still", "slides", "screen"])
def test_no_token_is_far_from_what_stands_for_it(
    kind: str, units: int, ratio: float, dtype: torch.dtype
) -> None:
    features, saliency = _shown(kind, units, dtype)
    plan = plan_compression(features, saliency, FlashVidConfig(retention_ratio=ratio, expansion=1.0))
    cosines = _cosines(plan, features)
    assert len(plan.kept) == units * plan.budgets[0].kept
    assert float(cosines.mean()) > 0.98
    assert float(cosines.min()) > 0.8


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("units", [34, 80])
def test_a_still_of_unlike_tokens_links_as_far_as_the_floor_allows(units: int, dtype: torch.dtype) -> None:
    """The hardest still: nothing in it resembles anything else."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(1, 144, 256, generator=generator).to(dtype)
    features, saliency = picture.repeat(units, 1, 1), torch.rand(1, 144, generator=generator)
    config = FlashVidConfig(retention_ratio=0.1, expansion=1.0, min_segment_num=1)
    plan = plan_compression(features, saliency.repeat(units, 1), config)
    links = int((plan.root != torch.arange(plan.root.numel())).sum())
    # 15 of 144 tokens have a place and 11 of those are selected, so 133 could link in all units but the first
    assert links == min(units * (144 - 15) - 1, (units - 1) * 133)
    assert float(_cosines(plan, features).mean()) > 0.95


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("ratio", [0.05, 0.25])
@pytest.mark.parametrize("background", ["block", "scattered"])
def test_an_empty_background_leaves_the_places_to_what_stands_before_it(
    background: str, ratio: float, dtype: torch.dtype
) -> None:
    """45 different tokens have room in any segment of twenty units, once the background takes one place."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(144, 256, generator=generator).to(dtype)
    where = torch.arange(144) if background == "block" else torch.randperm(144, generator=generator)
    picture[where[:100]] = picture[where[0]].clone()
    features, saliency = picture.repeat(80, 1, 1), torch.rand(1, 144, generator=generator).repeat(80, 1)
    plan = plan_compression(features, saliency, FlashVidConfig(retention_ratio=ratio, expansion=1.0))
    assert float(_cosines(plan, features).min()) > 0.99


@pytest.mark.parametrize(("budget", "lengths"), [("exact", (20, 20, 20, 20)), ("reference", (1, 1, 1, 77))])
def test_where_forced_cuts_fall(budget: Budget, lengths: tuple[int, ...]) -> None:
    features, saliency = _shown("still", 80, torch.float32)
    plan = plan_compression(features, saliency, FlashVidConfig(budget=budget))
    assert plan.segment_lengths == lengths


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_black_pictures_are_compressed_like_any_other(alpha: float) -> None:
    """Vectors of zeros have no direction: their cosine with anything is 0, so nothing links; no NaN."""
    features = _shown("still", 40, torch.float32)[0]
    features[10:30] = 0
    plan = plan_compression(features, torch.ones(40, 144), FlashVidConfig(retention_ratio=0.1, alpha=alpha))
    assert bool(plan.apply(features).isfinite().all())
    assert len(plan.kept) == 40 * plan.budgets[0].kept
    black = plan.apply(features)[(plan.kept // 144 >= 10) & (plan.kept // 144 < 30)]
    assert not bool(black.any())
