"""Frames to patches: equal to the Hugging Face processor's PIL backend within rounding."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from flashvid.frames import VisionSettings, frames_to_patches, iterate_patches
from tests.tiny_model import random_frames

SETTINGS = VisionSettings(min_pixels=56 * 56, max_pixels=112 * 140)
# One level of 255, divided by the smallest channel deviation: what a rounding may do to a normalised value.
ONE_LEVEL = 1 / 255 / min(SETTINGS.image_std)


def noise(num_frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_frames, height, width, 3), generator=generator, dtype=torch.uint8)


def library_patches(frames: Tensor, settings: VisionSettings) -> tuple[Tensor, list[int]]:
    """Every frame through the library's image processor, two frames interleaved into each unit."""
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    )
    images = [frame.permute(2, 0, 1).numpy() for frame in frames]
    images += [images[-1]] * (len(images) % 2)
    output: Any = processor(images, return_tensors="np", input_data_format="channels_first")
    _, high, wide = output["image_grid_thw"][0].tolist()
    patches = output["pixel_values"].reshape(
        -1, 2, high * wide, 3, 2, 14, 14
    )  # (units, frame, patch, C, copy, p, p)
    pairs = np.stack([patches[:, 0, :, :, 0], patches[:, 1, :, :, 0]], axis=3)
    return torch.from_numpy(pairs.reshape(-1, 3 * 2 * 14 * 14)), [len(images) // 2, high, wide]


@pytest.mark.parametrize(
    "frames",
    [
        noise(4, 112, 112),
        noise(2, 360, 640),
        noise(2, 30, 40),
        noise(3, 97, 211),
        noise(1, 500, 60),
        noise(1, 60, 500),
        random_frames(5, 224, 168),
    ],
    ids=["as it is", "shrink", "grow", "odd count, odd size", "one tall frame", "one wide frame", "smooth"],
)
def test_equals_the_library(frames: Tensor) -> None:
    ours, grid = frames_to_patches(frames, **vars(SETTINGS))
    theirs, their_grid = library_patches(frames, SETTINGS)
    assert grid.tolist() == their_grid
    difference = (ours - theirs).abs()
    assert float(difference.max()) <= 1.01 * ONE_LEVEL
    assert float((difference > 1e-5).float().mean()) < 0.01  # only where rounding falls the other way


def test_without_resize_the_values_are_exact() -> None:
    frames = noise(2, 112, 112)
    ours, _ = frames_to_patches(frames, **vars(SETTINGS))
    theirs, _ = library_patches(frames, SETTINGS)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_odd_frame_count_repeats_the_last_frame() -> None:
    frames = noise(3, 84, 112)
    padded = torch.cat((frames, frames[-1:]))
    for one, other in zip(
        frames_to_patches(frames, **vars(SETTINGS)), frames_to_patches(padded, **vars(SETTINGS)), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("units_per_chunk", [1, 2, 7])
def test_chunks_together_are_the_whole(units_per_chunk: int) -> None:
    frames = noise(9, 100, 130)
    whole, _ = frames_to_patches(frames, **vars(SETTINGS))
    chunks = list(
        iterate_patches(
            frames,
            SETTINGS,
            units_per_chunk=units_per_chunk,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
    )
    assert torch.equal(torch.cat(chunks), whole)
    assert len(chunks) == -(-5 // units_per_chunk)


def test_small_working_memory_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noise(6, 100, 130)
    whole, _ = frames_to_patches(frames, **vars(SETTINGS))
    monkeypatch.setattr("flashvid.frames.RESIZE_BYTES", 1)
    assert torch.equal(frames_to_patches(frames, **vars(SETTINGS))[0], whole)


def test_dtype_is_the_asked_one() -> None:
    patches, _ = frames_to_patches(noise(2, 56, 56), dtype=torch.bfloat16, **vars(SETTINGS))
    assert patches.dtype == torch.bfloat16


def test_frames_are_not_written_to() -> None:
    frames = noise(2, 90, 90)
    before = frames.clone()
    frames_to_patches(frames, **vars(SETTINGS))
    assert torch.equal(frames, before)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 56, 56, 3),
        torch.zeros(2, 3, 56, 56, dtype=torch.uint8),
        torch.zeros(0, 56, 56, 3, dtype=torch.uint8),
        torch.zeros(56, 56, 3, dtype=torch.uint8),
    ],
    ids=["float", "channels first", "no frames", "one image"],
)
def test_wrong_frames_are_refused(frames: Tensor) -> None:
    with pytest.raises(ValueError, match="need \\(T >= 1, H, W, 3\\)"):
        frames_to_patches(frames, **vars(SETTINGS))


def test_settings_from_both_kinds_of_processor_json() -> None:
    new = VisionSettings.from_processor(
        {"size": {"shortest_edge": 784, "longest_edge": 28224}, "patch_size": 16}
    )
    assert (new.min_pixels, new.max_pixels, new.patch_size) == (784, 28224, 16)
    old = VisionSettings.from_processor({"min_pixels": 3136, "max_pixels": 12845056}, for_images=True)
    assert (old.min_pixels, old.max_pixels) == (3136, 768 * 28 * 28)


def test_settings_know_the_grid() -> None:
    settings = dataclasses.replace(SETTINGS, max_pixels=10**6)
    assert settings.grid(5, 112, 168) == (3, 8, 12)
    assert settings.tokens_per_unit(112, 168) == 24


def test_contradictory_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="min_pixels"):
        VisionSettings(min_pixels=100, max_pixels=50)
