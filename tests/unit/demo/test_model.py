"""The committed checkpoint: loads like any other, has the layout of training, knows what it was taught."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from demo.language import caption, question_pool, seen_facts, truth_of
from demo.packing import Packer
from demo.render import render
from demo.stage_language import LanguageTrainer
from demo.tiny import build_tokenizer, tiny_config
from demo.tower import Tower
from demo.truth import score_caption, total
from demo.views import encode_clip, frame_times, whole_view
from demo.world import random_scene
from flashvid.config import FlashVidConfig
from flashvid.frames import frames_to_patches
from flashvid.generation.answers import VideoInput
from flashvid.generation.engine import Engine
from flashvid.inside.positions import VisionSpan, mrope_positions
from tests import ROOT

FOLDER = ROOT / "demo" / "model"
SEED = 5 * 2**40  # of no video that was trained on or measured
TENTH = FlashVidConfig(retention_ratio=0.1, expansion=1.0, llm_retention_ratio=1.0, max_visual_tokens=288)


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDER)


def test_files_are_complete_and_small(model: Qwen2_5_VLForConditionalGeneration) -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert {"generation_config.json", "preprocessor_config.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 15e6
    assert model.config.text_config.to_dict()["rope_parameters"] == tiny_config().text_config.rope_parameters
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_template_gives_the_layout_of_training(tokenizer: PreTrainedTokenizerFast) -> None:
    content = [{"type": "video"}, {"type": "text", "text": "What flashes?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text)["input_ids"]
    packer = Packer(build_tokenizer())
    asked = build_tokenizer()("what flashes ?")["input_ids"]
    assert ids == [*packer.prefix, packer.video_id, *packer.after_video, *asked, *packer.tail]
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")


def test_every_word_of_the_world_is_known(tokenizer: PreTrainedTokenizerFast) -> None:
    for seed in range(30):
        facts = seen_facts(random_scene(seed, 79.0), np.arange(0, 79, 0.25).tolist())
        for pairs in question_pool(facts, np.random.default_rng(0)).values():
            for question, answer in pairs:
                assert tokenizer.unk_token_id not in tokenizer(f"{question} {answer}")["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("What about the elephant?")["input_ids"]
    assert tokenizer.decode(tokenizer("A red circle moves left.")["input_ids"]) == "a red circle moves left."


def test_training_tower_is_the_stock_tower(model: Qwen2_5_VLForConditionalGeneration) -> None:
    frames = torch.from_numpy(render(random_scene(SEED, 10.0), frame_times(10.0, 4), noise=2.0))
    tower = Tower(model.model.visual)
    ours, saliency = tower.encode(frames.view(2, 2, 168, 168, 3))
    patches, grid = frames_to_patches(
        frames, patch_size=14, temporal_patch_size=2, merge_size=2, min_pixels=3136, max_pixels=28224
    )
    with torch.no_grad():
        stock = model.model.get_video_features(patches, grid[None]).pooler_output[0]
    torch.testing.assert_close(ours.flatten(0, 1), stock, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(saliency.sum(1), torch.full((2,), 0.25))


def test_packed_questions_get_the_logits_of_the_stock_model(
    model: Qwen2_5_VLForConditionalGeneration,
) -> None:
    scene = random_scene(SEED + 1, 20.0, num_events=1)
    view = whole_view(encode_clip(Tower(model.model.visual), scene, 8, TENTH))
    trainer = LanguageTrainer.__new__(LanguageTrainer)
    trainer.model, trainer.text = model, model.model.language_model
    packer = Packer(build_tokenizer())
    batch = packer.batch([view], np.random.default_rng(0))
    with torch.no_grad():
        packed = model.lm_head(trainer.hidden(batch)[1])[0]
    last = int(batch.branches.max())
    assert last > 1
    alone = (batch.branches[0] == 0) | (batch.branches[0] == last)
    embeds = model.model.language_model.embed_tokens(batch.ids)
    embeds = embeds.masked_scatter(batch.visual[..., None], batch.tokens)[:, alone]
    length = int(alone.sum())
    positions = torch.cat([torch.arange(length)[None, None], batch.positions[:, :, alone]])
    with torch.no_grad():
        stock = model(
            inputs_embeds=embeds,
            attention_mask=torch.ones(1, length, dtype=torch.long),
            position_ids=positions,
        ).logits[0]
    torch.testing.assert_close(packed[alone], stock, atol=1e-3, rtol=1e-3)


def test_training_positions_are_those_of_the_product(model: Qwen2_5_VLForConditionalGeneration) -> None:
    scene = random_scene(SEED + 2, 37.0, num_events=1)
    view = whole_view(encode_clip(Tower(model.model.visual), scene, 8, None))
    packer = Packer(build_tokenizer())
    batch = packer.batch([view], np.random.default_rng(0), most_questions=1)
    span = VisionSpan("video", len(packer.prefix), (8, 6, 6), view.seconds_per_unit)
    length = int((batch.branches[0] >= 0).sum())
    wanted = mrope_positions(length, [span], tokens_per_second=2)
    assert torch.equal(batch.positions[:, 0, :length], wanted)


@pytest.mark.slow
def test_it_describes_new_videos() -> None:
    engine = Engine.from_pretrained(str(FOLDER), config=TENTH, dtype="float32")
    scores = []
    for number in range(5):
        scene = random_scene(SEED + 10 + number, 24.0 + 10 * number, num_events=1)
        frames = render(scene, frame_times(scene.duration_seconds, 160), noise=2.0)
        video = VideoInput(frames, scene.duration_seconds / 160)
        reply = engine.answer(video, ["Describe this video."], max_new_tokens=48)
        assert reply.visual_tokens_after <= 288
        assert reply.generations[0].finish_reason == "stop"
        scores.append(score_caption(reply.generations[0].text, truth_of(scene)))
    shares = total(scores).shares()
    assert min(shares[aspect] for aspect in ("colours", "shapes", "motions")) >= 0.75, shares
    assert shares["events"] >= 0.6, shares


def test_caption_of_nothing_known_is_still_scored() -> None:
    scene = random_scene(SEED, 30.0, num_events=1)
    assert set(score_caption("<unk>", truth_of(scene)).shares().values()) == {0.0}
    assert "flashes at second" in caption(seen_facts(scene, np.arange(0, 30, 0.1).tolist()))
