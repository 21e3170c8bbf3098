"""The estimate's arithmetic: released models, limits, what fits, and what is refused."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvid import FlashVidConfig, arithmetic
from flashvid.budget.costs import decode_flops, vision_flops
from flashvid.budget.estimates import Workload, estimate, frames_that_fit
from flashvid.budget.grids import patch_grid
from flashvid.budget.schedule import (
    PruningSchedule,
    config_for_baseline,
    inside_schedule,
    mean_visual_tokens,
    schedule_for_baseline,
)
from flashvid.budget.shapes import QWEN2_5_VL
from flashvid.inside.saliency import received_attention
from flashvid.models.registry import adapter_for
from flashvid.models.shapes import shape_of
from tests import ROOT
from tests.tiny_model import tiny_model

SEVEN = QWEN2_5_VL["7B"]
BYPASS = FlashVidConfig(retention_ratio=1)
SQUARE = Workload(height=448, width=448)
GIB = 2**30


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("3B", 3_754_622_976), ("7B", 8_292_166_656), ("32B", 33_452_718_336), ("72B", 73_410_777_344)],
)
def test_released_models_have_the_parameters_they_are_published_with(name: str, parameters: int) -> None:
    assert QWEN2_5_VL[name].parameters == parameters
    assert QWEN2_5_VL[name].weights_bytes == 2 * parameters


def test_a_vision_unit_by_hand() -> None:
    """One 112 x 112 unit of 8 x 8 patches is one window, so full and windowed blocks cost the same."""
    vision = SEVEN.vision
    block = 64 * (4 * 1280**2 + 3 * 1280 * 3420) + 2 * 1280 * 64**2
    merger = 16 * (5120 * 5120 + 5120 * 3584)
    assert vision_flops(vision, 1, 8, 8) == 2 * (64 * 1176 * 1280 + 32 * block + merger)


def test_windows_save_what_lies_outside_them() -> None:
    vision = SEVEN.vision
    everywhere = replace(vision, full_blocks=tuple(range(32)))
    # 16 x 12 patches are 4 x 3 windows' worth: two whole windows and two cut in half
    saved = 28 * 4 * 1280 * ((16 * 12) ** 2 - 2 * 64**2 - 2 * 32**2)
    assert vision_flops(everywhere, 3, 16, 12) - vision_flops(vision, 3, 16, 12) == 3 * saved


@given(st.integers(1, 300), st.sampled_from([0.05, 0.1, 0.25, 0.5, 1.0]))
def test_everything_grows_with_the_frames(frames: int, ratio: float) -> None:
    config = FlashVidConfig(retention_ratio=ratio)
    less, more = (estimate(SEVEN, config, SQUARE, count) for count in (frames, frames + 2))
    assert less.vision_flops < more.vision_flops
    assert less.language_flops < more.language_flops
    assert sum(less.kv_bytes_by_layer) < sum(more.kv_bytes_by_layer)
    assert less.memory.peak < more.memory.peak


def test_ten_times_the_frames_at_a_tenth_cost_the_language_model_the_same() -> None:
    few, many = estimate(SEVEN, BYPASS, SQUARE, 16), estimate(SEVEN, FlashVidConfig(), SQUARE, 160)
    assert (few.visual_tokens_before, few.visual_tokens_mean) == (2048, 2048)
    assert (many.visual_tokens_before, many.visual_tokens_after) == (20480, 2560)
    assert many.visual_tokens_mean == 2048
    assert many.schedule == PruningSchedule(20, pytest.approx(0.3))
    assert sum(many.kv_bytes_by_layer) == sum(few.kv_bytes_by_layer)
    assert many.language_flops == pytest.approx(few.language_flops, rel=0.02)
    assert many.vision_flops > 10 * few.vision_flops


def test_decoding_multiplies_every_weight_but_the_embedding_and_the_norms() -> None:
    language = SEVEN.language
    tables = language.vocab * language.hidden
    small = 28 * (language.query_width + 2 * language.kv_width + 2 * language.hidden) + language.hidden
    weights = language.parameters - tables - small
    assert decode_flops(language, [0] * 28) == 2 * weights + 28 * 4 * language.query_width


@settings(deadline=None)
@given(
    st.integers(20, 200),
    st.sampled_from([BYPASS, FlashVidConfig(), FlashVidConfig(retention_ratio=0.25)]),
    st.sampled_from([1, 8]),
)
def test_what_fits_fits_and_one_unit_more_does_not(gib: int, config: FlashVidConfig, prompts: int) -> None:
    workload = replace(SQUARE, prompts=prompts)
    frames = frames_that_fit(gib * GIB, SEVEN, config, workload)
    usable = int(0.9 * gib * GIB)
    assert estimate(SEVEN, config, workload, frames).memory.peak <= usable
    assert estimate(SEVEN, config, workload, frames + 2).memory.peak > usable


def test_compression_lets_more_frames_in() -> None:
    assert frames_that_fit(24 * GIB, SEVEN, FlashVidConfig(), SQUARE) > 3 * frames_that_fit(
        24 * GIB, SEVEN, BYPASS, SQUARE
    )


@pytest.mark.parametrize(
    ("config", "workload", "frames"),
    [
        (FlashVidConfig(max_visual_tokens=300), SQUARE, 600),
        (FlashVidConfig(retention_ratio=1, max_visual_tokens=3000), SQUARE, 22),
        (FlashVidConfig(expansion=1), replace(SQUARE, baseline_tokens=300), 600),
    ],
)
def test_a_ceiling_on_tokens_bounds_the_frames(
    config: FlashVidConfig, workload: Workload, frames: int
) -> None:
    assert frames_that_fit(4000 * GIB, SEVEN, config, workload) == frames
    with pytest.raises(ValueError, match="max_visual_tokens"):
        estimate(SEVEN, config, workload, frames + 2)


@pytest.mark.parametrize("usable_share", [0.0, 1.1])
def test_shares_outside_are_refused(usable_share: float) -> None:
    with pytest.raises(ValueError, match=r"usable_share=.* must be in \(0, 1\]"):
        frames_that_fit(80 * GIB, SEVEN, BYPASS, SQUARE, usable_share=usable_share)


def test_a_model_that_does_not_fit_is_said_to() -> None:
    with pytest.raises(ValueError, match=r"one unit of 448 x 448 pixels needs .* take a smaller model"):
        frames_that_fit(16 * GIB, SEVEN, BYPASS, SQUARE)


@pytest.mark.parametrize(("field", "value"), [("height", 0), ("prompts", 0), ("text_tokens", -1)])
def test_estimatess_below_one_are_refused(field: str, value: int) -> None:
    sizes: dict[str, Any] = {"height": 28, "width": 28, field: value}
    with pytest.raises(ValueError, match=f"{field}={value} must be at least 1"):
        Workload(**sizes)


@pytest.mark.parametrize(
    ("frames", "workload", "message"),
    [
        (0, SQUARE, "num_frames=0 must be a whole number of at least 1"),
        (1.5, SQUARE, "num_frames=1.5 must be a whole number"),
        (2, replace(SQUARE, width=450), "width=450 must be a multiple of 28"),
    ],
)
def test_clips_of_no_whole_tokens_are_refused(frames: int, workload: Workload, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(SEVEN, BYPASS, workload, frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"full_blocks": (32,)}, r"full_blocks=\(32,\) must be in \[0, depth=32\)"),
        ({"window": 20}, "must hold at least one merged token"),
    ],
)
def test_impossible_towers_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SEVEN.vision, **change)


def test_impossible_language_models_are_refused() -> None:
    with pytest.raises(ValueError, match="heads=28 must be a multiple of kv_heads=5"):
        replace(SEVEN.language, kv_heads=5)
    with pytest.raises(ValueError, match=r"must be 2 .* or 4"):
        replace(SEVEN, bytes_per_value=8)


def test_other_configurations_are_refused() -> None:
    with pytest.raises(TypeError, match="of a llama model; supported: qwen2_5_vl"):
        shape_of(SimpleNamespace(model_type="llama"))


def test_the_dtype_decides_the_bytes() -> None:
    config = tiny_model().config
    assert shape_of(config, torch.bfloat16).bytes_per_value == 2
    assert shape_of(config, torch.float32).bytes_per_value == 4


def test_the_limits_are_the_code_s() -> None:
    assert adapter_for(tiny_model()).default_units_per_chunk(1, 1) == arithmetic.PATCHES_PER_CHUNK
    default = inspect.signature(received_attention).parameters["max_weights"].default
    assert default == arithmetic.SALIENCY_WEIGHTS


@pytest.mark.parametrize("layers", [5, 28, 36, 64])
@given(frames=st.integers(1, 400), baseline=st.integers(400, 5000), ratio=st.sampled_from([0.1, 0.3, 0.8]))
def test_a_baseline_is_never_exceeded(layers: int, frames: int, baseline: int, ratio: float) -> None:
    shape = replace(SEVEN, language=replace(SEVEN.language, layers=layers))
    config = FlashVidConfig(retention_ratio=ratio)
    costs = estimate(shape, config, replace(SQUARE, baseline_tokens=baseline), frames)
    assert costs.visual_tokens_mean <= baseline


def test_a_baseline_only_ever_lowers() -> None:
    assert config_for_baseline(BYPASS, 28, 7) is BYPASS
    assert config_for_baseline(FlashVidConfig(max_visual_tokens=3), 28, 100).max_visual_tokens == 3
    schedule = PruningSchedule(20, 0.3)
    assert schedule_for_baseline(schedule, 28, 2560, 5000) == schedule
    lowered = schedule_for_baseline(schedule, 28, 2560, 1900)
    assert mean_visual_tokens(2560, 28, lowered.layer, lowered.ratio) <= 1900
    with pytest.raises(ValueError, match="baseline_tokens=0 must be at least 1"):
        config_for_baseline(FlashVidConfig(), 28, 0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BYPASS, None),
        (replace(BYPASS, llm_retention_ratio=0.5), PruningSchedule(20, 0.5)),
        (FlashVidConfig(expansion=1), None),
        (FlashVidConfig(llm_retention_ratio=1), None),
        (FlashVidConfig(pruning_layer=14), PruningSchedule(14, pytest.approx(0.6))),
    ],
)
def test_where_the_model_prunes(config: FlashVidConfig, expected: PruningSchedule | None) -> None:
    assert inside_schedule(config, 28) == expected


def test_grid_counts_patches() -> None:
    assert patch_grid(7, 112, 84) == (4, 8, 6)


def page_rows() -> list[str]:
    rows = []
    for frames, ratio in ((16, 1), (16, 0.1), (160, 1), (160, 0.1)):
        config = FlashVidConfig(retention_ratio=ratio)
        costs = estimate(SEVEN, config, SQUARE, frames)
        fit = " / ".join(str(frames_that_fit(size * GIB, SEVEN, config, SQUARE)) for size in (24, 80))
        tokens = (costs.visual_tokens_before, costs.visual_tokens_after, round(costs.visual_tokens_mean))
        cells = [frames, ratio, *(f"{count:,}" for count in tokens)]
        cells += [f"{flops / 1e12:.1f}" for flops in (costs.vision_flops, costs.language_flops)]
        cells += [f"{costs.decode_flops_per_token / 1e9:.1f}", f"{sum(costs.kv_bytes_by_layer) / 2**20:.0f}"]
        cells += [f"{costs.memory.peak / GIB:.1f}", fit]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return rows


def test_the_page_s_table_is_what_is_computed() -> None:
    page = ROOT / "docs" / "BUDGET.md"
    table = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| 16")]
    assert table == page_rows()
