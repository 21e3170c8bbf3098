"""compress() against the literal oracle and the published reference: `python -m benchmarks.compression`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.clips import KINDS
from benchmarks.criteria import criteria, ops_growth
from benchmarks.machine import machine_facts
from benchmarks.measure import Seconds, count_ops, interleave, peak_extra_bytes
from benchmarks.memory import resident_growth_bytes
from benchmarks.oracle import compare
from benchmarks.phases import COMPRESSION, timed_stages
from benchmarks.reference import Reference
from benchmarks.tables import compression_table, criteria_table, save
from flashvid import CompressedVideo, FlashVidConfig, compress

__all__ = ["Settings", "main", "measure_together"]

_EXTRA_BYTES = 512 * 10**6  # allowed beside the features' own size; in the smaller reading of a megabyte
_MOST_PHASE_ROUNDS = 3


@dataclass(frozen=True)
class Settings:
    """How to measure. oracle_units: sizes at which the literal oracle runs too, in float32."""

    device: str = "cpu"
    threads: int = 2
    rounds: int = 7
    reference: Reference | None = None
    oracle_units: tuple[int, ...] = ()
    with_memory: bool = True


@dataclass(frozen=True)
class _Run:
    """A case with its inputs."""

    case: Case
    features: Tensor
    saliency: Tensor

    def __call__(self) -> CompressedVideo:
        return compress(self.features, self.saliency, self.case.config)


def measure_together(cases: Sequence[Case], settings: Settings) -> list[dict[str, Any]]:
    """Everything about cases that take turns on the clock, usually one clip in several dtypes; for JSON."""
    runs = [_Run(case, *case.inputs(settings.device)) for case in cases]
    timings = _timings(runs, settings)
    return [_facts(run, settings) | taken for run, taken in zip(runs, timings, strict=True)]


def _facts(run: _Run, settings: Settings) -> dict[str, Any]:
    """What holds for a case beside its seconds."""
    case, counter = run.case, count_ops(run)
    result: dict[str, Any] = {**vars(case), "feature_bytes": case.feature_bytes, "kept": len(run().kept)}
    result |= {"ops": counter.total, "ops_by_name": dict(counter.by_name.most_common(12))}
    result["phase_seconds"] = _phases(run, min(settings.rounds, _MOST_PHASE_ROUNDS))
    if settings.with_memory:
        result["memory"] = _memory(run, settings)
    if case.dtype == "float32" and settings.reference:
        result["agreement"] = _agreement(run, settings.reference)
    if case.dtype == "float32" and case.units in settings.oracle_units:
        result["oracle"] = compare(run(), run.features, run.saliency, case.config)
    return result


def _timings(runs: Sequence[_Run], settings: Settings) -> list[dict[str, Any]]:
    contestants: dict[str, Callable[[], Callable[[], object]]] = {}
    for number, run in enumerate(runs):
        contestants[f"ours {number}"] = partial(_same, run)
        if settings.reference is not None:
            prepare = partial(settings.reference.prepare, run.features, run.saliency, run.case.config)
            contestants[f"reference {number}"] = prepare
    seconds = interleave(contestants, rounds=settings.rounds, device=runs[0].features.device)
    return [
        _summary(seconds[f"ours {number}"], seconds.get(f"reference {number}")) for number in range(len(runs))
    ]


def _same(run: _Run) -> _Run:
    return run


def _summary(ours: Seconds, reference: Seconds | None) -> dict[str, Any]:
    summary: dict[str, Any] = {"ours": ours.as_json()}
    if reference is not None:
        summary |= {"reference": reference.as_json(), "speedup": _speedup(ours, reference)}
    return summary


def _speedup(ours: Seconds, other: Seconds) -> dict[str, float]:
    """How many times as long the other takes: by medians, by minima, and in the worst single round."""
    pairs = zip(other.rounds, ours.rounds, strict=True)
    return {
        "of_medians": other.median / ours.median,
        "of_minima": other.min / ours.min,
        "worst_round": min(theirs / own for theirs, own in pairs),
    }


def _agreement(run: _Run, reference: Reference) -> dict[str, int]:
    """How many kept tokens are the same, with ours told to copy the reference's budget and tree means."""
    ratio = run.case.retention
    config = FlashVidConfig(retention_ratio=ratio, budget="reference", tree_mean="reference")
    ours = {*compress(run.features, run.saliency, config).kept.tolist()}
    with reference.without_noise():
        theirs = {*reference.prepare(run.features, run.saliency, config)()[1].tolist()}
    return {"kept_ours": len(ours), "kept_reference": len(theirs), "in_common": len(ours & theirs)}


def _phases(run: _Run, rounds: int) -> dict[str, float]:
    """Median seconds of each stage."""
    seen = [timed_stages(run, COMPRESSION, run.features.device) for _ in range(rounds)]
    return {stage: median(one[stage] for one in seen) for stage in seen[0]}


def _memory(run: _Run, settings: Settings) -> dict[str, int]:
    case = run.case
    found = {"limit_bytes": case.feature_bytes + _EXTRA_BYTES}
    found["peak_extra_bytes"] = peak_extra_bytes(run, (run.features, run.saliency))
    if settings.device == "cpu" and sys.platform == "linux":
        found["resident_growth_bytes"] = resident_growth_bytes(
            case.kind,
            case.units,
            case.tokens,
            case.width,
            retention=case.retention,
            dtype=case.dtype,
            threads=settings.threads,
        )
    return found


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[16, 32, 80, 160, 320])
    parser.add_argument("--tokens", type=int, default=256, help="per unit")
    parser.add_argument("--width", type=int, default=3584, help="of a token")
    parser.add_argument("--retention", type=float, nargs="+", default=[0.1, 0.25])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--reference", type=Path, help="checkout of the published reference code")
    parser.add_argument("--oracle-units", type=int, nargs="*", default=[16], help="where the oracle runs")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out (quicker)")
    parser.add_argument(
        "-o", "--output", type=Path, help="JSON file; a table of the same name goes beside it"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for, prints a line per case, writes JSON and a table."""
    wanted = _parse(arguments)
    torch.set_num_threads(wanted.threads)
    settings = Settings(
        device=wanted.device,
        threads=wanted.threads,
        rounds=wanted.rounds,
        reference=Reference(wanted.reference) if wanted.reference else None,
        oracle_units=tuple(wanted.oracle_units),
        with_memory=not wanted.no_memory,
    )
    machine = machine_facts(torch.device(wanted.device))
    results = []
    for kind, retention, units in product(wanted.kind, wanted.retention, wanted.units):
        cases = [Case(kind, units, wanted.tokens, wanted.width, retention, dtype) for dtype in wanted.dtype]
        measured = measure_together(cases, settings)
        print("\n".join(compression_table(measured).splitlines()[2:]), flush=True)
        results += measured
    reached = criteria(results, wanted.device)
    summary = {
        "benchmark": "compression",
        "machine": machine,
        "rounds": settings.rounds,
        "reference_sha256": settings.reference.sha256 if settings.reference else None,
        "criteria": reached,
        "ops_growth": ops_growth(results),
        "cases": results,
    }
    tables = (
        [compression_table(results), criteria_table(reached)] if reached else [compression_table(results)]
    )
    save(summary, "\n\n".join(tables), wanted.output)


if __name__ == "__main__":
    main()
