"""The synthetic world: what a scene is, and how scenes are drawn from a seed.

A scene is one or two coloured shapes that stay or move (wrapping round the edges) over a textured background,
and up to two brief events: another shape, framed on a dark plate, that flashes for one to three seconds.
No two objects of a scene share a colour or a shape, so every question has one answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "COLOURS",
    "FRAME_RATE",
    "FRAME_SIZE",
    "HELD_OUT_PAIRS",
    "MOTIONS",
    "SHAPES",
    "Event",
    "Scene",
    "Thing",
    "random_scene",
]

FRAME_SIZE = 168  # pixels, both sides
FRAME_RATE = 8  # frames per second of the mp4 files; sampled instants lie on this grid
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 235),
    "yellow": (238, 222, 45),
    "purple": (150, 45, 205),
    "orange": (245, 135, 25),
    "white": (245, 245, 245),
    "cyan": (60, 215, 225),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
MOTIONS = ("still", "left", "right", "up", "down")
DIRECTIONS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # (x, y) per motion
# Never seen together in training; reported on their own.
HELD_OUT_PAIRS = frozenset({("red", "star"), ("cyan", "square"), ("purple", "triangle")})


@dataclass(frozen=True)
class Thing:
    """An object that is there for the whole video; centre (x, y) in pixels at second 0, speed in pixels/s."""

    colour: str
    shape: str
    motion: str
    size: int
    x: float
    y: float
    speed: float
    rgb: tuple[int, int, int]

    def centre(self, seconds: float) -> tuple[float, float]:
        """Centre in pixels at an instant, wrapped into the frame."""
        dx, dy = DIRECTIONS[MOTIONS.index(self.motion)]
        shift = self.speed * seconds
        return (self.x + dx * shift) % FRAME_SIZE, (self.y + dy * shift) % FRAME_SIZE


@dataclass(frozen=True)
class Event:
    """A flash: a shape on a dark plate, visible in [start_seconds, end_seconds)."""

    colour: str
    shape: str
    size: int
    plate: int
    x: float
    y: float
    start_seconds: float
    end_seconds: float
    rgb: tuple[int, int, int]

    def visible(self, seconds: float) -> bool:
        """Whether the flash is on at this instant."""
        return self.start_seconds <= seconds < self.end_seconds


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw any instant of one video, and to say what is true about it."""

    seed: int
    duration_seconds: float
    things: tuple[Thing, ...]
    events: tuple[Event, ...]  # by start

    @property
    def items(self) -> tuple[Thing | Event, ...]:
        """All objects, then all flashes."""
        return (*self.things, *self.events)


def random_scene(
    seed: int,
    duration_seconds: float,
    num_events: int | None = None,
    held_out: bool = False,
    event_seconds: tuple[float, float] = (1.0, 3.0),
) -> Scene:
    """Draw a scene from a seed: the same arguments give the same scene.

    held_out: use one of HELD_OUT_PAIRS for one object (never otherwise). num_events: 0 to 2, or None for a
    random number. event_seconds: shortest and longest flash. Raises ValueError for other numbers of events.
    """
    if num_events is not None and not 0 <= num_events <= 2:
        raise ValueError(f"{num_events = } must be 0, 1 or 2; the world has at most two flashes")
    rng = np.random.default_rng([seed, 7])
    num_things = int(rng.integers(1, 3))
    if num_events is None:
        num_events = int(rng.choice(3, p=[0.2, 0.5, 0.3]))
    pairs = _pairs(rng, num_things + num_events, held_out)
    things = _things(rng, pairs[:num_things])
    events = _events(rng, pairs[num_things:], duration_seconds, event_seconds)
    return Scene(seed, duration_seconds, things, events)


def _pairs(rng: np.random.Generator, count: int, held_out: bool) -> list[tuple[str, str]]:
    """Distinct colours and distinct shapes; exactly one held-out pair, or none."""
    while True:
        colours = rng.permutation(list(COLOURS))[:count]
        shapes = rng.permutation(list(SHAPES))[:count]
        pairs = [(str(c), str(s)) for c, s in zip(colours, shapes, strict=True)]
        if sum(pair in HELD_OUT_PAIRS for pair in pairs) == int(held_out):
            return pairs


def _rgb(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    values = np.clip(np.array(COLOURS[colour]) + rng.integers(-10, 11, 3), 0, 255)
    return int(values[0]), int(values[1]), int(values[2])


def _things(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> tuple[Thing, ...]:
    """Objects whose paths rarely overlap, in the order of COLOURS (the order captions use)."""
    pairs = sorted(pairs, key=lambda pair: list(COLOURS).index(pair[0]))
    while True:
        things = tuple(_thing(rng, colour, shape) for colour, shape in pairs)
        if len(things) == 1 or _overlap_share(things[0], things[1]) < 0.2:
            return things


def _thing(rng: np.random.Generator, colour: str, shape: str) -> Thing:
    x, y = rng.uniform(0, FRAME_SIZE, 2)
    motion = MOTIONS[int(rng.integers(len(MOTIONS)))]
    if motion == "still":  # not cut by an edge for ever
        x, y = rng.uniform(32, FRAME_SIZE - 32, 2)
    size, speed = int(rng.integers(40, 61)), float(rng.uniform(10, 16))
    return Thing(colour, shape, motion, size, float(x), float(y), speed, _rgb(rng, colour))


def _overlap_share(a: Thing, b: Thing) -> float:
    hits = 0
    for seconds in range(0, 24):
        gap = np.abs(np.subtract(a.centre(seconds), b.centre(seconds)))
        gap = np.minimum(gap, FRAME_SIZE - gap)
        hits += bool(gap.max() < 0.4 * (a.size + b.size))
    return hits / 24


def _events(
    rng: np.random.Generator,
    pairs: list[tuple[str, str]],
    duration: float,
    length: tuple[float, float],
) -> tuple[Event, ...]:
    """Flashes that do not overlap in time, by start."""
    lengths = [min(float(rng.uniform(*length)), duration / 4) for _ in pairs]
    while True:
        starts = [float(rng.uniform(0, duration - seconds)) for seconds in lengths]
        if len(starts) < 2 or abs(starts[0] - starts[1]) > max(lengths) + 0.5:
            break
    events = []
    for (colour, shape), start, seconds in zip(pairs, starts, lengths, strict=True):
        size = int(rng.integers(38, 49))
        plate = size + int(rng.integers(12, 21))
        x, y = rng.uniform(plate / 2, FRAME_SIZE - plate / 2, 2)
        rgb = _rgb(rng, colour)
        events.append(Event(colour, shape, size, plate, float(x), float(y), start, start + seconds, rgb))
    return tuple(sorted(events, key=lambda event: event.start_seconds))
