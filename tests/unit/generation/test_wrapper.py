"""The contract of ``flashvid(model).generate``: what comes out, what is refused, what stays as it was."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from flashvid.config import FlashVidConfig
from flashvid.generation.wrapper import FlashVidModel, flashvid
from flashvid.models.registry import adapter_for
from flashvid.settings import FlashVidSettings
from tests.parity.test_unwrapped import PROMPTS, clip, inputs_of
from tests.tiny_model import fingerprint, hooks_of, prompt_of, tiny_model

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
IDS = torch.tensor([prompt_of(3, ("video", 48), 4)])


def test_output_begins_with_the_caller_s_prompt(model: Any) -> None:
    output = flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), **GREEDY)
    assert output.shape == (1, IDS.shape[1] + 5)
    assert torch.equal(output[:, : IDS.shape[1]], IDS)


def test_structured_output_begins_with_the_prompt_too(model: Any) -> None:
    output = flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), **GREEDY, return_dict_in_generate=True)
    assert torch.equal(output.sequences, flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), **GREEDY))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        {"do_sample": True, "num_return_sequences": 2},
    ],
)
def test_several_returned_sequences(model: Any, kwargs: dict[str, Any]) -> None:
    output = flashvid(model, 0.2).generate(
        IDS, **inputs_of(1.0), max_new_tokens=3, min_new_tokens=3, **kwargs
    )
    assert output.shape == (2, IDS.shape[1] + 3)
    assert torch.equal(output[:, : IDS.shape[1]], IDS.expand(2, -1))


def test_the_report_counts(model: Any) -> None:
    ids = torch.tensor([prompt_of(3, ("video", 48), 2, ("video", 24), 4)])
    _, report = flashvid(model, 0.25).generate(ids, **inputs_of(1.0, 0.5), **GREEDY, return_report=True)
    first, second = report.videos
    assert (first.grid, first.tokens_before, second.tokens_before) == ((4, 4, 3), 48, 24)
    assert report.visual_tokens_before == 72
    assert report.visual_tokens_after == first.tokens_after + second.tokens_after
    assert 0 < first.tokens_after <= 16
    assert bool((first.kept.diff() > 0).all())
    assert report.tokens_mean_per_prompt[0] < report.visual_tokens_after  # pruned inside as well
    # 4 and 2 units of 12 tokens; ceil(12 * 0.25 * 1.25) = 4 places in each
    assert [video.budget_tokens for video in report.videos] == [16, 8]
    assert all(video.tokens_after <= video.budget_tokens for video in report.videos)


def test_the_report_knows_the_budget(model: Any) -> None:
    """The ceiling lowers it; an adaptive video that repeats itself uses less; a bypass has none."""
    still = clip(8, 0)[0].view(4, 48, -1)[:1].expand(4, -1, -1).flatten(0, 1)
    grid = torch.tensor([4, 8, 6])
    _, report = flashvid(model, 0.25, adaptive=True, min_segment_num=1).encode_video(still, grid)
    assert report.tokens_after <= 8 < report.budget_tokens == 16
    _, report = flashvid(model, 0.25, max_visual_tokens=9).encode_video(still, grid)
    assert (report.tokens_after, report.budget_tokens) == (8, 8)
    _, report = flashvid(model, 1.0).encode_video(still, grid)
    assert report.tokens_after == report.budget_tokens == report.tokens_before == 48


def test_every_batch_row_is_what_it_is_alone(model: Any) -> None:
    rows = [prompt_of(3, ("video", 48), 4), prompt_of(2, ("video", 24), 3), prompt_of(5)]
    size = max(map(len, rows))
    ids = torch.tensor([[0] * (size - len(row)) + row for row in rows])
    mask = (torch.arange(size) >= size - torch.tensor([[len(row)] for row in rows])).long()
    singles: list[dict[str, Any]] = [inputs_of(1.0), {}, {}]
    patches, grid = clip(4, 1)
    singles[1] = {"pixel_values_videos": patches, "video_grid_thw": grid[None], "second_per_grid_ts": [0.5]}
    for settings in ({}, {"llm_retention_ratio": 1.0}):
        wrapped = flashvid(model, 0.25, **settings)
        batch = wrapped.generate(ids, mask, **inputs_of(1.0, 0.5), **GREEDY)
        assert torch.equal(batch[:, :size], ids)
        for row, (tokens, inputs) in enumerate(zip(rows, singles, strict=True)):
            alone = wrapped.generate(torch.tensor([tokens]), **inputs, **GREEDY)
            assert torch.equal(batch[row, size:], alone[0, len(tokens) :])


def test_rows_that_end_early_are_padded(model: Any) -> None:
    ids = torch.cat((IDS, IDS))
    inputs = inputs_of(1.0, 1.0)
    inputs["pixel_values_videos"] = torch.cat([clip(8, 0)[0], clip(8, 2)[0]])
    inputs["video_grid_thw"] = torch.tensor([[4, 8, 6], [4, 8, 6]])
    free = flashvid(model, 0.25).generate(ids, **inputs, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    new = free[:, IDS.shape[1] :]
    end = next(int(token) for token in new[0] if token not in new[1])
    output = flashvid(model, 0.25).generate(
        ids, **inputs, max_new_tokens=6, do_sample=False, eos_token_id=end
    )
    place = new[0].tolist().index(end)
    assert output[0, IDS.shape[1] :].tolist() == [*new[0, : place + 1].tolist(), *[0] * (5 - place)]
    assert torch.equal(output[1, IDS.shape[1] :], new[1])


def test_the_model_is_as_it_was(model: Any) -> None:
    """Classes, attributes, hooks and values; the same probe sees the hooks while they are there."""
    before = fingerprint(model)
    wrapped = flashvid(model, 0.2)
    wrapped.generate(IDS, **inputs_of(1.0), **GREEDY)
    assert fingerprint(model) == before
    with adapter_for(model).watch_saliency(torch.tensor([[1, 8, 6]])):
        assert fingerprint(model) != before
    assert hooks_of(model) == 0
    with pytest.raises(ValueError, match="not used by the model"):
        wrapped.generate(IDS, **inputs_of(1.0), no_such_argument=1)
    assert fingerprint(model) == before


def test_hooks_are_there_during_generate(model: Any) -> None:
    """Positive control: while ``generate`` runs, the pruning hooks can be counted on the same object."""
    counts: list[int] = []

    class Counter:
        def put(self, value: torch.Tensor) -> None:
            counts.append(hooks_of(model))

        def end(self) -> None:
            pass

    flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), **GREEDY, streamer=Counter())
    assert set(counts) == {1 + 2}  # 5 layers, expansion 1.25: the attention of layer 2, then layers 3 and 4
    assert hooks_of(model) == 0


def test_a_failure_during_generate_leaves_no_hook(model: Any) -> None:
    class Failing:
        def put(self, value: torch.Tensor) -> None:
            raise KeyboardInterrupt

        def end(self) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), **GREEDY, streamer=Failing())
    assert hooks_of(model) == 0


def test_reference_keywords_are_accepted(model: Any) -> None:
    wrapped = flashvid(
        model,
        retention_ratio=0.25,
        do_segment=True,
        segment_threshold=0.9,
        min_segment_num=4,
        complementary_segment=True,
        token_selection_method="attn_div",
        alpha=0.7,
        temporal_threshold=0.8,
        expansion=1.25,
        pruning_layer=3,
        llm_retention_ratio=0.3,
    )
    assert wrapped.flashvid_config.pruning_layer == 3
    wrapped.generate(IDS, **inputs_of(1.0), **GREEDY)


def test_the_signature_lists_the_settings() -> None:
    """For editors and help(): names and types as in the configuration, whose defaults are shown."""
    shown = inspect.signature(flashvid).parameters
    known = {field.name: field for field in dataclasses.fields(FlashVidConfig)}
    assert shown.keys() == {"model", "config", "positions", *known}
    for name in known.keys() - {"retention_ratio"}:
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[name].default == known[name].default
    typed = FlashVidSettings.__annotations__
    assert {name: kind.__forward_arg__ for name, kind in typed.items()} == {
        name: field.type for name, field in known.items() if name != "retention_ratio"
    }


def test_unknown_settings_are_refused(model: Any) -> None:
    with pytest.raises(TypeError, match="retention"):
        flashvid(model, retention=0.2)  # type: ignore[call-arg]


def test_config_and_overrides(model: Any) -> None:
    config = FlashVidConfig(retention_ratio=0.5, alpha=0.3)
    assert flashvid(model, config=config).flashvid_config is not None
    assert flashvid(model, config=config).flashvid_config == config
    assert flashvid(model, 0.2, config=config).flashvid_config == FlashVidConfig(
        retention_ratio=0.2, alpha=0.3
    )


def test_other_attributes_are_the_model_s(model: Any) -> None:
    wrapped = flashvid(model, 0.2)
    assert isinstance(wrapped, FlashVidModel)
    assert wrapped.config is model.config
    assert wrapped.device == model.device
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapped.no_such_thing


def test_chained_calls_stay_wrapped(model: Any) -> None:
    wrapped = flashvid(model, 0.2)
    assert wrapped.eval() is wrapped
    assert wrapped.to("cpu").float().eval() is wrapped
    assert not model.training


def test_wrapping_again_changes_the_settings(model: Any) -> None:
    again = flashvid(flashvid(model, 0.5), 0.2)
    assert again.flashvid_config.retention_ratio == 0.2
    expected = flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), **GREEDY)
    assert torch.equal(again.generate(IDS, **inputs_of(1.0), **GREEDY), expected)


def test_mm_token_type_ids_are_checked(model: Any) -> None:
    types = torch.zeros_like(IDS)
    with pytest.raises(ValueError, match="mm_token_type_ids disagrees"):
        flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), mm_token_type_ids=types)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second_per_grid_ts": None}, "second_per_grid_ts is missing"),
        ({"second_per_grid_ts": [1.0, 2.0]}, "2 second_per_grid_ts for 1 videos"),
        ({"second_per_grid_ts": [float("nan")]}, "second_per_grid_ts=nan must be finite"),
        ({"cache_implementation": "static"}, "must be 'dynamic'"),
        ({"video_grid_thw": None}, "belong together"),
        ({"pixel_values_videos": None}, "belong together"),
        ({"video_grid_thw": torch.tensor([[2, 8, 6]])}, "384 patches|192 patches"),
        ({"position_ids": torch.zeros(1, 3)}, "position_ids cannot be given"),
        ({"image_grid_thw": torch.tensor([[1, 4, 4]])}, "pixel_values and image_grid_thw belong together"),
        ({"attention_mask": torch.zeros_like(IDS)}, "hides every token"),
        ({"attention_mask": torch.ones(1, 3)}, r"must both be \(B, S\)"),
        ({"input_ids": IDS[:0]}, r"input_ids of shape \(0, .*at least 1"),
        ({"video_grid_thw": torch.tensor([4, 8, 6])}, r"video_grid_thw of shape \(3,\) must be"),
        ({"video_grid_thw": torch.tensor([[64, 1, 3]])}, r"\(64, 1, 3\).*multiples of 2"),
        ({"video_grid_thw": torch.tensor([[0, 8, 6]])}, r"\(0, 8, 6\).*each at least 1"),
        ({"video_grid_thw": torch.tensor([[-4, -8, 6]])}, r"\(-4, -8, 6\).*each at least 1"),
        (
            {"pixel_values_videos": torch.zeros(1, 192, 1176)},
            r"pixel_values_videos of shape \(1, 192, 1176\)",
        ),
        (
            {"pixel_values": torch.zeros(12, 1176), "image_grid_thw": torch.tensor([[1, 4, 4]])},
            "12 patches, its grids stand for 16",
        ),
        (
            {"pixel_values": torch.zeros(16, 1176), "image_grid_thw": torch.tensor([[1, 16, 1]])},
            r"image_grid_thw has \(1, 16, 1\)",
        ),
    ],
)
def test_inconsistent_inputs_are_refused(model: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        flashvid(model, 0.2).generate(**{"input_ids": IDS, **inputs_of(1.0), **change}, **GREEDY)


@pytest.mark.parametrize(
    "seconds",
    [[0.37], np.array([0.37]), torch.tensor([0.37], dtype=torch.float64), torch.tensor(0.37), 0.37],
    ids=repr,
)
def test_seconds_come_as_numbers_of_any_kind(model: Any, seconds: Any) -> None:
    inputs = {**inputs_of(1.0), "second_per_grid_ts": seconds}
    wrapped = flashvid(model, 0.2)
    expected = wrapped.generate(IDS, **inputs_of(0.37), **GREEDY)
    assert torch.equal(wrapped.generate(IDS, **inputs, **GREEDY), expected)


def test_attributes_are_set_on_the_model() -> None:
    """Scripts replace the generation config; it must not stay on the wrapper, where nobody reads it."""
    model = tiny_model()
    wrapped = flashvid(model, 0.2)
    config = GenerationConfig(max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)
    wrapped.generation_config = config
    assert model.generation_config is wrapped.generation_config is config
    assert wrapped.generate(IDS, **inputs_of(1.0)).shape[1] == IDS.shape[1] + 2
    with pytest.raises(AttributeError):
        wrapped.flashvid_config = FlashVidConfig()


def test_copies_have_a_model_of_their_own(model: Any) -> None:
    wrapped = flashvid(model, 0.2)
    expected = wrapped.generate(IDS, **inputs_of(1.0), **GREEDY)
    for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert torch.equal(other.generate(IDS, **inputs_of(1.0), **GREEDY), expected)
        other.lm_head.weight.data.zero_()
    assert torch.equal(wrapped.generate(IDS, **inputs_of(1.0), **GREEDY), expected)


def test_more_videos_than_placeholders_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="more rows than input_ids has videos"):
        flashvid(model, 0.2).generate(IDS, **inputs_of(1.0, 1.0), **GREEDY)


def test_placeholders_without_video_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="has no row in video_grid_thw"):
        flashvid(model, 0.2).generate(IDS, **GREEDY)


@pytest.mark.parametrize("name", PROMPTS)
def test_compressed_prompts_of_every_kind_run(model: Any, name: str) -> None:
    parts, inputs = PROMPTS[name]
    ids = torch.tensor([prompt_of(*parts)])
    output, report = flashvid(model, 0.25).generate(ids, **inputs, **GREEDY, return_report=True)
    assert output.shape == (1, ids.shape[1] + 5)
    assert report.visual_tokens_after <= max(0.5 * report.visual_tokens_before, 0)


def test_encode_video_alone(model: Any) -> None:
    patches, grid = clip(8, 0)
    compressed, report = flashvid(model, 0.25).encode_video(patches, grid)
    assert compressed.tokens.shape == (report.tokens_after, 192)
    assert report.tokens_before == 48


def test_unknown_positions_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="vllm"):
        flashvid(model, positions="vllm")  # type: ignore[arg-type]
