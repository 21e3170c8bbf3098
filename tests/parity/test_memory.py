"""The memory estimate against what the CPU's allocator gave out during real runs, stage by stage."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from flashvid import FlashVidConfig, compress
from flashvid.budget.costs import MemoryEstimate, compression_bytes, prefill_bytes, vision_chunk_bytes
from flashvid.budget.estimates import Workload, estimate
from flashvid.frames import VisionSettings, iterate_patches
from flashvid.models.encoded import EncodedVideo
from flashvid.models.loading import load_model
from flashvid.models.qwen2_5_vl import Qwen25VLAdapter
from flashvid.models.registry import adapter_for
from flashvid.models.shapes import shape_of
from tests import ROOT
from tests.tiny_model import random_frames

DEMO = ROOT / "demo" / "model"
VISION = VisionSettings(min_pixels=28 * 28, max_pixels=10**6)
FACTOR = 1.3
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)

T = TypeVar("T")


def peak_of(function: Callable[[], T]) -> tuple[T, int]:
    """What it returns and the most bytes it had allocated at once, workspaces inside kernels included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return result, peak


def assert_near(estimated: int, measured: int) -> None:
    assert measured / FACTOR <= estimated <= measured * FACTOR


def test_the_measurement_sees_what_is_held_at_once() -> None:
    def work() -> torch.Tensor:
        first = torch.ones(2**20)
        second = first + 1
        del first
        return second * 2

    assert peak_of(work)[1] == pytest.approx(2 * 4 * 2**20, rel=1e-3)


@cache
def adapter_of(kind: str, dtype: torch.dtype) -> Qwen25VLAdapter:
    """The shipped model, or one whose two vision blocks have the released models' width."""
    if kind == "demo":
        name = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
        loaded = load_model(str(DEMO), device="cpu", dtype=name, revision=None, attn_implementation="sdpa")
        return adapter_for(loaded.model)
    if dtype != torch.float32:  # a copy, because making this many random weights takes seconds
        return adapter_for(copy.deepcopy(adapter_of(kind, torch.float32).model).to(dtype))
    vision = {"depth": 2, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420}
    text: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]}
    config = Qwen2_5_VLConfig(
        vision_config={**vision, "out_hidden_size": 64, "window_size": 112, "fullatt_block_indexes": [1]},
        text_config=text,
    )
    return adapter_for(Qwen2_5_VLForConditionalGeneration(config).eval())


def encode(
    adapter: Qwen25VLAdapter, size: tuple[int, int, int], units_per_chunk: int, *, with_saliency: bool
) -> tuple[EncodedVideo, int]:
    frames = random_frames(*size)
    _, rows, columns = VISION.grid(*size)

    def run() -> EncodedVideo:
        chunks = iterate_patches(
            frames,
            VISION,
            units_per_chunk=units_per_chunk,
            device=torch.device("cpu"),
            dtype=adapter.dtype,
        )
        return adapter.encode_units(chunks, rows, columns, with_saliency=with_saliency)

    return peak_of(run)


@pytest.mark.parametrize(
    ("kind", "size", "units_per_chunk"),
    [
        ("demo", (32, 168, 168), 16),  # making patches takes most
        ("demo", (32, 168, 168), 4),
        ("demo", (4, 448, 448), 1),  # the last block's attention maps
        ("wide", (8, 168, 168), 2),  # rotating queries and keys
        ("wide", (4, 168, 112), 2),
    ],
)
@DTYPES
def test_the_vision_tower(
    kind: str, size: tuple[int, int, int], units_per_chunk: int, dtype: torch.dtype
) -> None:
    adapter = adapter_of(kind, dtype)
    shape = shape_of(adapter.model.config, dtype)
    config = FlashVidConfig()
    encoded, measured = encode(adapter, size, units_per_chunk, with_saliency=True)
    workload = Workload(height=size[1], width=size[2], units_per_chunk=units_per_chunk)
    memory = estimate(shape, config, workload, size[0]).memory
    assert memory.features == encoded.features.nbytes
    assert_near(memory.by_stage["encode"], measured)


def clip_of(shape: tuple[int, int, int], dtype: torch.dtype, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and saliency; in `pairs` every second unit repeats the one before and merges with it."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator)
    if kind == "pairs":
        features[1::2] = features[::2] + 0.1 * features[1::2]
    return features.to(dtype), torch.rand(shape[:2], generator=generator)


@pytest.mark.parametrize("shape", [(16, 36, 192), (80, 64, 256), (4, 256, 1024)], ids=str)
@pytest.mark.parametrize("kind", ["pairs", "noise"])
@DTYPES
def test_compression_stays_below(shape: tuple[int, int, int], kind: str, dtype: torch.dtype) -> None:
    features, saliency = clip_of(shape, dtype, kind)
    config = FlashVidConfig(do_segment=False)
    result, measured = peak_of(lambda: compress(features, saliency, config))
    bound = compression_bytes(*shape, dtype.itemsize) + result.tokens.nbytes
    assert measured <= bound
    assert kind == "noise" or bound <= 3 * measured


@pytest.mark.parametrize("limit", [2**20, 2**22])
def test_compression_stays_below_where_it_runs_in_chunks(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (80, 64, 64)
    features, saliency = clip_of(shape, torch.float32, "pairs")
    whole = compression_bytes(*shape, 4)
    users = [module for name, module in sys.modules.items() if name.startswith("flashvid.")]
    for module in users:
        if hasattr(module, "MAP_BYTES"):
            monkeypatch.setattr(module, "MAP_BYTES", limit)
    config = FlashVidConfig(do_segment=False)
    result, measured = peak_of(lambda: compress(features, saliency, config))
    bound = compression_bytes(*shape, 4)
    assert bound < whole
    assert measured <= bound + result.tokens.nbytes


@pytest.mark.parametrize("count", [80, 600])
@DTYPES
def test_the_language_model(count: int, dtype: torch.dtype) -> None:
    adapter = adapter_of("demo", dtype)
    shape = shape_of(adapter.model.config, dtype)
    ids = torch.tensor([[20] * 20 + [adapter.video_token_id] * count + [21] * 20])
    positions = torch.arange(ids.shape[1]).expand(4, 1, -1)
    tokens = torch.randn(count, shape.language.hidden).to(dtype)
    _, measured = peak_of(lambda: adapter.prefill(ids, positions, videos=[tokens]))
    cache_bytes = shape.language.layers * ids.shape[1] * shape.kv_bytes_per_token
    assert_near(cache_bytes + prefill_bytes(shape.language, ids.shape[1], dtype.itemsize), measured)


def test_memory_does_not_grow_with_the_video_but_for_its_features() -> None:
    shape = shape_of(adapter_of("demo", torch.float32).model.config, torch.float32)
    short, long = (vision_chunk_bytes(shape, units, 12, 12, 4) for units in (8, 8000))
    assert short == long


def test_the_peak_is_the_weights_and_the_largest_stage() -> None:
    memory = MemoryEstimate(
        weights=1000, features=10, tokens=1, vision_chunk=5, compression=30, prefill=7, kv_cache=20
    )
    assert memory.by_stage == {"encode": 20, "compress": 41, "language": 38}
    assert memory.peak == 1041
