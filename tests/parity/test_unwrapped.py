"""retention_ratio=1: token for token what the unwrapped model gives for the same positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flashvid.frames import frames_to_patches
from flashvid.generation.wrapper import flashvid
from flashvid.inside.positions import find_spans, mrope_positions
from flashvid.inside.prompt import token_types
from tests.tiny_model import IMAGE, VIDEO, VISION, prompt_of, random_frames, tiny_model

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def clip(num_frames: int, seed: int, height: int = 112, width: int = 84) -> tuple[Tensor, Tensor]:
    return frames_to_patches(random_frames(num_frames, height, width, seed), **vars(VISION))


def picture(seed: int) -> tuple[Tensor, Tensor]:
    """One 56 x 56 image, 4 tokens."""
    patches, grid = frames_to_patches(random_frames(1, 56, 56, seed), **vars(VISION))
    return patches, grid


def inputs_of(*seconds: float, image: bool = False) -> dict[str, Any]:
    """Videos of 8, 4, 8 ... frames and perhaps an image, as a processor returns them."""
    clips = [clip(8 if seed % 2 == 0 else 4, seed) for seed in range(len(seconds))]
    inputs: dict[str, Any] = {}
    if clips:
        inputs["pixel_values_videos"] = torch.cat([patches for patches, _ in clips])
        inputs["video_grid_thw"] = torch.stack([grid for _, grid in clips])
        inputs["second_per_grid_ts"] = torch.tensor(seconds)
    if image:
        patches, grid = picture(9)
        inputs["pixel_values"], inputs["image_grid_thw"] = patches, grid[None]
    return inputs


def trained_positions(ids: Tensor, mask: Tensor, inputs: dict[str, Any]) -> Tensor:
    """(4, B, S) of a padded batch, by the definition, row after row."""
    images = iter(inputs.get("image_grid_thw", torch.empty(0, 3)).tolist())
    seconds = inputs.get("second_per_grid_ts", torch.empty(0)).tolist()
    videos = iter(zip(inputs.get("video_grid_thw", torch.empty(0, 3)).tolist(), seconds, strict=True))
    result = torch.zeros(4, *ids.shape, dtype=torch.long)
    for row, (tokens, keep) in enumerate(zip(ids, mask.bool(), strict=True)):
        types = token_types(tokens[keep], image_token_id=IMAGE, video_token_id=VIDEO).tolist()
        spans = find_spans(types, images, videos, merge_size=2)
        result[0, row, keep] = torch.arange(len(types))
        result[1:, row, keep] = mrope_positions(len(types), spans, tokens_per_second=2)
    return result


PROMPTS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "one video": ([3, ("video", 48), 4], inputs_of(1.0)),
    "two videos": ([3, ("video", 48), 2, ("video", 24), 4], inputs_of(1.0, 0.37)),
    "image before video": ([3, ("image", 4), 2, ("video", 48), 4], inputs_of(2.0, image=True)),
    "image after video": ([("video", 48), 2, ("image", 4), 4], inputs_of(2.0, image=True)),
    "only an image": ([3, ("image", 4), 4], inputs_of(image=True)),
    "only text": ([9], {}),
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_token_for_token(name: str, attn_implementation: str) -> None:
    parts, inputs = PROMPTS[name]
    ids = torch.tensor([prompt_of(*parts)])
    model = tiny_model(attn_implementation)
    positions = trained_positions(ids, torch.ones_like(ids), inputs)
    plain = {key: value for key, value in inputs.items() if key != "second_per_grid_ts"}
    wanted = model.generate(
        ids, attention_mask=torch.ones_like(ids), position_ids=positions, **plain, **GREEDY
    )
    assert torch.equal(flashvid(model, 1.0).generate(ids, **inputs, **GREEDY), wanted)


def test_token_for_token_in_a_left_padded_batch() -> None:
    rows = [prompt_of(3, ("video", 48), 4), prompt_of(2, ("video", 24), 3), prompt_of(5)]
    size = max(map(len, rows))
    ids = torch.tensor([[0] * (size - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows])
    inputs, model = inputs_of(1.0, 0.5), tiny_model()
    plain = {key: value for key, value in inputs.items() if key != "second_per_grid_ts"}
    wanted = model.generate(
        ids, attention_mask=mask, position_ids=trained_positions(ids, mask, inputs), **plain, **GREEDY
    )
    assert torch.equal(flashvid(model, 1.0).generate(ids, mask, **inputs, **GREEDY), wanted)


def test_library_positions_on_request() -> None:
    """With ``positions="transformers"`` the stock call with its own positions is the reference."""
    parts, inputs = PROMPTS["one video"]
    ids = torch.tensor([prompt_of(*parts)])
    model = tiny_model()
    types = token_types(ids, image_token_id=IMAGE, video_token_id=VIDEO)
    # generate continues from the last position + 1; the library's own call adds its rope delta instead, so
    # only the first token is the same computation
    once = {**GREEDY, "max_new_tokens": 1, "min_new_tokens": 1}
    scores = {"return_dict_in_generate": True, "output_logits": True}
    wanted = model.generate(ids, mm_token_type_ids=types, **inputs, **once, **scores)
    found = flashvid(model, 1.0, positions="transformers").generate(ids, **inputs, **once, **scores)
    trained = flashvid(model, 1.0).generate(ids, **inputs, **once, **scores)
    torch.testing.assert_close(found.logits[0], wanted.logits[0], atol=1e-5, rtol=1e-5)
    assert float((trained.logits[0] - wanted.logits[0]).abs().max()) > 1e-3


def test_calls_do_not_leak_into_each_other() -> None:
    """``rope_deltas`` of an unwrapped call stay on the model; the wrapper neither reads nor writes them."""
    parts, inputs = PROMPTS["two videos"]
    ids = torch.tensor([prompt_of(*parts)])
    fresh = flashvid(tiny_model(), 0.3).generate(ids, **inputs, **GREEDY)
    model = tiny_model()
    wrapped = flashvid(model, 0.3)
    types = token_types(ids, image_token_id=IMAGE, video_token_id=VIDEO)
    stock = model.generate(ids, mm_token_type_ids=types, **inputs, **GREEDY)
    left = model.model.rope_deltas.clone()
    text = torch.tensor([prompt_of(9)])
    assert torch.equal(wrapped.generate(ids, **inputs, **GREEDY), fresh)
    assert torch.equal(wrapped.generate(text, **GREEDY), flashvid(tiny_model()).generate(text, **GREEDY))
    assert torch.equal(wrapped.generate(ids, **inputs, **GREEDY), fresh)
    assert torch.equal(model.model.rope_deltas, left)
    assert torch.equal(model.generate(ids, mm_token_type_ids=types, **inputs, **GREEDY), stock)
