"""What the engine takes from a checkpoint, a tokenizer and a caller, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from flashvid.generation.engine import Engine
from tests.tiny_model import VISION, hooks_of, tiny_tokenizer
from tests.unit.generation.test_engine import CONFIGS, PROMPTS, video


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "changes",
    [
        {"use_cache": False},
        {"return_dict_in_generate": True, "output_hidden_states": True},
        {"guidance_scale": 2.0},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 8},
        {"stop_strings": ["word3"], "token_healing": True, "max_time": 1e-4},
    ],
    ids=str,
)
def test_a_generation_config_does_not_change_how_is_decoded(
    model: Any, tokenizer: Any, name: str, changes: dict[str, Any]
) -> None:
    """Fine-tuned checkpoints come with use_cache=False, for one."""
    wanted = Engine(model, tokenizer, CONFIGS[name], vision=VISION).answer(video(), PROMPTS, max_new_tokens=4)
    changed = copy.deepcopy(model)
    for key, value in changes.items():
        setattr(changed.generation_config, key, value)
    found = Engine(changed, tokenizer, CONFIGS[name], vision=VISION).answer(
        video(), PROMPTS, max_new_tokens=4
    )
    assert found.generations == wanted.generations
    assert hooks_of(changed) == 0


def first_tokens(model: Any, tokenizer: Any, name: str) -> list[int]:
    engine = Engine(model, tokenizer, CONFIGS[name], vision=VISION)
    answers = engine.answer(video(), PROMPTS[1:3], max_new_tokens=1).generations
    assert all(answer.text for answer in answers)  # no special tokens
    return [tokenizer.convert_tokens_to_ids(answer.text) for answer in answers]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_least_length_does_not_prolong(model: Any, tokenizer: Any, name: str) -> None:
    """It would count the prompt and its padding."""
    changed = copy.deepcopy(model)
    changed.generation_config.eos_token_id = first_tokens(model, tokenizer, name)
    changed.generation_config.min_length = 1000
    answers = Engine(changed, tokenizer, CONFIGS[name], vision=VISION).answer(
        video(), PROMPTS[1:3], max_new_tokens=4
    )
    assert [answer.output_tokens for answer in answers.generations] == [1, 1]


@pytest.mark.parametrize("name", CONFIGS)
def test_penalties_of_a_generation_config_hold_for_each_prompt_alone(
    model: Any, tokenizer: Any, name: str
) -> None:
    """Released checkpoints punish repetition; padding is no part of what a prompt holds."""
    changed = copy.deepcopy(model)
    first = first_tokens(model, tokenizer, name)
    changed.generation_config.repetition_penalty = 0.05
    changed.generation_config.pad_token_id = first[0]
    engine = Engine(changed, tokenizer, CONFIGS[name], vision=VISION)
    together = engine.answer(video(), PROMPTS, max_new_tokens=5).generations
    alone = [engine.answer(video(), [prompt], max_new_tokens=5).generations[0] for prompt in PROMPTS]
    assert list(together) == alone


def test_a_template_with_the_question_first_is_refused(model: Any) -> None:
    """The prompts then share no beginning that could be prefilled once; no one's answer may be another's."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for part in messages[0].content %}{% if part.type == 'text' %}{{ part.text }} {% endif %}"
        "{% endfor %}<|vision_start|><|video_pad|><|vision_end|>"
    )
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    with pytest.raises(ValueError, match="the prompts differ before the video"):
        engine.answer(video(), PROMPTS, max_new_tokens=2)
    assert len(engine.answer(video(), PROMPTS[:1], max_new_tokens=2).generations) == 1


@pytest.mark.parametrize(
    ("prompts", "message"),
    [("what ?", "must be a list of strings"), (["when", None], "None, a NoneType"), ([b"x"], "a bytes")],
)
def test_prompts_that_are_no_list_of_strings_are_refused(
    model: Any, tokenizer: Any, prompts: Any, message: str
) -> None:
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    with pytest.raises(TypeError, match=message):
        engine.answer(video(), prompts, max_new_tokens=2)


def test_limits_may_come_from_numpy(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    wanted = engine.answer(video(), PROMPTS, max_new_tokens=2).generations
    limit: Any = np.int64(2)
    assert engine.answer(video(), PROMPTS, max_new_tokens=limit).generations == wanted
