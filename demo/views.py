"""Encoded videos and the views of them that the language stage learns from.

Encoding is the dear part, so each video is encoded once and shown many times: rolled in time, cut, and at
another speed. What is in a unit stays as it is; when it happens, and what is true, follows from the view.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from demo.language import Facts
from demo.render import render
from demo.stage_vision import add_noise
from demo.tower import TOKENS_PER_UNIT, Tower
from demo.world import FRAME_RATE, FRAME_SIZE, Scene, random_scene
from flashvid.compression import compress
from flashvid.config import FlashVidConfig

__all__ = [
    "Clip",
    "View",
    "encode_clip",
    "facts_of",
    "frame_times",
    "new_clips",
    "training_view",
    "whole_view",
]

_LONG_UNITS, _SHORT_UNITS = 80, 8


@dataclass
class Clip:
    """One scene sampled once: features (T, 36, D) bfloat16, saliency (T, 36), shown (T, 2, E) events."""

    scene: Scene
    seconds_per_unit: float
    features: Tensor
    saliency: Tensor
    shown: np.ndarray
    kept: tuple[Tensor, Tensor] | None = None  # FlashVID's tokens (K, D) and their global indices (K,)


@dataclass
class View:
    """What one training sequence sees: tokens (K, D) float32, unit and cell of each, and the facts."""

    tokens: Tensor
    units: Tensor
    cells: Tensor
    num_units: int
    seconds_per_unit: float
    facts: Facts


def frame_times(duration_seconds: float, num_frames: int) -> np.ndarray:
    """Instants of num_frames frames spread evenly from the first to the last, on the grid of the mp4 file."""
    last = round(duration_seconds * FRAME_RATE) - 1
    return np.round(np.linspace(0, last, num_frames)) / FRAME_RATE


def encode_clip(tower: Tower, scene: Scene, num_units: int, compression: FlashVidConfig | None) -> Clip:
    """Sample 2 * num_units frames of a scene evenly, encode them with sensor noise, and compress if asked."""
    times = frame_times(scene.duration_seconds, 2 * num_units)
    frames = torch.from_numpy(render(scene, times)).view(num_units, 2, FRAME_SIZE, FRAME_SIZE, 3)
    with torch.no_grad():
        features, saliency = tower(add_noise(tower.patches(frames), _noise_pool()))
    shown = np.array([[event.visible(float(t)) for event in scene.events] for t in times], bool)
    clip = Clip(
        scene,
        scene.duration_seconds / num_units,
        _shelved(features),
        saliency,
        shown.reshape(num_units, 2, len(scene.events)),
    )
    if compression is not None:
        result = compress(features, saliency, compression)
        clip.kept = (_shelved(result.tokens), result.kept)
    return clip


@lru_cache(maxsize=1)
def _noise_pool() -> Tensor:
    return torch.randn(2 * _LONG_UNITS, 4 * TOKENS_PER_UNIT, 3 * 2 * 14 * 14)


def _shelved(tensor: Tensor) -> Tensor:
    """A bfloat16 copy in pages of its own: kept for long inside the heap, it would break that into pieces."""
    pages = mmap.mmap(-1, tensor.numel() * 2)
    return torch.frombuffer(pages, dtype=torch.bfloat16).view(tensor.shape).copy_(tensor)


def new_clips(tower: Tower, rng: np.random.Generator, low_seed: int = 0) -> list[Clip]:
    """A fresh scene as 80 compressed units, and again as 8 to 32 uncompressed units."""
    duration = float(rng.uniform(20, 80))
    scene = random_scene(low_seed + int(rng.integers(2**30)), duration, event_seconds=(1.0, 3.0))
    config = FlashVidConfig(retention_ratio=0.1, expansion=1.0, max_visual_tokens=288)
    if rng.random() < 0.45:
        expansion = float(rng.choice([1.0, 1.25]))
        config = FlashVidConfig(retention_ratio=float(rng.uniform(0.08, 0.18)), expansion=expansion)
    few = _SHORT_UNITS if rng.random() < 0.6 else int(rng.integers(8, 25))
    return [encode_clip(tower, scene, _LONG_UNITS, config), encode_clip(tower, scene, few, None)]


def facts_of(clip: Clip, order: Sequence[int], seconds_per_unit: float) -> Facts | None:
    """What is visible when the clip's units are shown in this order; None if a flash would be seen twice."""
    shown = clip.shown[list(order)].reshape(2 * len(order), -1)
    flashes = []
    for index, event in enumerate(clip.scene.events):
        visible = np.flatnonzero(shown[:, index])
        if len(visible):
            if visible[-1] - visible[0] + 1 > len(visible) + 1:
                return None
            flashes.append((event, int(visible[0] * seconds_per_unit / 2)))
    return Facts(clip.scene.things, tuple(sorted(flashes, key=lambda pair: pair[1])))


