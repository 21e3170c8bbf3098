"""What ``generate`` is told and what it tells back: the caller's prompt, not the shortened one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor
from transformers import GenerationConfig, MaxLengthCriteria, TextStreamer

from flashvid.generation.wrapper import flashvid
from flashvid.inside.calls import library_version
from tests.parity.test_pruned_batches import ROWS, padded, visual_inputs
from tests.parity.test_unwrapped import inputs_of
from tests.tiny_model import END, hooks_of, prompt_of, tiny_tokenizer

IDS = torch.tensor([prompt_of(3, ("video", 48), 4)])
SIZE = IDS.shape[1]
FREE: dict[str, Any] = {"do_sample": False, "eos_token_id": -1}
GREEDY: dict[str, Any] = {**FREE, "max_new_tokens": 4}


def new_tokens(output: Tensor, ids: Tensor = IDS) -> Tensor:
    assert torch.equal(output[:, : ids.shape[1]], ids)
    return output[:, ids.shape[1] :]


@pytest.mark.parametrize("place", ["keyword", "config", "model"])
def test_max_length_counts_the_caller_s_prompt(model: Any, place: str) -> None:
    wrapped, length = flashvid(copy.deepcopy(model), 0.2), SIZE + 4
    kwargs: dict[str, Any] = {"max_length": length}
    if place == "config":
        kwargs = {"generation_config": GenerationConfig(max_length=length, eos_token_id=[63], pad_token_id=0)}
    elif place == "model":
        wrapped.generation_config.max_length = length
        kwargs = {}
    before = copy.deepcopy(kwargs.get("generation_config"))
    output = wrapped.generate(IDS, **inputs_of(1.0), **(FREE if place != "config" else {}), **kwargs)
    assert new_tokens(output).shape[1] == 4
    if before is not None:
        assert kwargs["generation_config"].to_dict() == before.to_dict()


@pytest.mark.parametrize("place", ["keyword", "config"])
def test_min_length_counts_the_caller_s_prompt(model: Any, place: str) -> None:
    wrapped = flashvid(model, 0.2)
    free = new_tokens(wrapped.generate(IDS, **inputs_of(1.0), **GREEDY))[0].tolist()
    end = {"eos_token_id": free[0], "pad_token_id": 0, "do_sample": False, "max_new_tokens": 6}
    assert new_tokens(wrapped.generate(IDS, **inputs_of(1.0), **end)).shape[1] == 1
    if place == "config":
        kwargs: dict[str, Any] = {"generation_config": GenerationConfig(**end, min_length=SIZE + 3)}
    else:
        kwargs = {**end, "min_length": SIZE + 3}
    output = new_tokens(wrapped.generate(IDS, **inputs_of(1.0), **kwargs))
    assert free[0] not in output[0, :3].tolist()
    assert 3 < output.shape[1] <= 6


def test_new_tokens_in_a_config_are_new_tokens(model: Any) -> None:
    config = GenerationConfig(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    output = flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), generation_config=config)
    assert new_tokens(output).shape[1] == 3


def test_a_max_length_within_the_prompt_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=f"max_length={SIZE} must be more than the {SIZE} tokens"):
        flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), max_length=SIZE)


@pytest.mark.parametrize("place", ["keyword", "config"])
def test_finished_rows_are_filled_with_the_caller_s_pad_token(model: Any, place: str) -> None:
    ids, mask = padded(*ROWS)
    wrapped = flashvid(model, 0.5)
    free = new_tokens(wrapped.generate(ids, mask, **visual_inputs(), **GREEDY), ids)
    end = int(free[0, 0])
    assert (free == end).any(dim=1).tolist() != [True] * 5
    settings = {"pad_token_id": 7, "eos_token_id": end, "do_sample": False, "max_new_tokens": 4}
    kwargs = settings if place == "keyword" else {"generation_config": GenerationConfig(**settings)}
    output = new_tokens(wrapped.generate(ids, mask, **visual_inputs(), **kwargs), ids)
    for row, wanted in zip(output.tolist(), free.tolist(), strict=True):
        stop = row.index(end) + 1 if end in row else len(row)
        assert row == wanted[:stop] + [7] * (len(row) - stop)


def test_callbacks_see_the_caller_s_prompt(model: Any) -> None:
    ids, mask = padded(*ROWS)
    seen: dict[str, list[Tensor]] = {"processor": [], "criterion": [], "prefix": []}

    def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
        seen["processor"].append(input_ids)
        return scores

    def criterion(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        seen["criterion"].append(input_ids)
        return input_ids[:, -1] < 0

    def allowed(index: int, input_ids: Tensor) -> list[int]:
        assert torch.equal(input_ids[: ids.shape[1]], ids[index])
        seen["prefix"].append(input_ids)
        return list(range(64))

    kwargs = {**GREEDY, "num_beams": 2}
    calls = {
        "logits_processor": [processor],
        "stopping_criteria": [criterion],
        "prefix_allowed_tokens_fn": allowed,
    }
    wrapped = flashvid(model, 0.5)
    output = wrapped.generate(ids, mask, **visual_inputs(), **kwargs, **calls)
    assert torch.equal(output, wrapped.generate(ids, mask, **visual_inputs(), **kwargs))
    for name in ("processor", "criterion"):
        for value in seen[name]:
            copies = ids.repeat_interleave(len(value) // 5, 0)
            assert torch.equal(value[:, : ids.shape[1]], copies)
    assert [value.shape[1] - ids.shape[1] for value in seen["processor"]] == [0, 1, 2, 3]
    assert len(seen["prefix"]) == 4 * 10


@pytest.mark.parametrize("kwargs", [{"num_beams": 1}, {"num_beams": 3}], ids=str)
def test_allowed_tokens_of_several_sequences_see_their_own_prompt(model: Any, kwargs: dict[str, Any]) -> None:
    """Beams are numbered by prompt, samples as the library does without the wrapper."""
    ids, mask = padded(*ROWS)
    seen: list[int] = []
    one_by_one = kwargs["num_beams"] == 1 and library_version() < Version("5.24")

    def allowed(index: int, input_ids: Tensor) -> list[int]:
        prompt = index // 3 if one_by_one else index
        assert torch.equal(input_ids[: ids.shape[1]], ids[prompt])
        seen.append(index)
        return [7 + index, 25 + index, 45 + index]

    settings = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 2, **kwargs}
    output = flashvid(model, 0.5).generate(
        ids, mask, **visual_inputs(), **settings, prefix_allowed_tokens_fn=allowed, eos_token_id=-1
    )
    numbers = [index // (1 if one_by_one else 3) for index in range(15)]
    for new, number in zip(new_tokens_of(output, ids, 3)[:, 0].tolist(), numbers, strict=True):
        assert new in (7 + number, 25 + number, 45 + number)
    assert set(seen) == set(numbers)


def new_tokens_of(output: Tensor, ids: Tensor, copies: int) -> Tensor:
    assert torch.equal(output[:, : ids.shape[1]], ids.repeat_interleave(copies, 0))
    return output[:, ids.shape[1] :]


def test_callbacks_may_run_the_model_themselves(model: Any) -> None:
    """Nothing is pruned in them: neither the bare model nor another wrapper's text-only prompt."""
    ids, mask = padded(*ROWS)
    short, long = torch.tensor([prompt_of(5)]), torch.tensor([prompt_of(120)])
    wrapped, other = flashvid(model, 0.5), flashvid(model, 0.25)
    calls: list[Callable[[], Tensor]] = [
        lambda: model(long).logits,
        lambda: model(short.repeat(5, 1)).logits,
        lambda: model.generate(short, **GREEDY),
        lambda: other.generate(short, **GREEDY),
    ]
    with torch.no_grad():
        wanted = [call() for call in calls]
    names: list[str] = []

    def check(name: str) -> None:
        names.append(name)
        for call, value in zip(calls, wanted, strict=True):
            assert torch.equal(call(), value)

    class Streamer:
        def put(self, value: Tensor) -> None:
            check("streamer")

        def end(self) -> None:
            check("end")

    def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
        check("processor")
        return scores

    def criterion(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        check("criterion")
        return input_ids[:, -1] < 0

    def allowed(index: int, input_ids: Tensor) -> list[int]:
        check("prefix")
        return list(range(64))

    settings = {**FREE, "max_new_tokens": 2}
    found = wrapped.generate(
        ids,
        mask,
        **visual_inputs(),
        **settings,
        streamer=Streamer(),
        logits_processor=[processor],
        stopping_criteria=[criterion],
        prefix_allowed_tokens_fn=allowed,
    )
    assert set(names) == {"streamer", "end", "processor", "criterion", "prefix"}
    assert torch.equal(found, wrapped.generate(ids, mask, **visual_inputs(), **settings))


def test_a_keyword_of_none_unsets_what_a_config_sets(model: Any) -> None:
    wrapped = flashvid(copy.deepcopy(model), 0.2)
    wrapped.generation_config.max_new_tokens = 2
    kwargs: dict[str, Any] = {**FREE, "max_new_tokens": None, "max_length": SIZE + 4}
    assert new_tokens(wrapped.generate(IDS, **inputs_of(1.0), **kwargs)).shape[1] == 4


def test_a_cache_that_would_leave_out_the_video_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="cache_implementation='paged' runs the prompt without its videos"):
        flashvid(model, 0.2, llm_retention_ratio=1.0).generate(
            IDS, **inputs_of(1.0), **GREEDY, cache_implementation="paged"
        )


