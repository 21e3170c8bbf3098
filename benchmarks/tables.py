"""Results as JSON and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; None becomes a dash."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join("-" if cell is None else str(cell) for cell in line) + " |" for line in lines
    )


def compression_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line per case: seconds are medians, in brackets the least; memory in MB of 10^6 bytes."""
    head = (
        "clip",
        "units",
        "R",
        "dtype",
        "kept",
        "ours s",
        "reference s",
        "speed-up",
        "ops",
        "peak extra MB",
        "process grows MB",
        "features MB",
        "same as oracle",
    )
    return markdown(head, [_compression_row(case) for case in cases])


def _compression_row(case: dict[str, Any]) -> list[object]:
    memory, oracle = case.get("memory", {}), case.get("oracle")
    return [
        case["kind"],
        case["units"],
        case["retention"],
        case["dtype"],
        case["kept"],
        _seconds(case["ours"]),
        _seconds(case.get("reference")),
        f"{case['speedup']['of_medians']:.2f}" if "speedup" in case else None,
        case["ops"],
        _megabytes(memory.get("peak_extra_bytes")),
        _megabytes(memory.get("resident_growth_bytes")),
        _megabytes(case["feature_bytes"]),
        None if oracle is None else _verdict(oracle, case["kept"]),
    ]


def criteria_table(reached: Sequence[dict[str, Any]]) -> str:
    """One line per criterion."""
    head = ("criterion", "measured", "wanted", "holds")
    rows = [
        (
            one["what"],
            f"{one['value']:.4g}",
            f"{one['rule']} {one['limit']:.4g}",
            "yes" if one["holds"] else "NO",
        )
        for one in reached
    ]
    return markdown(head, rows)


def oracle_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line per clip: agreement with the literal compression, and how long that took."""
    head = (
        "clip",
        "units",
        "R",
        "dtype",
        "kept",
        "same kept",
        "same group sizes",
        "largest difference",
        "oracle s",
    )
    rows = []
    for case in cases:
        oracle = case["oracle"]
        rows.append(
            (
                *(case[name] for name in ("kind", "units", "retention", "dtype")),
                oracle["kept"],
                "all" if oracle["same_kept"] else oracle["kept_in_common"],
                "yes" if oracle["same_group_sizes"] else "no",
                f"{oracle['largest_difference']:.1e}",
                f"{oracle['seconds']:.0f}",
            )
        )
    return markdown(head, rows)


def saliency_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line per size; peak memory is beside queries and keys, in MB of 10^6 bytes."""
    head = (
        "units",
        "dtype",
        "ours s",
        "whole map s",
        "ours peak MB",
        "whole map peak MB",
        "relative difference",
    )
    rows = []
    for case in cases:
        plain = case.get("whole_map")
        apart = case.get("largest_relative_difference")
        rows.append(
            (
                case["units"],
                case["dtype"],
                _seconds(case["ours"]),
                _seconds(plain),
                _megabytes(case["ours"]["peak_extra_bytes"]),
                _megabytes(plain and plain["peak_extra_bytes"]),
                None if apart is None else f"{apart:.1e}",
            )
        )
    return markdown(head, rows)


def generation_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line per case; median seconds; memory in GB of 10^9 bytes, weights included."""
    head = (
        "frames",
        "R",
        "visual tokens",
        "entering",
        "mean over layers",
        "vision tower s",
        "compression s",
        "language model s",
        "other s",
        "first token s",
        "peak GB",
    )
    stages = ("vision_tower", "compression", "language_model", "other", "total")
    rows = [
        (
            case["frames"],
            case["retention"],
            case["visual_tokens_before"],
            case["visual_tokens_after"],
            f"{case['visual_tokens_mean']:.0f}",
            *(f"{case['seconds'][stage]:.4f}" for stage in stages),
            f"{case['peak_bytes'] / 1e9:.1f}" if case["peak_bytes"] else None,
        )
        for case in cases
    ]
    return markdown(head, rows)


def _seconds(taken: dict[str, Any] | None) -> str | None:
    return None if taken is None else f"{taken['median']:.4g} ({taken['min']:.4g})"


def _megabytes(size: int | None) -> str | None:
    return None if size is None else f"{size / 1e6:.0f}"


def _verdict(oracle: dict[str, Any], kept: int) -> str:
    if oracle["same_kept"] and oracle["same_group_sizes"]:
        return f"yes ({oracle['seconds']:.0f} s)"
    return f"{oracle['kept_in_common']} of {kept} ({oracle['seconds']:.0f} s)"