def whole_view(clip: Clip) -> View:
    """The clip as it is: compressed if it has been compressed."""
    facts = facts_of(clip, range(len(clip.features)), clip.seconds_per_unit)
    if facts is None:
        raise ValueError(f"scene {clip.scene.seed} shows one flash twice")
    tokens, index = clip.kept if clip.kept is not None else _everything(clip)
    return _view(
        clip, tokens, index, list(range(len(clip.features))), pace=clip.seconds_per_unit, facts=facts
    )


def _everything(clip: Clip) -> tuple[Tensor, Tensor]:
    tokens = clip.features.flatten(0, 1)
    return tokens, torch.arange(len(tokens))


def _view(clip: Clip, tokens: Tensor, index: Tensor, order: list[int], *, pace: float, facts: Facts) -> View:
    """Put kept tokens of the clip's units into a new order; units not in it are left out."""
    new_unit = torch.full((len(clip.features),), -1)
    new_unit[torch.tensor(order)] = torch.arange(len(order))
    units, cells = new_unit[index // TOKENS_PER_UNIT], index % TOKENS_PER_UNIT
    place = units * TOKENS_PER_UNIT + cells
    inside = (units >= 0).nonzero().squeeze(1)
    inside = inside[place[inside].argsort()]
    return View(tokens[inside].float(), units[inside], cells[inside], len(order), pace, facts)


def training_view(clip: Clip, rng: np.random.Generator, num_units: int, max_tokens: int) -> View:
    """A view of num_units units (all, or a stretch) at a random pace, with at most max_tokens tokens."""
    total = len(clip.features)
    while True:
        start = int(rng.integers(total))
        if num_units < total and clip.scene.events and rng.random() < 0.6:
            event = int(rng.integers(len(clip.scene.events)))
            seen = np.flatnonzero(clip.shown[..., event].any(1))
            if len(seen):
                start = int(rng.choice(seen)) - int(rng.integers(num_units))
        order = [(start + step) % total for step in range(num_units)]
        pace = _pace(rng, clip, num_units)
        facts = facts_of(clip, order, pace)
        if facts is not None:
            break
    if clip.kept is not None and rng.random() < 0.8:
        tokens, index = clip.kept
    else:
        tokens, index = _selected(clip, order, rng, max_tokens)
    view = _view(clip, tokens, index, order, pace=pace, facts=facts)
    return _at_most(view, rng, max_tokens)


def _pace(rng: np.random.Generator, clip: Clip, num_units: int) -> float:
    """Seconds per unit: whole videos last 20 to 80 s, more often long; stretches keep a like pace."""
    if num_units == len(clip.features):
        return float(20 + 60 * rng.random() ** 0.7) / num_units
    return min(clip.seconds_per_unit * float(rng.uniform(0.5, 2.0)), 80 / num_units)


def _selected(
    clip: Clip, order: list[int], rng: np.random.Generator, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Simpler token dropping than FlashVID's: by saliency and chance, sometimes with the mean of the rest."""
    count = max(1, min(TOKENS_PER_UNIT, max_tokens // len(order)))
    if count < TOKENS_PER_UNIT or rng.random() < 0.3:
        count = max(1, round(count * rng.uniform(0.4, 1.0)))
    if count >= TOKENS_PER_UNIT:
        return _everything(clip)
    saliency = clip.saliency[order]
    score = saliency.log() + float(rng.choice([0.0, 0.3, 3.0])) * torch.randn_like(saliency)
    chosen = score.argsort(1, descending=True)[:, :count]
    tokens = clip.features[order].float()
    kept = torch.zeros(saliency.shape, dtype=torch.bool).scatter_(1, chosen, True)
    if count > 1 and rng.random() < 0.7:  # the last one stands for all that were not chosen
        last = chosen[:, -1]
        rest = ~kept
        rest[torch.arange(len(order)), last] = True
        weights = rest.float() / rest.sum(1, keepdim=True)
        tokens[torch.arange(len(order)), last] = torch.einsum("un,und->ud", weights, tokens)
    place = torch.tensor(order)[:, None] * TOKENS_PER_UNIT + torch.arange(TOKENS_PER_UNIT)
    return tokens[kept], place[kept]


def _at_most(view: View, rng: np.random.Generator, max_tokens: int) -> View:
    if len(view.tokens) <= max_tokens:
        return view
    some = torch.from_numpy(np.sort(rng.choice(len(view.tokens), max_tokens, replace=False)))
    return View(
        view.tokens[some],
        view.units[some],
        view.cells[some],
        view.num_units,
        view.seconds_per_unit,
        view.facts,
    )
