"""compress() against the literal one of the tests, token by token: `python -m benchmarks.oracle`."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.clips import KINDS
from benchmarks.machine import machine_facts
from benchmarks.tables import oracle_table, save
from flashvid import CompressedVideo, FlashVidConfig, compress
from tests.oracles import literal

__all__ = ["compare", "main"]


def compare(
    video: CompressedVideo, features: Tensor, saliency: Tensor, config: FlashVidConfig
) -> dict[str, Any]:
    """Whether the same tokens are kept for the same groups, and how far the values are apart.

    The literal compression is plain Python in float64: about two seconds per unit at full size.
    """
    start = time.perf_counter()
    expected = literal.whole(features.double().cpu().numpy(), saliency.double().cpu().numpy(), config)
    seconds = time.perf_counter() - start
    same = video.kept.tolist() == expected.kept
    apart = (
        (video.tokens.cpu().double() - torch.from_numpy(expected.tokens)).abs().max() if same else math.nan
    )
    return {
        "seconds": seconds,
        "kept": len(expected.kept),
        "kept_in_common": len({*video.kept.tolist()} & {*expected.kept}),
        "same_kept": same,
        "same_group_sizes": same and video.group_sizes.tolist() == expected.group_sizes,
        "largest_difference": float(apart),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares the sizes asked for; no time here is a measurement but that of the oracle itself."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracle", description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[16, 32, 80])
    parser.add_argument("--tokens", type=int, default=256, help="per unit")
    parser.add_argument("--width", type=int, default=3584, help="of a token")
    parser.add_argument("--retention", type=float, nargs="+", default=[0.1, 0.25])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=["video"])
    parser.add_argument("--device", default="cpu", help="of compress(); the oracle is numpy")
    parser.add_argument(
        "-o", "--output", type=Path, help="JSON file; a table of the same name goes beside it"
    )
    wanted = parser.parse_args(arguments)
    results = []
    for case in (
        Case(kind, units, wanted.tokens, wanted.width, retention, dtype)
        for units in wanted.units
        for kind in wanted.kind
        for dtype in wanted.dtype
        for retention in wanted.retention
    ):
        features, saliency = case.inputs(wanted.device)
        video = compress(features, saliency, case.config)
        results.append({**vars(case), "oracle": compare(video, features, saliency, case.config)})
        print(oracle_table(results[-1:]).splitlines()[-1], flush=True)
    machine = machine_facts(torch.device(wanted.device))
    save({"benchmark": "oracle", "machine": machine, "cases": results}, oracle_table(results), wanted.output)


if __name__ == "__main__":
    main()
