"""Who is killed, and when: decided by a seed, carried out on the descendants of one driver only."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

import psutil

from tests.chaos.jobs import Driver, title_of

__all__ = ["Blow", "Kind", "Round", "fight", "find", "plan_kinds", "plan_round", "settle"]

_STALLED_SECONDS = 120.0  # without the awaited progress a blow falls anyway
_END_SECONDS = 180.0  # of a driver whose coordinator is gone
_BUSY_SECONDS = 1.0  # to wait for a victim to be at work
_WORD = {
    "coordinator": "ray::Coordinator",
    "worker": "ray::GpuWorker",
    "decode_child": "pipeline.decoding.child_main",
}


class Kind(str, Enum):
    """What a blow hits."""

    DRIVER = "driver"
    COORDINATOR = "coordinator"
    WORKER = "worker"
    DECODE_CHILD = "decode_child"


@dataclass(frozen=True)
class Blow:
    """One SIGKILL: once ``after_settled`` videos of this round are done, and ``delay_seconds`` later.

    ``after_settled`` None: that many seconds after the victim's start.
    """

    kind: Kind
    after_settled: int | None
    delay_seconds: float


@dataclass
class Round:
    """What happened in one round. ``left``: all that the driver had started, dead or about to die."""

    hits: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    left: list[psutil.Process] = field(default_factory=list)
    exit_status: int = 0


def plan_kinds(chance: random.Random, kinds: Sequence[Kind], videos: int) -> tuple[Blow, ...]:
    """A blow to each of these, in this order, while so many videos are done."""
    moments = sorted(chance.randint(0, videos) for _ in kinds)
    return tuple(Blow(kind, at, chance.uniform(0, 0.4)) for kind, at in zip(kinds, moments, strict=True))


def plan_round(chance: random.Random, videos_per_round: int) -> tuple[Blow, ...]:
    """Blows in order of time; the last one ends the round, because driver or coordinator are gone."""
    last = chance.choice((Kind.DRIVER, Kind.COORDINATOR))
    if chance.random() < 0.2:  # while everything is still starting
        longest = 6.0 if last is Kind.DRIVER else 2.0
        return (Blow(last, None, chance.uniform(0.0, longest)),)
    kinds = [chance.choice((Kind.WORKER, Kind.DECODE_CHILD)) for _ in range(chance.randint(0, 2))]
    moments = sorted(chance.randint(0, videos_per_round) for _ in kinds)
    blows = [Blow(kind, at, chance.uniform(0, 0.4)) for kind, at in zip(kinds, moments, strict=True)]
    at = chance.randint(moments[-1] if moments else 0, videos_per_round)
    return (*blows, Blow(last, at, chance.uniform(0, 0.6)))


def find(driver: Driver, kind: Kind) -> list[psutil.Process]:
    """Living processes of a kind among the driver's own descendants."""
    descendants = driver.descendants()
    if kind is Kind.DRIVER:
        return [psutil.Process(driver.pid)] if driver.running else []
    return [process for process in descendants if _WORD[kind.value] in title_of(process)]


def fight(driver: Driver, blows: tuple[Blow, ...], chance: random.Random) -> Round:
    """Carry out a plan; what the driver does about it is another matter."""
    result = Round()
    for blow in blows:
        _await_moment(driver, blow)
        (result.hits if _strike(driver, blow.kind, chance) else result.missed)[blow.kind.value] += 1
    return result


def settle(driver: Driver, result: Round) -> Round:
    """Wait for the end of a driver that was hit; whatever it has started may live a little longer."""
    if not result.hits[Kind.DRIVER.value] and not result.hits[Kind.COORDINATOR.value]:
        driver.descendants()
        if driver.running:  # nothing of what should end the round was there to be hit
            driver.signal(signal.SIGKILL)
            result.hits[Kind.DRIVER.value] += 1
    result.exit_status = driver.wait(_END_SECONDS)
    result.left = driver.descendants()
    return result


def _await_moment(driver: Driver, blow: Blow) -> None:
    """Until there is progress enough and a victim, then the blow's delay; not for ever."""
    deadline = time.monotonic() + _STALLED_SECONDS
    wanted = blow.after_settled or 0
    while driver.running and driver.settled < wanted and time.monotonic() < deadline:
        driver.descendants()
        time.sleep(0.2)
    while driver.running and not find(driver, blow.kind) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(blow.delay_seconds)


def _strike(driver: Driver, kind: Kind, chance: random.Random) -> bool:
    """Whether a victim was there to be hit; one that is just being replaced is waited for."""
    deadline = time.monotonic() + _STALLED_SECONDS
    while driver.running and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess, IndexError):
            _when_busy(chance.choice(find(driver, kind))).kill()
            return True
        time.sleep(0.05)
    return False


def _when_busy(process: psutil.Process) -> psutil.Process:
    """The process, if possible at a moment when it works: decode children mostly wait."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while process.status() != psutil.STATUS_RUNNING and time.monotonic() < deadline:
        time.sleep(0.005)
    return process
