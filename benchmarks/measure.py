"""Clocks and counters: seconds by interleaved rounds, dispatched operations, live bytes."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes", "OpCounter", "Seconds", "count_ops", "interleave", "peak_extra_bytes", "stopwatch"]


@dataclass(frozen=True)
class Seconds:
    """Wall seconds of one thing over several rounds; `spread` is the distance between the quartiles."""

    median: float
    min: float
    max: float
    spread: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Seconds:
        low, _, high = quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else (rounds[0],) * 3
        return cls(median(rounds), min(rounds), max(rounds), high - low, tuple(rounds))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def stopwatch(device: torch.device) -> Iterator[Callable[[], float]]:
    """Yields a function that gives the seconds since entry, the device's pending work included."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    yield lambda: now() - start


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def interleave(
    contestants: Mapping[str, Callable[[], Callable[[], object]]],
    *,
    rounds: int,
    device: torch.device,
    warmups: int = 1,
) -> dict[str, Seconds]:
    """Times contestants in turn (a, b, a, b, ...), so that a slow spell of the machine meets all of them.

    Each contestant is a function that prepares a call, untimed, and returns the call, which is timed. The
    first `warmups` rounds are not counted. Garbage collection is off while the clock runs.
    """
    seen: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warmups + rounds):
        for name, prepare in contestants.items():
            call = prepare()
            with _no_garbage_collection(), stopwatch(device) as elapsed:
                call()
                seconds = elapsed()
            if number >= warmups:
                seen[name].append(seconds)
    return {name: Seconds.of(taken) for name, taken in seen.items()}


class OpCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every ATen operation that is dispatched inside the `with`, views included, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.by_name[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operations inside the `with` create, for as long as anything refers to them.

    `peak` is the most bytes alive at once, counted after each operation; storages of `known` tensors and
    views of them count nothing. What a kernel needs inside itself is not seen.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.peak_at = ""
        self._known = {name.cdata: name for name in map(_name, known)}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        self._live = {key: entry for key, entry in self._live.items() if not _is_gone(entry[0])}
        live = sum(size for _, size in self._live.values())
        if live > self.peak:
            self.peak, self.peak_at = live, str(func.overloadpacket)
        return result

    def _follow(self, tensor: Tensor) -> None:
        reference = _name(tensor)
        if reference.cdata not in self._known:
            self._live[reference.cdata] = (reference, tensor.untyped_storage().nbytes())


def _name(tensor: Tensor) -> StorageWeakRef:
    """Its storage, weakly: the address is not used again while the reference is there."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _is_gone(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]


def count_ops(call: Callable[[], object]) -> OpCounter:
    """What `call` dispatched."""
    counter = OpCounter()
    with counter:
        call()
    return counter


def peak_extra_bytes(call: Callable[[], object], known: Sequence[Tensor]) -> int:
    """Most bytes that `call` had alive at once beside `known`; on CUDA as the allocator counted them."""
    device = known[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    live = LiveBytes(known)
    with live:
        call()
    return live.peak
