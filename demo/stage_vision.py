"""First stage: the vision tower learns colour, shape and motion of each cell through three linear heads."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo.render import Painter
from demo.tower import CELLS, TOKENS_PER_UNIT, Tower
from demo.world import COLOURS, FRAME_SIZE, MOTIONS, SHAPES, Scene, random_scene

__all__ = ["Heads", "UnitBatch", "add_noise", "learning_rate", "measure_vision", "train_vision", "unit_batch"]

FLASH = len(MOTIONS)  # the last class of the motion head; class 0 of every head is "background"
_IGNORED = -100
_HEAD_WEIGHTS = (1.0, 1.5, 1.0)  # shape is learned last
_MAX_SHIFT = 75.0  # pixels between the frames of a pair beyond which wrapping makes the direction ambiguous
_CELL = FRAME_SIZE // CELLS


@dataclass
class UnitBatch:
    """frames (U, 2, S, S, 3) uint8; labels (U, 36, 3) int64: colour, shape, motion (-100 unclear)."""

    frames: Tensor
    labels: Tensor


class Heads(nn.Module):
    """Linear read-outs on the merged tokens; thrown away after the first stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (len(COLOURS) + 1, len(SHAPES) + 1, len(MOTIONS) + 2)
        self.outputs = nn.ModuleList([nn.Linear(width, size) for size in sizes])

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits of colour, shape and motion, each (..., classes)."""
        return [head(features) for head in self.outputs]


def _pair_times(rng: np.random.Generator, scene: Scene) -> list[tuple[float, float]]:
    """Two frame pairs of a scene with one gap, half of them near a flash."""
    gap = 0.125 * max(1, round(float(np.exp(rng.uniform(np.log(0.125), np.log(5.0)))) / 0.125))
    gap = min(gap, scene.duration_seconds / 3)
    pairs = []
    for _ in range(2):
        start = rng.uniform(0, scene.duration_seconds - gap)
        if scene.events and rng.random() < 0.6:
            event = scene.events[int(rng.integers(len(scene.events)))]
            start = rng.uniform(event.start_seconds, event.end_seconds) - gap * int(rng.integers(2))
        start = float(np.clip(start, 0, scene.duration_seconds - gap))
        pairs.append((start, start + gap))
    return pairs


def _labels(scene: Scene, owners: np.ndarray, gap: float) -> np.ndarray:
    """(36, 3) labels from pixel owners (2, S, S): the object covering most of a cell in either frame."""
    number = len(scene.things) + len(scene.events)
    cover = np.zeros((number + 1, TOKENS_PER_UNIT), np.float32)
    for index in range(1, number + 1):
        mine = (owners == index).reshape(2, CELLS, _CELL, CELLS, _CELL).mean((2, 4)).max(0)
        cover[index] = mine.reshape(-1)
    best = cover.argmax(0)
    labels = np.zeros((TOKENS_PER_UNIT, 3), np.int64)
    for index, item in enumerate(scene.items, 1):
        kind = FLASH + 1
        if index <= len(scene.things):
            thing = scene.things[index - 1]
            aliased = thing.motion != "still" and thing.speed * gap > _MAX_SHIFT
            kind = _IGNORED if aliased else MOTIONS.index(thing.motion) + 1
        row = (list(COLOURS).index(item.colour) + 1, SHAPES.index(item.shape) + 1, kind)
        labels[best == index] = row
    top = cover.max(0)
    labels[(top > 0) & (top < 0.1)] = _IGNORED
    return labels


def unit_batch(
    rng: np.random.Generator, num_scenes: int, low_seed: int = 0, held_out: bool = False
) -> UnitBatch:
    """Two frame pairs from each of num_scenes fresh scenes; seeds from [low_seed, low_seed + 2**30)."""
    frames = np.empty((num_scenes * 2, 2, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    labels = np.empty((num_scenes * 2, TOKENS_PER_UNIT, 3), np.int64)
    owners = np.empty((2, FRAME_SIZE, FRAME_SIZE), np.uint8)
    for index in range(num_scenes):
        seed = low_seed + int(rng.integers(2**30))
        scene = random_scene(seed, 40.0, int(rng.integers(1, 3)), held_out)
        painter = Painter(scene)
        for number, times in enumerate(_pair_times(rng, scene)):
            row = index * 2 + number
            for frame, seconds in enumerate(times):
                frames[row, frame] = painter.paint(seconds, owners[frame])
            labels[row] = _labels(scene, owners, times[1] - times[0])
    return UnitBatch(torch.from_numpy(frames), torch.from_numpy(labels))


def add_noise(patches: Tensor, noise_pool: Tensor, strength: float = 4.0) -> Tensor:
    """Sensor noise (up to `strength` of 255) and brightness jitter on normalised patches (U, 144, X)."""
    units = patches.shape[0]
    start = int(torch.randint(noise_pool.shape[0] - units, (1,)))
    level = torch.rand(units, 1, 1) * (strength / 255 / 0.27)
    gain = 1 + 0.04 * torch.randn(units, 1, 1)
    return torch.addcmul(patches * gain, noise_pool[start : start + units], level)


def learning_rate(share: float, peak: float, warm_up: float = 0.03) -> float:
    """Linear warm-up, then cosine decay to 2 % of the peak; share is the elapsed part of the stage."""
    if share < warm_up:
        return peak * (share / warm_up + 0.02)
    done = min(1.0, (share - warm_up) / (1 - warm_up))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def _loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    weight = torch.where(labels[..., 0] > 0, 1.0, 0.15).flatten()
    total = torch.zeros(())
    for index, values in enumerate(logits):
        target = labels[..., index].flatten()
        losses = F.cross_entropy(values.flatten(0, 1), target, reduction="none", ignore_index=_IGNORED)
        used = weight * (target != _IGNORED)
        total = total + _HEAD_WEIGHTS[index] * (losses * used).sum() / used.sum().clamp(min=1)
    return total


def _prefetched(seed: int, num_scenes: int) -> Queue[UnitBatch]:
    """Batches rendered by a thread beside the training."""
    queue: Queue[UnitBatch] = Queue(maxsize=2)
    rng = np.random.default_rng([seed, 19])

    def produce() -> None:
        while True:
            queue.put(unit_batch(rng, num_scenes))

    Thread(target=produce, daemon=True).start()
    return queue


@torch.no_grad()
def measure_vision(tower: Tower, heads: Heads, batch: UnitBatch) -> dict[str, float]:
    """Share of right cells on objects (colour, shape, motion) and on the background."""
    logits = heads(tower.encode(batch.frames)[0])
    on_object = batch.labels[..., 0] > 0
    result = {}
    for index, name in enumerate(("colour", "shape", "motion")):
        truth = batch.labels[..., index]
        used = on_object & (truth != _IGNORED)
        result[name] = float((logits[index].argmax(-1) == truth)[used].float().mean())
    empty = batch.labels[..., 0] == 0
    result["background"] = float((logits[0].argmax(-1) == 0)[empty].float().mean())
    return result


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in scores.items()}


def train_vision(
    visual: Any,
    minutes: float,
    seed: int,
    *,
    num_scenes: int = 32,
    peak: float = 1.2e-3,
    heads: Heads | None = None,
) -> Heads:
    """Train the tower in place for a time budget; prints progress; returns the heads."""
    tower, heads = Tower(visual), heads or Heads(visual.config.out_hidden_size)
    parameters = [p for p in (*visual.parameters(), *heads.parameters()) if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    test = unit_batch(np.random.default_rng(5), 64, low_seed=2**41)
    noise_pool = torch.randn(num_scenes * 3, 144, 1176)
    queue, recent, start, step = (
        _prefetched(seed, num_scenes),
        deque[UnitBatch](maxlen=40),
        time.monotonic(),
        0,
    )
    while (share := (time.monotonic() - start) / (minutes * 60)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(share, peak)
        if step % 2 == 0 or len(recent) < 20:  # every batch is seen about twice, under fresh noise
            recent.append(queue.get())
            batch = recent[-1]
        else:
            batch = recent[int(torch.randint(len(recent), (1,)))]
        features, _ = tower(add_noise(tower.patches(batch.frames), noise_pool))
        loss = _loss(heads(features), batch.labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 25 == 0:
            scores = _rounded(measure_vision(tower, heads, test)) if step % 100 == 0 else ""
            passed = f"vision {(time.monotonic() - start) / 60:5.1f} min step {step}"
            print(f"{passed} loss {loss.item():.3f} {scores}", flush=True)
        step += 1
    print("vision done", step, measure_vision(tower, heads, test), flush=True)
    return heads
