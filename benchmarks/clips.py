"""Made-up visual tokens in the shape of a video's, from a fixed seed."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["KINDS", "Kind", "make_features", "make_saliency"]

Kind = Literal["video", "noise"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_RANK = 24  # directions in which the tokens of one scene differ
_UNITS_PER_SCENE = 13
_UNITS_AT_ONCE = 16  # bounds what making a clip needs beside the clip


def make_features(
    kind: Kind,
    units: int,
    tokens: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Tensor:
    """Features (units, tokens, width) in `dtype` on `device`; the same numbers on every device.

    `video`: scenes of about 13 units. In each, smooth patterns drift over a square grid of tokens, and every
    place has its own level of noise, so that some tokens link to the unit before, others do not, and more
    trees are left than there is room for. `noise`: no token resembles another by 0.8, so nothing links and
    clustering has the most to do; a common offset keeps the units in a few segments, not one each.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.empty(units, tokens, width, dtype=dtype, device=device)
    scene_starts = range(0, units, _UNITS_PER_SCENE)
    offset = 0.5 * torch.randn(width, generator=generator)
    for start in scene_starts:
        scene = _Scene(tokens, width, generator)
        stop = min(start + _UNITS_PER_SCENE, units)
        for first in range(start, stop, _UNITS_AT_ONCE):
            last = min(first + _UNITS_AT_ONCE, stop)
            noise = torch.randn(last - first, tokens, width, generator=generator)
            part = noise + offset if kind == "noise" else scene.units(first - start, last - start, noise)
            features[first:last] = part.to(device=device, dtype=dtype)
    return features


class _Scene:
    """Waves that travel over the grid, each along its own direction of the feature space."""

    def __init__(self, tokens: int, width: int, generator: torch.Generator) -> None:
        side = math.ceil(math.sqrt(tokens))
        place = torch.arange(tokens)
        self._grid = torch.stack((place // side, place % side), dim=1).float() / side  # (N, 2) in [0, 1)
        self._waves = 2 * math.pi * torch.randn(2, _RANK, generator=generator)
        self._phase = 2 * math.pi * torch.rand(_RANK, generator=generator)
        self._speed = 0.15 * torch.randn(_RANK, generator=generator)
        self._basis = torch.randn(_RANK, width, generator=generator) * (2 / _RANK) ** 0.5
        self._common = torch.randn(width, generator=generator) * 0.7
        self._noise = 0.2 + 0.7 * torch.rand(tokens, 1, generator=generator)

    def units(self, start: int, stop: int, noise: Tensor) -> Tensor:
        """Units [start, stop) of the scene: (stop - start, N, D) float32."""
        time = torch.arange(start, stop).view(-1, 1, 1)
        strength = torch.sin(self._grid @ self._waves + self._phase + time * self._speed)  # (F, N, rank)
        signal: Tensor = strength @ self._basis + self._common
        return signal + self._noise * noise


def make_saliency(units: int, tokens: int, *, device: str = "cpu", seed: int = 1) -> Tensor:
    """Attention each token receives, (units, tokens) float32: log-normal, each unit's sum is 1/4.

    A merged token's saliency is the mean of 4 patches', and all patches of a unit share a sum of 1.
    """
    generator = torch.Generator().manual_seed(seed)
    received = torch.randn(units, tokens, generator=generator).exp()
    return (received / received.sum(dim=1, keepdim=True) / 4).to(device)
