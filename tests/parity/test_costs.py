"""The estimate against counted runs of real models: tokens and cache bytes exactly, FLOPs within 2 %."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from flashvid import FlashVidConfig
from flashvid.budget.estimates import Estimate, Workload, estimate
from flashvid.frames import VisionSettings, frames_to_patches
from flashvid.generation.answers import VideoInput
from flashvid.generation.engine import Engine
from flashvid.generation.reports import GenerationReport
from flashvid.generation.wrapper import flashvid
from flashvid.models.loading import LoadedModel, load_model
from flashvid.models.shapes import shape_of
from tests import ROOT
from tests.tiny_model import cache_among, random_frames, tiny_model

DEMO = ROOT / "demo" / "model"
VISION = VisionSettings(min_pixels=28 * 28, max_pixels=10**6)
TEXT = (9, 14)  # tokens before and after the video
FULL = FlashVidConfig(retention_ratio=1)
TENTH = FlashVidConfig(retention_ratio=0.1)
QUARTER = FlashVidConfig(retention_ratio=0.25, pruning_layer=2, llm_retention_ratio=0.4)
OUTSIDE = FlashVidConfig(retention_ratio=0.2, expansion=1, llm_retention_ratio=1)
DIVERSE = FlashVidConfig(retention_ratio=0.5, token_selection_method="div")
CONFIGS = {"bypass": FULL, "a tenth": TENTH, "layer given": QUARTER, "no pruning": OUTSIDE, "div": DIVERSE}
# Frames, height, width: whole windows, windows cut at the border, an odd count of frames, one row of windows.
SIZES = {"demo": [(8, 112, 112), (7, 168, 84)], "tiny": [(12, 84, 140), (4, 28, 280)]}
RUNS = pytest.mark.parametrize(
    ("name", "size", "config"),
    [
        pytest.param(name, size, config, id=f"{name}-{size}-{kind}")
        for name, sizes in SIZES.items()
        for size in sizes
        for kind, config in CONFIGS.items()
    ],
)


@cache
def demo(attn_implementation: str) -> LoadedModel:
    return load_model(
        str(DEMO), device="cpu", dtype="float32", revision=None, attn_implementation=attn_implementation
    )


@cache
def model_of(name: str, attn_implementation: str = "sdpa") -> Any:
    return tiny_model(attn_implementation) if name == "tiny" else demo(attn_implementation).model


def estimate_of(model: Any, config: FlashVidConfig, size: tuple[int, int, int]) -> Estimate:
    frames, height, width = size
    workload = Workload(height=height, width=width, text_tokens=sum(TEXT), new_tokens=1)
    return estimate(shape_of(model.config, torch.float32), config, workload, frames)


def inputs_of(model: Any, size: tuple[int, int, int]) -> dict[str, Any]:
    pixels, grid = frames_to_patches(random_frames(*size), **vars(VISION))
    count = int(grid.prod()) // 4
    ids = [20] * TEXT[0] + [model.config.video_token_id] * count + [21] * TEXT[1]
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values_videos": pixels,
        "video_grid_thw": grid[None],
        "second_per_grid_ts": [1.0],
    }


def cpu_attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """torch's own formula, which it does not register for the CPU kernel."""
    return int(sdpa_flop_count(query, key, value))


@dataclass(frozen=True)
class Counted:
    """What a run of generate() really took."""

    report: GenerationReport
    cache_bytes: tuple[int, ...]
    vision_flops: int
    language_flops: int
    head_flops: int


@cache
def run(
    name: str, size: tuple[int, int, int], config: FlashVidConfig, *, new_tokens: int = 1, kind: str = "sdpa"
) -> Counted:
    model = model_of(name, kind)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: cpu_attention}) as counter:
        output, report = flashvid(model, config=config).generate(
            **inputs_of(model, size),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            return_report=True,
        )
    layers = cache_among(output).layers
    flops = {part: sum(by_op.values()) for part, by_op in counter.get_flop_counts().items()}
    whole = type(model).__name__  # the tower is called by itself, before the model
    return Counted(
        report,
        tuple(layer.keys.nbytes + layer.values.nbytes for layer in layers),
        flops[type(model.model.visual).__name__],
        flops[whole],
        flops[f"{whole}.lm_head"],
    )


@RUNS
def test_tokens_are_exact(name: str, size: tuple[int, int, int], config: FlashVidConfig) -> None:
    report, expected = run(name, size, config).report, estimate_of(model_of(name), config, size)
    assert report.visual_tokens_before == expected.visual_tokens_before
    assert report.visual_tokens_after == expected.visual_tokens_after
    assert report.tokens_mean_per_prompt == (pytest.approx(expected.visual_tokens_mean),)


@RUNS
def test_cache_bytes_are_exact_by_layer(
    name: str, size: tuple[int, int, int], config: FlashVidConfig
) -> None:
    expected = estimate_of(model_of(name), config, size)
    held = run(name, size, config).cache_bytes
    assert held == expected.kv_bytes_by_layer
    assert (len(set(held)) == 2) == (expected.schedule is not None)


@RUNS
def test_flops_are_what_the_counter_counts(
    name: str, size: tuple[int, int, int], config: FlashVidConfig
) -> None:
    expected, found = estimate_of(model_of(name), config, size), run(name, size, config)
    assert found.vision_flops == pytest.approx(expected.vision_flops, rel=0.002)
    assert found.language_flops == pytest.approx(expected.language_flops, rel=0.002)
    assert found.head_flops == expected.head_flops


def test_attention_written_out_costs_the_same() -> None:
    eager, fused = (run("tiny", (4, 28, 280), TENTH, kind=kind) for kind in ("eager", "sdpa"))
    assert eager.vision_flops == fused.vision_flops
    assert eager.language_flops == fused.language_flops


@pytest.mark.parametrize("config", [FULL, TENTH, QUARTER], ids=["bypass", "a tenth", "layer given"])
def test_a_generated_token_costs_what_was_said(config: FlashVidConfig) -> None:
    size = SIZES["demo"][0]
    one, two = (run("demo", size, config, new_tokens=count).language_flops for count in (1, 2))
    expected = estimate_of(model_of("demo"), config, size).decode_flops_per_token
    assert two - one == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_all_there(name: str) -> None:
    model = model_of(name)
    assert shape_of(model.config).parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("config", [TENTH, OUTSIDE], ids=["pruned inside", "not inside"])
@pytest.mark.parametrize(("frames", "baseline"), [(24, 40), (40, 36), (8, 500)])
def test_a_baseline_is_held_as_the_engine_holds_it(
    config: FlashVidConfig, frames: int, baseline: int
) -> None:
    loaded = demo("sdpa")
    engine = Engine(loaded.model, loaded.tokenizer, config, vision=VISION)
    video = VideoInput(random_frames(frames, 112, 112), 0.5)
    answers = engine.answer(video, ["what"], max_new_tokens=1, baseline_tokens=baseline)
    workload = Workload(height=112, width=112, baseline_tokens=baseline)
    expected = estimate(shape_of(loaded.model.config), config, workload, frames)
    assert answers.visual_tokens_before == expected.visual_tokens_before
    assert answers.visual_tokens_after == expected.visual_tokens_after
    assert answers.visual_tokens_mean == pytest.approx(expected.visual_tokens_mean)
    assert expected.visual_tokens_mean <= baseline
