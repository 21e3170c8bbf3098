"""The engine answers as the wrapper does, only sharing the work between prompts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from flashvid.config import FlashVidConfig
from flashvid.frames import VisionSettings, frames_to_patches
from flashvid.generation.answers import VideoInput
from flashvid.generation.engine import Engine
from flashvid.generation.wrapper import flashvid
from tests import ROOT
from tests.tiny_model import (
    END,
    VIDEO,
    VISION,
    fingerprint,
    random_frames,
    tiny_model,
    tiny_tokenizer,
)

PROMPTS = ("what flashes ?", "when", "where a red circle moves ?", "word3 word4 word5 what word9")
CONFIGS = {
    "uncompressed": FlashVidConfig(retention_ratio=1.0),
    "compressed": FlashVidConfig(retention_ratio=0.25, llm_retention_ratio=1.0),
    "pruned inside": FlashVidConfig(retention_ratio=0.25),
}
SECONDS = 0.7


def video(num_frames: int = 12) -> VideoInput:
    return VideoInput(random_frames(num_frames), SECONDS)


def one_by_one(
    model: Any, tokenizer: Any, config: FlashVidConfig, num_frames: int, new: int
) -> list[list[int]]:
    """The new tokens of each prompt from its own call of the wrapper, as a user would make it."""
    patches, grid = frames_to_patches(random_frames(num_frames), **vars(VISION))
    wrapped, answers = flashvid(model, config=config), []
    for prompt in PROMPTS:
        message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}
        chat = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        chat = chat.replace("<|video_pad|>", " <|video_pad|> " * (int(grid.prod()) // 4))
        ids = torch.tensor([tokenizer(chat, add_special_tokens=False)["input_ids"]])
        output = wrapped.generate(
            ids,
            pixel_values_videos=patches,
            video_grid_thw=grid[None],
            second_per_grid_ts=[2 * SECONDS],
            max_new_tokens=new,
            do_sample=False,
        )
        answers.append(output[0, ids.shape[1] :].tolist())
    return answers


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "settings", [{}, {"max_prompts_per_batch": 3, "max_units_per_chunk": 2}], ids=["", "bounded"]
)
def test_equals_the_wrapper_prompt_by_prompt(
    model: Any, tokenizer: Any, name: str, settings: dict[str, int]
) -> None:
    engine = Engine(model, tokenizer, CONFIGS[name], vision=VISION, **settings)
    answers = engine.answer(video(), PROMPTS, max_new_tokens=6)
    wanted = one_by_one(model, tokenizer, CONFIGS[name], 12, 6)
    assert len({tuple(tokens) for tokens in wanted}) > 1  # the prompts matter
    for generation, tokens in zip(answers.generations, wanted, strict=True):
        assert generation.text == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert generation.output_tokens == len(tokens)
        assert generation.finish_reason == ("stop" if tokens[-1] == END else "length")


def test_counts_and_seconds(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, CONFIGS["pruned inside"], vision=VISION)
    answers = engine.answer(video(), PROMPTS[:2], max_new_tokens=3)
    assert answers.grid_thw == (6, 8, 6)
    assert answers.visual_tokens_before == 72
    assert answers.visual_tokens_after == len(answers.kept) <= 24
    assert answers.visual_tokens_mean < answers.visual_tokens_after
    assert answers.budget_tokens == 24  # 6 units of ceil(12 * 0.25 * 1.25) places
    assert bool((answers.kept.diff() > 0).all())
    assert int(answers.kept.max()) < 72
    seconds = (
        answers.encode_seconds,
        answers.compress_seconds,
        answers.prefill_seconds,
        answers.decode_seconds,
    )
    assert all(0 < second < 60 for second in seconds)
    words = len(tokenizer(PROMPTS[0])["input_ids"])
    assert answers.generations[0].prompt_tokens == answers.visual_tokens_after + words + 7


@pytest.mark.parametrize("baseline", [6, 9, 12, 20])
def test_a_baseline_is_never_exceeded_on_entry(model: Any, tokenizer: Any, baseline: int) -> None:
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    answers = engine.answer(video(), PROMPTS[:1], max_new_tokens=1, baseline_tokens=baseline)
    assert answers.visual_tokens_after <= baseline
    assert answers.visual_tokens_mean == answers.visual_tokens_after


@pytest.mark.parametrize("baseline", [6, 9, 12, 18, 30])
def test_a_baseline_is_never_exceeded_on_average(model: Any, tokenizer: Any, baseline: int) -> None:
    engine = Engine(model, tokenizer, CONFIGS["pruned inside"], vision=VISION)
    answers = engine.answer(video(), PROMPTS[:1], max_new_tokens=1, baseline_tokens=baseline)
    assert answers.visual_tokens_mean <= baseline


def test_the_plan_is_what_the_answer_keeps(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, CONFIGS["pruned inside"], vision=VISION)
    for baseline in (None, 9):
        answers = engine.answer(video(), PROMPTS[:1], max_new_tokens=1, baseline_tokens=baseline)
        plan, grid = engine.plan(video(), baseline_tokens=baseline)
        assert torch.equal(plan.kept, answers.kept)
        assert grid == answers.grid_thw
        assert len(plan.kept) <= answers.budget_tokens


def test_an_adaptive_video_that_repeats_itself_says_that_it_used_less(model: Any, tokenizer: Any) -> None:
    config = FlashVidConfig(retention_ratio=0.25, adaptive=True, min_segment_num=1)
    still = VideoInput(random_frames(1).expand(12, -1, -1, -1), SECONDS)
    answers = Engine(model, tokenizer, config, vision=VISION).answer(still, PROMPTS[:1], max_new_tokens=1)
    assert answers.visual_tokens_after <= 8 < answers.budget_tokens == 24


@pytest.mark.parametrize(
    ("settings", "baseline", "message"),
    [
        ({"max_visual_tokens": 5}, None, r"max_visual_tokens=5 is too few for 12 frames.*at most 10 frames"),
        ({"llm_retention_ratio": 1.0}, 4, r"baseline_tokens=4, which lets 4 .*at most 8 frames"),
        ({}, 2, r"baseline_tokens=2, which lets 3 .*at most 6 frames"),
        ({"max_visual_tokens": 4}, 9, r"max_visual_tokens=4 is too few"),
    ],
)
def test_a_ceiling_below_the_number_of_units_says_what_to_do(
    model: Any, tokenizer: Any, settings: dict[str, Any], baseline: int | None, message: str
) -> None:
    config = FlashVidConfig(retention_ratio=0.25, **settings)
    engine = Engine(model, tokenizer, config, vision=VISION)
    with pytest.raises(ValueError, match=message):
        engine.answer(video(), PROMPTS[:1], max_new_tokens=1, baseline_tokens=baseline)


@pytest.mark.parametrize("baseline", [None, 9])
def test_pruned_prompts_in_batches_are_as_one_by_one(
    model: Any, tokenizer: Any, baseline: int | None
) -> None:
    config = CONFIGS["pruned inside"]
    limits = [2, 6, 1, 5]
    found = [
        Engine(model, tokenizer, config, vision=VISION, max_prompts_per_batch=size).answer(
            video(), PROMPTS, max_new_tokens=limits, baseline_tokens=baseline
        )
        for size in (1, 2, 3, 4, 16)
    ]
    assert len({answers.generations for answers in found}) == 1


def test_prompts_of_a_batch_share_passes(model: Any, tokenizer: Any) -> None:
    """Four prompts of five tokens are five passes of the language model in one batch, twenty in four."""
    passes: list[int] = []
    handle = model.model.language_model.register_forward_pre_hook(lambda *_: passes.append(1))
    for size in (16, 1):
        engine = Engine(model, tokenizer, CONFIGS["pruned inside"], vision=VISION, max_prompts_per_batch=size)
        answers = engine.answer(video(), PROMPTS, max_new_tokens=5)
        wanted = [generation.output_tokens for generation in answers.generations]
        assert len(passes) == (max(wanted) if size == 16 else sum(wanted))
        passes.clear()
    handle.remove()


@pytest.mark.parametrize("num_frames", [1, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_very_short_videos(model: Any, tokenizer: Any, name: str, num_frames: int) -> None:
    engine = Engine(model, tokenizer, CONFIGS[name], vision=VISION)
    answers = engine.answer(VideoInput(random_frames(num_frames), 0.0), PROMPTS[:2], max_new_tokens=3)
    assert answers.grid_thw[0] == -(-num_frames // 2)
    assert len(answers.generations) == 2


@pytest.mark.parametrize("name", ["compressed", "pruned inside"])
def test_every_prompt_has_its_own_limit(model: Any, tokenizer: Any, name: str) -> None:
    engine = Engine(model, tokenizer, CONFIGS[name], vision=VISION)
    limits = [1, 5, 3, 2]
    answers = engine.answer(video(4), PROMPTS, max_new_tokens=limits)
    whole = engine.answer(video(4), PROMPTS, max_new_tokens=5)
    for generation, longest, limit in zip(answers.generations, whole.generations, limits, strict=True):
        assert generation.output_tokens == min(limit, longest.output_tokens)
        assert longest.text.startswith(generation.text)


def test_numpy_frames_are_as_good(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    frames = np.asarray(random_frames(6))
    frames.flags.writeable = False
    from_numpy = engine.answer(VideoInput(frames, SECONDS), PROMPTS, max_new_tokens=4)
    from_torch = engine.answer(VideoInput(random_frames(6), SECONDS), PROMPTS, max_new_tokens=4)
    assert from_numpy.generations == from_torch.generations


def test_the_seconds_between_frames_matter(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, CONFIGS["uncompressed"], vision=VISION)
    texts = {
        engine.answer(VideoInput(random_frames(12), seconds), PROMPTS, max_new_tokens=10).generations
        for seconds in (0.2, 5.0)
    }
    assert len(texts) == 2


def test_same_answer_twice_and_an_untouched_model(model: Any, tokenizer: Any) -> None:
    before = fingerprint(model)
    engine = Engine(model, tokenizer, CONFIGS["pruned inside"], vision=VISION)
    first = engine.answer(video(), PROMPTS, max_new_tokens=4)
    engine.answer(video(4), PROMPTS[:1], max_new_tokens=2)
    assert engine.answer(video(), PROMPTS, max_new_tokens=4).generations == first.generations
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("prompts", "new"), [([], 3), (["when"], 0), (["when"], [1, 2]), (["when"], 2.0), (["when"], "3")]
)
def test_nothing_to_do_is_refused(model: Any, tokenizer: Any, prompts: list[str], new: Any) -> None:
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    with pytest.raises(ValueError, match="need at least one"):
        engine.answer(video(2), prompts, max_new_tokens=new)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_impossible_distances_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="second_per_frame"):
        VideoInput(random_frames(2), seconds)


def test_other_patch_sizes_are_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="patch_size=16 but the model has 14"):
        Engine(model, tokenizer, CONFIGS["compressed"], vision=VisionSettings(patch_size=16))


def test_wrong_frames_are_refused(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    with pytest.raises(ValueError, match="need \\(T"):
        engine.answer(VideoInput(torch.zeros(2, 56, 56), 1.0), ["when"], max_new_tokens=1)


def test_from_pretrained_is_the_same_engine(model: Any, tokenizer: Any, tmp_path: Any) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    limits = '{"size": {"shortest_edge": 784, "longest_edge": 28224}, "patch_size": 14}'
    (tmp_path / "preprocessor_config.json").write_text(limits)
    loaded = Engine.from_pretrained(str(tmp_path), config=CONFIGS["compressed"], dtype="float32")
    assert loaded.vision == VISION
    built = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    wanted = built.answer(video(), PROMPTS, max_new_tokens=4)
    assert loaded.answer(video(), PROMPTS, max_new_tokens=4).generations == wanted.generations


def test_bfloat16_runs(model: Any, tokenizer: Any) -> None:
    engine = Engine(tiny_model().to(torch.bfloat16), tokenizer, CONFIGS["pruned inside"], vision=VISION)
    assert len(engine.answer(video(), PROMPTS, max_new_tokens=3).generations) == 4


def test_video_placeholder_is_a_single_token(tokenizer: Any) -> None:
    assert tokenizer("<|video_pad|>")["input_ids"] == [VIDEO]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [1, 3, 99])
def test_fewer_prompts_at_once_give_the_same_answers(
    model: Any, tokenizer: Any, name: str, size: int
) -> None:
    engine = Engine(model, tokenizer, CONFIGS[name], vision=VISION)
    wanted = engine.answer(video(), PROMPTS, max_new_tokens=4)
    widths: list[int] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: widths.append(len(args[0])))
    found = engine.answer(video(), PROMPTS, max_new_tokens=4, prompts_per_batch=size)
    handle.remove()
    assert found.generations == wanted.generations
    assert max(widths) == min(size, len(PROMPTS))


def test_a_batch_of_no_prompts_is_refused(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    with pytest.raises(ValueError, match="must be at least 1"):
        engine.answer(video(2), PROMPTS, max_new_tokens=1, prompts_per_batch=0)


def chat_ids(tokenizer: Any, text: str) -> torch.Tensor:
    message = {"role": "user", "content": [{"type": "text", "text": text}]}
    chat = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    return torch.tensor([tokenizer(chat, add_special_tokens=False)["input_ids"]])


@pytest.mark.parametrize("name", CONFIGS)
def test_writing_is_what_the_untouched_model_generates(model: Any, tokenizer: Any, name: str) -> None:
    before = fingerprint(model)
    engine = Engine(model, tokenizer, CONFIGS[name], vision=VISION)
    found = [engine.write(prompt, max_new_tokens=6) for prompt in PROMPTS]
    assert fingerprint(model) == before
    assert len({written.text for written in found}) > 1, "the prompts matter"
    for prompt, written in zip(PROMPTS, found, strict=True):
        ids = chat_ids(tokenizer, prompt)
        wanted = model.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :].tolist()
        assert written.text == tokenizer.decode(wanted, skip_special_tokens=True).strip()
        assert written.output_tokens == len(wanted)
        assert written.prompt_tokens == ids.shape[1]
        assert written.finish_reason == ("stop" if wanted[-1] == END else "length")


def test_writing_after_a_video_knows_nothing_of_it(model: Any, tokenizer: Any) -> None:
    """The library keeps ``rope_deltas`` of the last video on the model."""
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    alone = engine.write(PROMPTS[3], max_new_tokens=8)
    engine.answer(video(), PROMPTS, max_new_tokens=2)
    assert engine.write(PROMPTS[3], max_new_tokens=8) == alone


def test_writing_nothing_is_refused(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    with pytest.raises(ValueError, match="at least 1"):
        engine.write("what ?", max_new_tokens=0)
    with pytest.raises(TypeError, match="must be a string"):
        engine.write(["what ?"], max_new_tokens=1)  # type: ignore[arg-type]


def test_tokens_are_counted_as_the_model_reads_them(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, CONFIGS["compressed"], vision=VISION)
    around = chat_ids(tokenizer, "").shape[1]
    for prompt in PROMPTS:
        assert engine.count_tokens(prompt) + around == chat_ids(tokenizer, prompt).shape[1]
    assert engine.count_tokens("") == 0


def test_the_demo_model_writes_and_counts(demo_engine: Engine) -> None:
    prompt = "These are captions of parts of one video. Summarize it.\n0:00-1:00 a red circle moves left."
    written = demo_engine.write(prompt, max_new_tokens=5)
    assert 1 <= written.output_tokens <= 5
    assert written == demo_engine.write(prompt, max_new_tokens=5)
    assert demo_engine.count_tokens(prompt) < written.prompt_tokens < demo_engine.count_tokens(prompt) + 20


@pytest.fixture(scope="module")
def demo_engine() -> Engine:
    folder = ROOT / "demo" / "model"
    return Engine.from_pretrained(str(folder), config=CONFIGS["compressed"], dtype="float32")


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_scores_that_are_no_numbers_are_no_answer(broken: float, ratio: float) -> None:
    """Greedy decoding takes NaN for the best of all: each answer would be the same token, over and over."""
    model = tiny_model()
    model.lm_head.weight.data[3] = broken
    config = FlashVidConfig(retention_ratio=0.5, pruning_layer=2, llm_retention_ratio=ratio)
    broken_engine = Engine(model, tiny_tokenizer(), config, vision=VISION)
    with pytest.raises(ValueError, match=r"scores are NaN or infinite.*float32"):
        broken_engine.answer(VideoInput(random_frames(4), 0.5), ["what ?"], max_new_tokens=2)
    with pytest.raises(ValueError, match="scores are NaN or infinite"):
        broken_engine.write("what ?", max_new_tokens=2)


@pytest.mark.parametrize("named", [None, [END + 1]])
def test_the_tokenizers_end_token_ends_an_answer_whatever_the_generation_config_says(named: Any) -> None:
    """Else an answer runs on into turns that nobody asked for, with their marks left out of the text."""
    model = tiny_model()
    model.lm_head.weight.data.zero_()  # all tokens are as good: the first is taken
    model.generation_config.eos_token_id = named
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"  # number 0
    engine = Engine(model, tokenizer, FlashVidConfig(retention_ratio=0.5), vision=VISION)
    found = engine.answer(VideoInput(random_frames(4), 0.5), ["what ?"], max_new_tokens=5).generations[0]
    assert (found.finish_reason, found.output_tokens) == ("stop", 1)
