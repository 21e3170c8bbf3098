"""Random clips whose comparisons are never so close that float32 and float64 could disagree by accident."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from flashvid import FlashVidConfig

__all__ = ["Clip", "clips", "configs"]


@dataclass(frozen=True)
class Clip:
    features: Tensor  # (T, N, D) float32
    saliency: Tensor  # (T, N) float32


@st.composite
def clips(draw: st.DrawFn, max_units: int = 7, max_tokens: int = 14) -> Clip:
    """Scenes that drift: neighbouring units resemble each other more or less closely, some start anew."""
    num_units = draw(st.integers(1, max_units))
    num_tokens = draw(st.integers(1, max_tokens))
    noise = draw(st.sampled_from([0.05, 0.3, 1.0]))
    cut_share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (num_tokens, 8)
    scene = torch.randn(shape, generator=generator) + 0.5
    units = []
    for _ in range(num_units):
        if float(torch.rand((), generator=generator)) < cut_share:
            scene = torch.randn(shape, generator=generator)
        scene = scene + noise * torch.randn(shape, generator=generator)
        units.append(scene)
    saliency = torch.rand(num_units, num_tokens, generator=generator) + 0.01
    return Clip(torch.stack(units), saliency)


def configs(**fixed: object) -> st.SearchStrategy[FlashVidConfig]:
    choices: dict[str, st.SearchStrategy[object]] = {
        "retention_ratio": st.sampled_from([0.05, 0.1, 0.2, 0.35, 0.6, 0.9]),
        "do_segment": st.booleans(),
        "segment_threshold": st.sampled_from([0.0, 0.5, 0.9]),
        "min_segment_num": st.integers(1, 9),
        "complementary_segment": st.booleans(),
        "token_selection_method": st.sampled_from(["attn_div", "attn_div_v2", "attn", "div"]),
        "alpha": st.sampled_from([0.0, 0.3, 0.7, 1.0]),
        "temporal_threshold": st.sampled_from([-1.0, 0.2, 0.8, 1.0]),
        "expansion": st.sampled_from([1.0, 1.25, 1.5]),
    }
    choices |= {name: st.just(value) for name, value in fixed.items()}
    return st.builds(FlashVidConfig, **choices)
