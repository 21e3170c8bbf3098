"""What compress() is meant to reach, held against what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Criterion", "criteria", "ops_growth"]

_OPS_GROWTH = 1.3  # dispatched operations at 320 units over those at 16
_TIME_GROWTH = 5.0  # seconds at 320 units over those at 80, on a GPU
_GPU_SECONDS = 0.004  # at 80 units
_SPEEDUP = {"cpu": 2.0, "cuda": 15.0}  # over the reference, float32, 80 units


@dataclass(frozen=True)
class Criterion:
    """A measured value and the most or the least that it may be."""

    what: str
    value: float
    rule: str  # "<=" or ">="
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.rule == "<=" else self.value >= self.limit

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def criteria(cases: Sequence[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    """The criteria that these cases allow to be checked; sizes that were not measured are left out."""
    found: list[Criterion] = []
    for kind in dict.fromkeys(case["kind"] for case in cases):
        own = {
            (case["units"], case["dtype"], case["retention"]): case for case in cases if case["kind"] == kind
        }
        found += _of_kind(kind, own, device.split(":", maxsplit=1)[0])
    for growth in ops_growth(cases):
        if growth["units"] == [16, 320]:
            which = ", ".join((growth["kind"], growth["dtype"], f"R={growth['retention']}"))
            what = f"{which}: operations at 320 units / at 16"
            found.append(Criterion(what, growth["ratio"], "<=", _OPS_GROWTH))
    return [criterion.as_json() for criterion in found]


def _of_kind(
    kind: str, cases: dict[tuple[int, str, float], dict[str, Any]], device: str
) -> Iterator[Criterion]:
    full, half = cases.get((80, "float32", 0.1)), cases.get((80, "bfloat16", 0.1))
    if full and "speedup" in full:
        what = f"{kind}: reference's time / ours, 80 units, float32, R=0.1"
        yield Criterion(what, full["speedup"]["of_medians"], ">=", _SPEEDUP[device])
    if full and half:
        ratio = half["ours"]["median"] / full["ours"]["median"]
        yield Criterion(f"{kind}: bfloat16 / float32, 80 units, R=0.1", ratio, "<=", 1.0)
    long = cases.get((320, "float32", 0.1))
    if device == "cuda" and full:
        yield Criterion(f"{kind}: seconds, 80 units", full["ours"]["median"], "<=", _GPU_SECONDS)
    if device == "cuda" and full and long:
        ratio = long["ours"]["median"] / full["ours"]["median"]
        yield Criterion(f"{kind}: 320 units / 80 units", ratio, "<=", _TIME_GROWTH)
    for retention in (0.1, 0.25):
        memory = cases.get((320, "bfloat16", retention), {}).get("memory")
        if memory:
            for name in ("peak_extra_bytes", "resident_growth_bytes"):
                if name in memory:
                    what = f"{kind}: {name}, 320 units, bfloat16, R={retention}"
                    yield Criterion(what, memory[name], "<=", memory["limit_bytes"])


def ops_growth(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Dispatched operations at the most units over those at the fewest, for each kind of clip and setting."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for case in cases:
        groups.setdefault((case["kind"], case["retention"], case["dtype"]), []).append(case)
    return [_growth(group) for group in groups.values()]


def _growth(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    few, many = min(group, key=_units), max(group, key=_units)
    return {
        **{name: few[name] for name in ("kind", "retention", "dtype")},
        "units": [few["units"], many["units"]],
        "ops": [few["ops"], many["ops"]],
        "ratio": many["ops"] / few["ops"],
    }


def _units(case: dict[str, Any]) -> int:
    return int(case["units"])
