"""Arithmetic of frames, visual tokens, decoder layers, FLOPs and memory. Plain numbers, no tensors.

The front of `grids`, `places`, `schedule`, `shapes`, `costs`, `memory` and `estimate`: import from here.
"""

from __future__ import annotations

from flashvid.costs import (
    decode_flops,
    head_flops,
    prefill_flops_by_layer,
    saliency_flops,
    vision_flops,
)
from flashvid.estimate import Estimate, Workload, estimate, frames_that_fit
from flashvid.grids import frames_for_budget, patch_grid, visual_tokens
from flashvid.memory import MemoryEstimate, compression_bytes, prefill_bytes, vision_chunk_bytes
from flashvid.places import UnitBudget, share_places, unit_budget
from flashvid.schedule import (
    PruningSchedule,
    config_for_baseline,
    inside_schedule,
    kv_lengths_by_layer,
    llm_ratio_for_budget,
    mean_visual_tokens,
    pruned_tokens,
    pruning_schedule,
    schedule_for_baseline,
)
from flashvid.shapes import QWEN2_5_VL, LanguageShape, ModelShape, VisionShape

__all__ = [
    "QWEN2_5_VL",
    "Estimate",
    "LanguageShape",
    "MemoryEstimate",
    "ModelShape",
    "PruningSchedule",
    "UnitBudget",
    "VisionShape",
    "Workload",
    "compression_bytes",
    "config_for_baseline",
    "decode_flops",
    "estimate",
    "frames_for_budget",
    "frames_that_fit",
    "head_flops",
    "inside_schedule",
    "kv_lengths_by_layer",
    "llm_ratio_for_budget",
    "mean_visual_tokens",
    "patch_grid",
    "prefill_bytes",
    "prefill_flops_by_layer",
    "pruned_tokens",
    "pruning_schedule",
    "saliency_flops",
    "schedule_for_baseline",
    "share_places",
    "unit_budget",
    "vision_chunk_bytes",
    "vision_flops",
    "visual_tokens",
]
