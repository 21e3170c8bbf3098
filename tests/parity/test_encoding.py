"""The vision tower in chunks equals the library in one piece; saliency equals the explicit attention map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from flashvid.frames import frames_to_patches
from flashvid.inside.saliency import received_attention
from flashvid.models.qwen2_5_vl import Qwen25VLAdapter
from flashvid.models.registry import adapter_for
from tests.tiny_model import VISION, fingerprint, hooks_of, random_frames, tiny_model

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
GRID = (5, 8, 6)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return frames_to_patches(random_frames(10), **vars(VISION))[0]


@pytest.fixture(scope="module")
def adapter() -> Qwen25VLAdapter:
    return adapter_for(tiny_model())


def literal_saliency(model: Any, pixels: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Last block's attention map of each unit written out, from the eager implementation's own weights."""
    seen: dict[str, Any] = {}
    attention = model.model.visual.blocks[-1].attn
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(hidden=args[0], **kwargs), with_kwargs=True
    )
    grid_thw = torch.tensor([grid])
    with torch.no_grad():
        model.model.get_video_features(pixels, grid_thw)
    handle.remove()
    units, rows, columns = grid
    patches, heads, size = rows * columns, attention.num_heads, attention.head_dim
    cos, sin = seen["position_embeddings"]
    with torch.no_grad():
        q, k, _ = attention.qkv(seen["hidden"]).reshape(units, patches, 3, heads, size).unbind(2)
    rotated = []
    for x in (q, k):
        half = torch.cat((-x[..., size // 2 :], x[..., : size // 2]), dim=-1)
        rotated.append(x * cos.view(units, patches, 1, size) + half * sin.view(units, patches, 1, size))
    result = torch.zeros(units, patches // 4)
    order, _ = get_vision_window_index(grid_thw, 2, window_size=56, patch_size=14)
    for unit in range(units):
        total = torch.zeros(patches)
        for head in range(heads):
            weights = rotated[0][unit, :, head] @ rotated[1][unit, :, head].T / size**0.5
            total += weights.softmax(dim=-1).mean(dim=0)
        merged = (total / heads).view(-1, 4).mean(dim=1)
        places = order[unit * patches // 4 : (unit + 1) * patches // 4] - unit * patches // 4
        result[unit, places] = merged
    return result


@pytest.mark.parametrize("units_per_chunk", [None, 1, 2, 5, 9])
def test_chunks_equal_the_library(
    adapter: Qwen25VLAdapter, pixels: Tensor, units_per_chunk: int | None
) -> None:
    encoded = adapter.encode_video(pixels, GRID, units_per_chunk=units_per_chunk)
    with torch.no_grad():
        whole = adapter.model.model.get_video_features(pixels, torch.tensor([GRID])).pooler_output[0]
    assert encoded.features.shape == (5, 12, 192)
    torch.testing.assert_close(encoded.features.flatten(0, 1), whole, **CLOSE)


@pytest.mark.parametrize("units_per_chunk", [None, 2])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_saliency_is_the_literal_map(
    pixels: Tensor, attn_implementation: str, units_per_chunk: int | None
) -> None:
    model = tiny_model(attn_implementation)
    saliency = adapter_for(model).encode_video(pixels, GRID, units_per_chunk=units_per_chunk).saliency
    assert saliency is not None
    assert saliency.dtype == torch.float32
    torch.testing.assert_close(saliency, literal_saliency(model, pixels, GRID), atol=1e-7, rtol=1e-4)
    assert float(saliency.max() / saliency.min()) > 1.05  # not a constant, so the comparison says something


def test_saliency_sums_to_the_share_of_each_unit(adapter: Qwen25VLAdapter, pixels: Tensor) -> None:
    saliency = adapter.encode_video(pixels, GRID).saliency
    assert saliency is not None
    torch.testing.assert_close(saliency.sum(dim=1) * 4, torch.ones(5), **CLOSE)


@pytest.mark.parametrize("max_weights", [1, 100, 2000, 2**24])
def test_saliency_does_not_depend_on_the_memory_limit(max_weights: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 52, 3, 8, generator=generator)
    lengths = [16, 16, 12, 4, 4]
    whole = received_attention(query, key, lengths, scaling=0.35)
    parts = received_attention(query, key, lengths, scaling=0.35, max_weights=max_weights)
    torch.testing.assert_close(parts, whole, atol=1e-7, rtol=1e-5)


def test_saliency_is_not_computed_when_not_asked_for(adapter: Qwen25VLAdapter, pixels: Tensor) -> None:
    assert adapter.encode_video(pixels, GRID, with_saliency=False).saliency is None


def test_the_hook_lives_only_inside_the_with(adapter: Qwen25VLAdapter, pixels: Tensor) -> None:
    before = fingerprint(adapter.model)
    with adapter.watch_saliency(torch.tensor([GRID])):
        assert hooks_of(adapter.model) == 1
        assert fingerprint(adapter.model) != before
    assert fingerprint(adapter.model) == before


def test_the_hook_goes_when_the_tower_fails(adapter: Qwen25VLAdapter) -> None:
    with pytest.raises(ValueError, match="do not fill the grid"):
        adapter.encode_video(torch.zeros(7, 1176), GRID)
    with pytest.raises(RuntimeError):
        adapter.encode_video(torch.zeros(5 * 48, 7), GRID)
    assert hooks_of(adapter.model) == 0


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Linear .*Qwen2_5_VLForConditionalGeneration"):
        adapter_for(torch.nn.Linear(2, 2))
