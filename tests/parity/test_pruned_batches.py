"""Pruning inside the model, for batches, beams and samples in one call, equals masking the dropped tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flashvid.budget.schedule import inside_schedule, kv_lengths_by_layer
from flashvid.config import FlashVidConfig
from flashvid.generation.wrapper import flashvid
from flashvid.models.registry import adapter_for
from tests.parity.masking import masked_instead
from tests.parity.test_unwrapped import clip, inputs_of, picture
from tests.tiny_model import IMAGE, VIDEO, cache_among, prompt_of, skip_where_refused, tiny_model

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
LAYER, RATIO = 3, 0.3
NEW = 3
PLAIN: dict[str, Any] = {
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
    "suppress_tokens": [IMAGE, VIDEO],  # a random model would generate placeholders
    "do_sample": False,
}
STRUCTURED: dict[str, Any] = {
    **PLAIN,
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
}
ROWS = (
    prompt_of(3, ("video", 48), 4),
    prompt_of(6),
    prompt_of(2, ("video", 24), 3, ("video", 48), 5),
    prompt_of(3, ("image", 4), 2, ("video", 24), 4),
    prompt_of(2, ("image", 4), 7),
)
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "beams without a cache": {"num_beams": 2, "use_cache": False},
    "several beams returned": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 0, "temperature": 1.5},
    "several samples": {"do_sample": True, "top_k": 0, "num_return_sequences": 3},
    "sampled beams": {"do_sample": True, "top_k": 0, "num_beams": 2},
}


def padded(*rows: list[int]) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded on the left."""
    size = max(map(len, rows))
    ids = torch.tensor([[0] * (size - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows])


def visual_inputs() -> dict[str, Any]:
    """For ROWS: videos of 48, 24, 48 and 24 tokens, two pictures."""
    clips = [clip(8, 0), clip(4, 1), clip(8, 2), clip(4, 3)]
    pictures = [picture(8), picture(9)]
    return {
        "pixel_values_videos": torch.cat([patches for patches, _ in clips]),
        "video_grid_thw": torch.stack([grid for _, grid in clips]),
        "second_per_grid_ts": [1.0, 0.5, 2.0, 0.37],
        "pixel_values": torch.cat([patches for patches, _ in pictures]),
        "image_grid_thw": torch.stack([grid for _, grid in pictures]),
    }


def kv_lengths(output: Any) -> list[int]:
    """Entries of each layer's cache after the prompt."""
    new = len(output.logits)
    return [layer.keys.shape[2] - (new - 1) for layer in cache_among(output).layers]


def assert_equal(found: Any, wanted: Any) -> None:
    assert torch.equal(found.sequences, wanted.sequences)
    for name in ("scores", "logits"):
        torch.testing.assert_close(torch.stack(found[name]), torch.stack(wanted[name]), **CLOSE)
    if wanted.get("sequences_scores") is not None:
        torch.testing.assert_close(found.sequences_scores, wanted.sequences_scores, **CLOSE)
        assert torch.equal(found.beam_indices, wanted.beam_indices)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_every_mode_equals_masking(attn_implementation: str, mode: str) -> None:
    """Several videos in a prompt, videos beside images, text only, images only: one padded batch."""
    skip_where_refused(MODES[mode])
    model = tiny_model(attn_implementation)
    ids, mask = padded(*ROWS)
    kwargs = {**STRUCTURED, **MODES[mode]}
    wrapped = flashvid(model, 0.5, pruning_layer=LAYER, llm_retention_ratio=RATIO)
    torch.manual_seed(0)
    found = wrapped.generate(ids, mask, **visual_inputs(), **kwargs)
    whole = flashvid(model, 0.5, llm_retention_ratio=1.0)
    torch.manual_seed(0)
    with masked_instead(model, LAYER, RATIO) as oracle:
        wanted = whole.generate(ids, mask, **visual_inputs(), **kwargs)
    copies = max(kwargs.get("num_beams", 1), kwargs.get("num_return_sequences", 1))
    assert [
        bool(set(hidden) - set(pad))
        for hidden, pad in zip(oracle.hidden_columns, oracle.padding, strict=True)
    ] == [visual for visual in (True, False, True, True, False) for _ in range(copies)]
    assert_equal(found, wanted)
    assert torch.equal(
        found.sequences[:, : ids.shape[1]], ids.repeat_interleave(len(found.sequences) // 5, 0)
    )
    torch.manual_seed(0)
    unpruned = whole.generate(ids, mask, **visual_inputs(), **kwargs)
    assert float((unpruned.logits[0] - found.logits[0]).abs().max()) > 1e-3  # pruning does something


@pytest.mark.parametrize("num_layers", [2, 3, 5, 28])
@pytest.mark.parametrize("beams", [1, 2])
def test_derived_layers_and_ratios_equal_masking(num_layers: int, beams: int) -> None:
    """The layer and the ratio follow from the layer count; the caches are as long as the budget says."""
    model = tiny_model(num_layers=num_layers)
    config = FlashVidConfig(retention_ratio=0.5)
    schedule = inside_schedule(config, num_layers)
    assert schedule is not None
    ids, mask = padded(*ROWS)
    kwargs = {**STRUCTURED, "num_beams": beams}
    wrapped = flashvid(model, config=config)
    found, report = wrapped.generate(ids, mask, **visual_inputs(), **kwargs, return_report=True)
    with masked_instead(model, schedule.layer, schedule.ratio):
        wanted = flashvid(model, config=config, llm_retention_ratio=1.0).generate(
            ids, mask, **visual_inputs(), **kwargs
        )
    assert_equal(found, wanted)
    entered = [video.tokens_after for video in report.videos]
    longest = entered[1] + entered[2]  # the third prompt: 14 tokens of text and two videos
    lengths = kv_lengths_by_layer(14, longest, num_layers, schedule.layer, schedule.ratio)
    assert kv_lengths(found) == list(lengths)
    assert len(set(lengths)) == 2


@pytest.mark.parametrize("mode", ["greedy", "without a cache", "beams", "several beams returned"])
def test_every_row_is_what_it_is_alone(mode: str) -> None:
    skip_where_refused(MODES[mode])
    model = tiny_model()
    ids, mask = padded(*ROWS)
    kwargs = {**PLAIN, **MODES[mode]}
    wrapped = flashvid(model, 0.5, pruning_layer=LAYER, llm_retention_ratio=RATIO)
    batch = wrapped.generate(ids, mask, **visual_inputs(), **kwargs)[:, ids.shape[1] :]
    alone = [
        wrapped.generate(torch.tensor([row]), **inputs, **kwargs)[:, len(row) :]
        for row, inputs in zip(ROWS, inputs_by_row(), strict=True)
    ]
    assert torch.equal(batch, torch.cat(alone))
    assert len({tuple(row.tolist()) for row in batch}) > 1  # the prompts matter


def test_a_penalty_on_what_a_prompt_holds_does_not_see_padding() -> None:
    """Above 1 it asks for what the prompt holds; a padding token that a row does not hold must not come."""
    model = tiny_model()
    ids, mask = padded(*ROWS)
    wrapped = flashvid(model, 0.5)
    likely = (
        wrapped.generate(ids, mask, **visual_inputs(), **STRUCTURED).scores[0][1].topk(2).indices.tolist()
    )
    assert not set(likely) & set(ROWS[1])
    kwargs = {**PLAIN, "encoder_repetition_penalty": 20.0, "pad_token_id": likely[1]}
    if not adapter_for(model).takes_features:
        with pytest.raises(ValueError, match=r"install transformers>=5\.18 or leave"):
            wrapped.generate(ids, mask, **visual_inputs(), **kwargs)
        return
    batch = wrapped.generate(ids, mask, **visual_inputs(), **kwargs)[:, ids.shape[1] :]
    alone = [
        wrapped.generate(torch.tensor([row]), **inputs, **kwargs)[:, len(row) :]
        for row, inputs in zip(ROWS, inputs_by_row(), strict=True)
    ]
    assert torch.equal(batch, torch.cat(alone))


def inputs_by_row() -> list[dict[str, Any]]:
    """The part of ``visual_inputs`` that belongs to each of ROWS."""
    every = visual_inputs()
    sizes = every["video_grid_thw"].prod(1).tolist()
    patches = every["pixel_values_videos"].split(sizes)
    rows: list[dict[str, Any]] = []
    for videos, images in (([0], []), ([], []), ([1, 2], []), ([3], [0]), ([], [1])):
        row: dict[str, Any] = {}
        if videos:
            row["pixel_values_videos"] = torch.cat([patches[index] for index in videos])
            row["video_grid_thw"] = every["video_grid_thw"][videos]
            row["second_per_grid_ts"] = [every["second_per_grid_ts"][index] for index in videos]
        if images:
            row["pixel_values"] = every["pixel_values"].split(16)[images[0]]
            row["image_grid_thw"] = every["image_grid_thw"][images]
        rows.append(row)
    return rows


def test_rows_of_one_length_that_keep_different_numbers() -> None:
    """No padding on entry, so the library makes no mask; from the pruning layer on there is some."""
    model = tiny_model()
    rows = (prompt_of(3, ("video", 48), 4), prompt_of(3, ("video", 24), 28))
    assert len(rows[0]) == len(rows[1])
    clips = [clip(8, 0), clip(4, 1)]
    inputs = {
        "pixel_values_videos": torch.cat([patches for patches, _ in clips]),
        "video_grid_thw": torch.stack([grid for _, grid in clips]),
        "second_per_grid_ts": [1.0, 1.0],
    }
    ids = torch.tensor(rows)
    wrapped = flashvid(model, 1.0, pruning_layer=2, llm_retention_ratio=0.25)
    found = wrapped.generate(ids, **inputs, **STRUCTURED)
    with masked_instead(model, 2, 0.25):
        wanted = flashvid(model, 1.0).generate(ids, **inputs, **STRUCTURED)
    assert_equal(found, wanted)
    assert kv_lengths(found) == [57, 57, 39, 39, 39]  # 33 + 6 of 24 are more than 9 + 12 of 48


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_half_precision(attn_implementation: str, dtype: torch.dtype) -> None:
    """The masks are of the model's dtype; a mask added to the scores leaves them finite."""
    model = tiny_model(attn_implementation).to(dtype)
    ids, mask = padded(*ROWS)
    wrapped = flashvid(model, 0.5, pruning_layer=LAYER, llm_retention_ratio=RATIO)
    found = wrapped.generate(ids, mask, **visual_inputs(), **STRUCTURED)
    with masked_instead(model, LAYER, RATIO):
        wanted = flashvid(model, 0.5, llm_retention_ratio=1.0).generate(
            ids, mask, **visual_inputs(), **STRUCTURED
        )
    first, other = found.logits[0].float(), wanted.logits[0].float()
    assert float((first - other).abs().mean()) < 0.02 * float(other.abs().max())
    assert bool(torch.stack(found.logits).isfinite().all())


def test_inference_mode() -> None:
    model = tiny_model()
    ids, mask = padded(*ROWS)
    wrapped = flashvid(model, 0.5)
    wanted = wrapped.generate(ids, mask, **visual_inputs(), **PLAIN)
    with torch.inference_mode():
        assert torch.equal(wrapped.generate(ids, mask, **visual_inputs(), **PLAIN), wanted)


def test_hidden_states_and_attentions_follow_the_cut() -> None:
    model = tiny_model("eager")
    ids = torch.tensor([ROWS[0]])
    kwargs = {**STRUCTURED, "output_hidden_states": True, "output_attentions": True}
    wrapped = flashvid(model, 1.0, pruning_layer=2, llm_retention_ratio=0.25)
    output = wrapped.generate(ids, **inputs_of(1.0), **kwargs)
    assert [state.shape[1] for state in output.hidden_states[0]] == [57, 57, 57, 21, 21, 21]
    assert [part.shape[-2:] for part in output.attentions[0]] == [(57, 57)] * 2 + [(21, 21)] * 3
    assert [part.shape[-2:] for part in output.attentions[1]] == [(1, 58)] * 2 + [(1, 22)] * 3
