"""What does a video cost, before it is run?

In: the shape of a model, the settings, the size of a workload. Out: visual tokens, decoder layers' lengths,
FLOPs, bytes of device memory, and how many frames fit. Plain numbers, no tensors. Start with estimates.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from flashvid.arithmetic import UnitBudget, share_places, unit_budget

if TYPE_CHECKING:
    from flashvid.budget.costs import (
        MemoryEstimate,
        compression_bytes,
        decode_flops,
        head_flops,
        prefill_bytes,
        prefill_flops_by_layer,
        saliency_flops,
        vision_chunk_bytes,
        vision_flops,
    )
    from flashvid.budget.estimates import Estimate, Workload, estimate, frames_that_fit
    from flashvid.budget.grids import frames_for_budget, patch_grid, visual_tokens
    from flashvid.budget.schedule import (
        NO_PRUNING,
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
    from flashvid.budget.shapes import QWEN2_5_VL, LanguageShape, ModelShape, VisionShape
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "costs": [
                "MemoryEstimate",
                "compression_bytes",
                "decode_flops",
                "head_flops",
                "prefill_bytes",
                "prefill_flops_by_layer",
                "saliency_flops",
                "vision_chunk_bytes",
                "vision_flops",
            ],
            "grids": ["frames_for_budget", "patch_grid", "visual_tokens"],
            "schedule": [
                "NO_PRUNING",
                "PruningSchedule",
                "config_for_baseline",
                "inside_schedule",
                "kv_lengths_by_layer",
                "llm_ratio_for_budget",
                "mean_visual_tokens",
                "pruned_tokens",
                "pruning_schedule",
                "schedule_for_baseline",
            ],
            "shapes": ["LanguageShape", "ModelShape", "QWEN2_5_VL", "VisionShape"],
            "estimates": ["Estimate", "Workload", "estimate", "frames_that_fit"],
        },
    )

__all__ = [
    "NO_PRUNING",
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
