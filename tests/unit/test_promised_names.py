"""The imports that documents promise: they stay, wherever the code behind them goes."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PROMISED = {
    "flashvid": "CompressedVideo CompressionPlan FlashVidConfig FlashVidModel compress flashvid "
    "plan_compression profile",
    "flashvid.engine": "Engine Generation VideoAnswers VideoInput",
    "flashvid.frames": "VisionSettings frames_to_patches iterate_patches",
    "flashvid.models": "EncodedVideo LoadedModel Qwen25VLAdapter adapter_for load_model needs_saliency",
    "flashvid.models.shapes": "shape_of",
    "flashvid.budget": (
        "QWEN2_5_VL Estimate LanguageShape MemoryEstimate ModelShape PruningSchedule UnitBudget "
        "VisionShape Workload compression_bytes config_for_baseline decode_flops estimate "
        "frames_for_budget frames_that_fit head_flops inside_schedule kv_lengths_by_layer "
        "llm_ratio_for_budget mean_visual_tokens patch_grid prefill_bytes prefill_flops_by_layer "
        "pruned_tokens pruning_schedule saliency_flops schedule_for_baseline share_places "
        "unit_budget vision_chunk_bytes vision_flops visual_tokens"
    ),
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in PROMISED.items() for name in names.split()]
)
def test_a_promised_name_is_there(module: str, name: str) -> None:
    found = importlib.import_module(module)
    assert name in found.__all__
    assert getattr(found, name) is not None


def test_promised_modules_are_attributes_of_the_package() -> None:
    names = [module.partition(".")[2] for module in PROMISED if module.count(".") == 1]
    code = f"import flashvid\nfor name in {names!r}: assert getattr(flashvid, name).__name__.endswith(name)"
    subprocess.run([sys.executable, "-c", code], check=True)
