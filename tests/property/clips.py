"""Random clips: drifting scenes whose comparisons are never close, and grids where they are exact and tie."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from flashvid import FlashVidConfig

__all__ = ["Clip", "axis_clips", "clips", "configs", "joined", "lengths_of"]


@dataclass(frozen=True)
class Clip:
    features: Tensor  # (T, N, D) float32
    saliency: Tensor  # (T, N) float32


@st.composite
def clips(
    draw: st.DrawFn, max_units: int = 7, max_tokens: int = 14, min_units: int = 1, min_tokens: int = 1
) -> Clip:
    """Scenes that drift: neighbouring units resemble each other more or less closely, some start anew."""
    num_units = draw(st.integers(min_units, max_units))
    num_tokens = draw(st.integers(min_tokens, max_tokens))
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


@st.composite
def axis_clips(draw: st.DrawFn) -> Clip:
    """Tokens along the axes, zero vectors among them, lengths powers of two, few saliencies.

    Cosines are -1, 0 or 1 and every product and mean is exact in float32, so ties are true ties.
    """
    num_units = draw(st.sampled_from([1, 2, 4]))
    num_tokens = draw(st.sampled_from([1, 2, 4, 8]))
    width = draw(st.sampled_from([2, 4]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (num_units, num_tokens)
    axis = torch.nn.functional.one_hot(torch.randint(width, shape, generator=generator), width)
    lengths = torch.tensor(draw(st.sampled_from([(1.0,), (1.0, -1.0), (0.0, 0.5, 1.0, -2.0)])))
    features = axis * lengths[torch.randint(len(lengths), shape, generator=generator)].unsqueeze(-1)
    return Clip(features, torch.randint(4, shape, generator=generator) / 4)


def lengths_of(clip: Clip) -> st.SearchStrategy[list[int]]:
    """Segment lengths, each >= 1, that sum to the clip's units."""
    num_units = len(clip.features)
    cuts = st.sets(st.integers(1, num_units - 1)) if num_units > 1 else st.just(set[int]())
    return cuts.map(lambda cuts: [b - a for a, b in pairwise([0, *sorted(cuts), num_units])])


def joined(*parts: Clip) -> Clip:
    """One clip after the other."""
    return Clip(torch.cat([p.features for p in parts]), torch.cat([p.saliency for p in parts]))


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
