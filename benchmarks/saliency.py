"""The cost of saliency against the whole attention map: `python -m benchmarks.saliency`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine_facts
from benchmarks.measure import interleave, peak_extra_bytes
from benchmarks.tables import saliency_table, save
from flashvid.inside import received_attention

__all__ = ["main", "measure_saliency", "whole_map"]


def whole_map(query: Tensor, key: Tensor, units: int, scaling: float) -> Tensor:
    """The plain way: one map of all units at once, softmax, mean over heads and queries: (S,) float32."""
    shape = (units, -1, *query.shape[1:])
    q, k = (part.view(shape).transpose(1, 2).float() for part in (query, key))
    weights: Tensor = (q @ k.transpose(-1, -2) * scaling).softmax(dim=-1)  # (units, heads, patches, patches)
    return weights.mean(dim=(1, 2)).flatten()


def measure_saliency(
    units: int,
    *,
    patches: int,
    heads: int,
    head_dim: int,
    dtype: str,
    device: str,
    rounds: int,
    with_whole_map: bool,
) -> dict[str, Any]:
    """Seconds and peak bytes beside queries and keys, and how far both ways are apart."""
    generator = torch.Generator().manual_seed(0)
    shape = (units * patches, heads, head_dim)
    query, key = (torch.randn(shape, generator=generator).to(device, getattr(torch, dtype)) for _ in range(2))
    scaling = head_dim**-0.5
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": partial(received_attention, query, key, [patches] * units, scaling=scaling)
    }
    if with_whole_map:
        ways["whole_map"] = partial(whole_map, query, key, units, scaling)
    calls = {name: partial(_same, way) for name, way in ways.items()}
    with torch.no_grad():
        seconds = interleave(calls, rounds=rounds, device=query.device)
        result: dict[str, Any] = {"units": units, "patches": patches, "heads": heads, "head_dim": head_dim}
        result["dtype"] = dtype
        for name, way in ways.items():
            peak = peak_extra_bytes(way, (query, key))
            result[name] = {**seconds[name].as_json(), "peak_extra_bytes": peak}
        if with_whole_map:
            apart = (ways["ours"]() - ways["whole_map"]()).abs().max() * patches  # mean saliency: 1/patches
            result["largest_relative_difference"] = float(apart)
    return result


def _same(way: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return way


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for; by default the last block of a 7B-sized vision tower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saliency", description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[16, 80])
    parser.add_argument("--whole-map-units", type=int, nargs="*", default=[16], help="where the map fits")
    parser.add_argument("--patches", type=int, default=1024, help="per unit")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=80)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "-o", "--output", type=Path, help="JSON file; a table of the same name goes beside it"
    )
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(wanted.threads)
    machine = machine_facts(torch.device(wanted.device))
    cases = [
        measure_saliency(
            units,
            patches=wanted.patches,
            heads=wanted.heads,
            head_dim=wanted.head_dim,
            dtype=dtype,
            device=wanted.device,
            rounds=wanted.rounds,
            with_whole_map=units in wanted.whole_map_units,
        )
        for dtype in wanted.dtype
        for units in wanted.units
    ]
    result = {"benchmark": "saliency", "machine": machine, "rounds": wanted.rounds, "cases": cases}
    save(result, saliency_table(cases), wanted.output)


if __name__ == "__main__":
    main()
