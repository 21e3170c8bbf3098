"""Results as JSON and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "compression_table",
    "criteria_table",
    "generation_table",
    "markdown",
    "oracle_table",
    "saliency_table",
    "save",
]


def save(result: dict[str, Any], table: str, output: Path | None) -> None:
    """Writes `result` to `output` and `table` beside it as .md; prints the table where there is no output."""
    if output is None:
        print(table)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    print(f"wrote {output} and {output.with_suffix('.md')}")


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table of rows that name their columns; None becomes a dash. Empty where there is no row."""
    head = list(rows[0]) if rows else []
    lines = [head, ["---"] * len(head), *(row.values() for row in rows)] if rows else []
    return "\n".join(
        "| " + " | ".join("-" if cell is None else str(cell) for cell in line) + " |" for line in lines
    )


def compression_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line per case: seconds are medians, in brackets the least; memory in MB of 10^6 bytes."""
    return markdown([_compression_row(case) for case in cases])


def _compression_row(case: dict[str, Any]) -> dict[str, object]:
    memory, oracle = case.get("memory", {}), case.get("oracle")
    return {
        "clip": case["kind"],
        "units": case["units"],
        "R": case["retention"],
        "dtype": case["dtype"],
        "kept": case["kept"],
        "ours s": _seconds(case["ours"]),
        "reference s": _seconds(case.get("reference")),
        "speed-up": f"{case['speedup']['of_medians']:.2f}" if "speedup" in case else None,
        "ops": case["ops"],
        "peak extra MB": _megabytes(memory.get("peak_extra_bytes")),
        "process grows MB": _megabytes(memory.get("resident_growth_bytes")),
        "features MB": _megabytes(case["feature_bytes"]),
        "same as oracle": None if oracle is None else _verdict(oracle, case["kept"]),
    }


def criteria_table(reached: Sequence[dict[str, Any]]) -> str:
    """One line per criterion."""
    return markdown([_criterion_row(one) for one in reached])


def _criterion_row(one: dict[str, Any]) -> dict[str, object]:
    return {
        "criterion": one["what"],
        "measured": f"{one['value']:.4g}",
        "wanted": f"{one['rule']} {one['limit']:.4g}",
        "holds": "yes" if one["holds"] else "NO",
    }


def oracle_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line per clip: agreement with the literal compression, and how long that took."""
    return markdown([_oracle_row(case) for case in cases])


def _oracle_row(case: dict[str, Any]) -> dict[str, object]:
    oracle = case["oracle"]
    return {
        "clip": case["kind"],
        "units": case["units"],
        "R": case["retention"],
        "dtype": case["dtype"],
        "kept": oracle["kept"],
        "same kept": "all" if oracle["same_kept"] else oracle["kept_in_common"],
        "same group sizes": "yes" if oracle["same_group_sizes"] else "no",
        "largest difference": f"{oracle['largest_difference']:.1e}",
        "oracle s": f"{oracle['seconds']:.0f}",
    }


def saliency_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line per size; peak memory is beside queries and keys, in MB of 10^6 bytes."""
    return markdown([_saliency_row(case) for case in cases])


def _saliency_row(case: dict[str, Any]) -> dict[str, object]:
    plain, apart = case.get("whole_map"), case.get("largest_relative_difference")
    return {
        "units": case["units"],
        "dtype": case["dtype"],
        "ours s": _seconds(case["ours"]),
        "whole map s": _seconds(plain),
        "ours peak MB": _megabytes(case["ours"]["peak_extra_bytes"]),
        "whole map peak MB": _megabytes(plain and plain["peak_extra_bytes"]),
        "relative difference": None if apart is None else f"{apart:.1e}",
    }


def generation_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line per case; median seconds; memory in GB of 10^9 bytes, weights included."""
    return markdown([_generation_row(case) for case in cases])


def _generation_row(case: dict[str, Any]) -> dict[str, object]:
    seconds = {stage: f"{taken:.4f}" for stage, taken in case["seconds"].items()}
    return {
        "frames": case["frames"],
        "R": case["retention"],
        "visual tokens": case["visual_tokens_before"],
        "entering": case["visual_tokens_after"],
        "mean over layers": f"{case['visual_tokens_mean']:.0f}",
        "vision tower s": seconds["vision_tower"],
        "compression s": seconds["compression"],
        "language model s": seconds["language_model"],
        "other s": seconds["other"],
        "first token s": seconds["total"],
        "peak GB": f"{case['peak_bytes'] / 1e9:.1f}" if case["peak_bytes"] else None,
    }


def _seconds(taken: dict[str, Any] | None) -> str | None:
    return None if taken is None else f"{taken['median']:.4g} ({taken['min']:.4g})"


def _megabytes(size: int | None) -> str | None:
    return None if size is None else f"{size / 1e6:.0f}"


def _verdict(oracle: dict[str, Any], kept: int) -> str:
    if oracle["same_kept"] and oracle["same_group_sizes"]:
        return f"yes ({oracle['seconds']:.0f} s)"
    return f"{oracle['kept_in_common']} of {kept} ({oracle['seconds']:.0f} s)"
