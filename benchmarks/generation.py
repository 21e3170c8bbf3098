"""Time to the first token of a model of real size with random weights: `python -m benchmarks.generation`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import machine_facts
from benchmarks.phases import Stages, timed_stages
from benchmarks.random_model import SIZES, random_model
from benchmarks.tables import generation_table, save
from flashvid import flashvid
from flashvid.models import EncodedVideo, Qwen25VLAdapter

__all__ = ["CASES", "Sampling", "main", "measure_generation"]

_SECONDS_PER_UNIT = 1.0
_WORDS_BEFORE, _WORDS_AFTER = 15, 25

# generate() with one new token: the tower (with saliency), compress(), and the prefill with its first token.
STAGES: Stages = {
    "vision_tower": [(Qwen25VLAdapter, "encode_video")],
    "compression": [(EncodedVideo, "compress")],
    "language_model": [(Qwen25VLAdapter, "generate")],
}


@dataclass(frozen=True)
class Sampling:
    """So many frames at this retention ratio; 1 compresses nothing."""

    frames: int
    retention: float


CASES = (Sampling(16, 1.0), Sampling(160, 1.0), Sampling(160, 0.1))


def measure_generation(
    model: Any, cases: Sequence[Sampling], *, side: int, rounds: int, warmups: int = 1
) -> list[dict[str, Any]]:
    """Seconds to the first token by stage, tokens and peak memory of each case; cases take turns.

    side: height and width of the frames in pixels, a multiple of 28. Patches are random and lie on the
    model's device before the clock starts, as decoded and normalised frames would.
    """
    calls = [_call(model, case, side) for case in cases]
    seen: list[list[dict[str, float]]] = [[] for _ in cases]
    peaks = [0 for _ in cases]
    for number in range(warmups + rounds):
        for index, call in enumerate(calls):
            _reset_peak(model.device)
            taken = timed_stages(call, STAGES, model.device)
            peaks[index] = max(peaks[index], _peak_bytes(model.device))
            if number >= warmups:
                seen[index].append(taken)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return [
        {
            **asdict(case),
            **_tokens(call),
            "seconds": {stage: median(one[stage] for one in taken) for stage in taken[0]},
            "rounds": taken,
            "peak_bytes": peak or None,
            "weight_bytes": weights,
        }
        for case, call, taken, peak in zip(cases, calls, seen, peaks, strict=True)
    ]


def _call(model: Any, case: Sampling, side: int) -> Callable[[], Any]:
    """One generate() of one new token, with its inputs ready on the device."""
    inputs = _inputs(model, case.frames, side)
    wrapped = flashvid(model, case.retention)

    def call() -> Any:
        return wrapped.generate(**inputs, max_new_tokens=1, do_sample=False, return_report=True)

    return call


def _inputs(model: Any, frames: int, side: int) -> dict[str, Any]:
    vision, generator = model.config.vision_config, torch.Generator().manual_seed(0)
    units, rows = frames // vision.temporal_patch_size, side // vision.patch_size
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patches = torch.randn(units * rows * rows, pixels, generator=generator)
    visual = [model.config.video_token_id] * (units * (rows // vision.spatial_merge_size) ** 2)
    words = torch.randint(
        model.config.video_token_id - 1, (_WORDS_BEFORE + _WORDS_AFTER,), generator=generator
    ).tolist()
    ids = [
        *words[:_WORDS_BEFORE],
        model.config.vision_start_token_id,
        *visual,
        model.config.vision_end_token_id,
        *words[_WORDS_BEFORE:],
    ]
    return {
        "input_ids": torch.tensor([ids], device=model.device),
        "pixel_values_videos": patches.to(model.device, model.dtype),
        "video_grid_thw": torch.tensor([[units, rows, rows]], device=model.device),
        "second_per_grid_ts": torch.tensor([_SECONDS_PER_UNIT]),
    }


def _tokens(call: Callable[[], Any]) -> dict[str, Any]:
    _, report = call()
    (mean,) = report.tokens_mean_per_prompt
    return {
        "visual_tokens_before": report.visual_tokens_before,
        "visual_tokens_after": report.visual_tokens_after,
        "visual_tokens_mean": mean,
    }


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the model, measures the three cases in one run, writes JSON and a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="7b")
    parser.add_argument("--layers", type=int, help="fewer layers in the language model than the size has")
    parser.add_argument("--side", type=int, default=448, help="pixels of a frame's side, a multiple of 28")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "-o", "--output", type=Path, help="JSON file; a table of the same name goes beside it"
    )
    wanted = parser.parse_args(arguments)
    if wanted.side % 28:
        parser.error(f"--side {wanted.side} must be a multiple of 28: two patches of 14 pixels")
    if wanted.size == "7b" and torch.device(wanted.device).type == "cpu":
        parser.error("--size 7b needs a GPU; use --device cuda, or --size tiny to try the script on a CPU")
    torch.set_num_threads(wanted.threads)
    size = SIZES[wanted.size]
    if wanted.layers:
        size = replace(size, layers=wanted.layers)
    model = random_model(size, device=wanted.device, dtype=getattr(torch, wanted.dtype))
    cases = measure_generation(model, CASES, side=wanted.side, rounds=wanted.rounds)
    result = {
        "benchmark": "generation",
        "machine": machine_facts(model.device),
        "model": {**asdict(size), "dtype": wanted.dtype, "weights": "random"},
        "side_pixels": wanted.side,
        "rounds": wanted.rounds,
        "cases": cases,
    }
    save(result, generation_table(cases), wanted.output)


if __name__ == "__main__":
    main()