def test_a_criterion_on_the_length_counts_the_caller_s_prompt(model: Any) -> None:
    criteria = [MaxLengthCriteria(SIZE + 2)]
    output = flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), **GREEDY, stopping_criteria=criteria)
    assert new_tokens(output).shape[1] == 2


def test_stop_strings(model: Any) -> None:
    tokenizer, wrapped = tiny_tokenizer(), flashvid(model, 0.2)
    free = new_tokens(wrapped.generate(IDS, **inputs_of(1.0), **GREEDY))[0]
    words = [tokenizer.decode([token]) for token in free.tolist()]
    place = words.index(words[1])
    output = wrapped.generate(IDS, **inputs_of(1.0), **GREEDY, stop_strings=[words[1]], tokenizer=tokenizer)
    assert new_tokens(output)[0].tolist() == free[: place + 1].tolist()


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_a_text_streamer_prints_the_caller_s_prompt(
    model: Any, skip_prompt: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    streamer = TextStreamer(tokenizer, skip_prompt=skip_prompt)
    output = flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), **GREEDY, streamer=streamer)
    shown = output[0, SIZE:] if skip_prompt else output[0]
    assert capsys.readouterr().out.split() == tokenizer.decode(shown).split()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"assistant_model": object()}, "assistant_model=object is not supported"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3 is not supported"),
        ({"generation_config": GenerationConfig(prompt_lookup_num_tokens=3)}, "prompt_lookup_num_tokens=3"),
        ({"synced_gpus": True}, "synced_gpus=True is not supported"),
        ({"prefill_chunk_size": 8}, "prefill_chunk_size=8 is not supported"),
        ({"token_healing": True}, "token_healing=True"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"cache_implementation": "static"}, "cache_implementation='static' must be 'dynamic'"),
        (
            {"generation_config": GenerationConfig(cache_implementation="static")},
            "'static' must be 'dynamic'",
        ),
        ({"past_key_values": object()}, "past_key_values cannot be given"),
    ],
)
def test_what_is_not_supported_is_refused(model: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), **GREEDY, **kwargs)
    assert hooks_of(model) == 0


def test_neutral_values_are_taken(model: Any) -> None:
    neutral = {"synced_gpus": False, "guidance_scale": 1, "token_healing": False, "streamer": None}
    wrapped = flashvid(model, 0.2)
    wanted = wrapped.generate(IDS, **inputs_of(1.0), **GREEDY)
    assert torch.equal(wrapped.generate(IDS, **inputs_of(1.0), **GREEDY, **neutral), wanted)


def test_the_end_token_is_the_model_s(model: Any) -> None:
    """Positive control of the fixtures: nothing here stops early by itself but at END."""
    output = flashvid(model, 0.2).generate(IDS, **inputs_of(1.0), max_new_tokens=30, do_sample=False)
    new = new_tokens(output)[0].tolist()
    assert END not in new[:-1]
