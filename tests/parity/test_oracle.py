"""The oracle: dropping tokens gives the logits that keeping them and masking them out gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flashvid.budget.schedule import PruningSchedule
from flashvid.frames import frames_to_patches
from flashvid.generation.wrapper import flashvid
from flashvid.inside.positions import VisionSpan, mrope_positions
from flashvid.models.registry import adapter_for
from tests.parity.masking import full_map
from tests.tiny_model import IMAGE, VIDEO, VISION, prompt_of, random_frames, skip_where_refused, tiny_model

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NEW_TOKENS = 4
SPAN = VisionSpan("video", 5, (8, 4, 3), 1.5)
IDS = torch.tensor([prompt_of(4, ("video", 96), 7)])
GENERATE: dict[str, Any] = {
    "max_new_tokens": NEW_TOKENS,
    "min_new_tokens": NEW_TOKENS,
    "suppress_tokens": [IMAGE, VIDEO],  # a random model would generate placeholders
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def video_inputs() -> dict[str, Any]:
    pixels, grid = frames_to_patches(random_frames(16), **vars(VISION))
    return {
        "pixel_values_videos": pixels,
        "video_grid_thw": grid[None],
        "second_per_grid_ts": torch.tensor([1.5]),
    }


def positions_of(num_tokens: int) -> Tensor:
    """(4, 1, S): the text row and the trained positions of the full prompt."""
    mrope = mrope_positions(num_tokens, [SPAN], tokens_per_second=2)
    return torch.cat((torch.arange(num_tokens)[None], mrope))[:, None]


def step_logits(output: Any) -> Tensor:
    return torch.stack(output.logits)[:, 0]


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_compressed_equals_masked(attn_implementation: str) -> None:
    """Tokens chosen by ADTS alone keep their own features, so the rest can be masked instead of dropped."""
    model = tiny_model(attn_implementation)
    wrapped = flashvid(model, 0.2, alpha=1.0, llm_retention_ratio=1.0)
    short, report = wrapped.generate(IDS, **video_inputs(), **GENERATE, return_report=True)
    kept = report.videos[0].kept
    assert 15 <= len(kept) <= 30
    mask = torch.ones_like(IDS)
    mask[0, SPAN.start : SPAN.stop] = 0
    mask[0, SPAN.start + kept] = 1
    inputs = {key: value for key, value in video_inputs().items() if key != "second_per_grid_ts"}
    full = model.generate(
        IDS, attention_mask=mask, position_ids=positions_of(IDS.shape[1]), **inputs, **GENERATE
    )
    assert torch.equal(short.sequences, full.sequences)
    torch.testing.assert_close(step_logits(short), step_logits(full), **CLOSE)


def test_masking_something_else_gives_other_logits() -> None:
    """Positive control: the oracle notices a wrong set of kept tokens."""
    model = tiny_model()
    inputs = {key: value for key, value in video_inputs().items() if key != "second_per_grid_ts"}
    logits = []
    for dropped in (SPAN.start, SPAN.start + 1):
        mask = torch.ones_like(IDS)
        mask[0, dropped] = 0
        output = model.generate(
            IDS, attention_mask=mask, position_ids=positions_of(IDS.shape[1]), **inputs, **GENERATE
        )
        logits.append(step_logits(output))
    assert float((logits[0] - logits[1]).abs().max()) > 1e-3


def masked_forward(
    model: Any, ids: Tensor, features: Tensor, schedule: PruningSchedule, prompt: int
) -> Tensor:
    """Logits (S, V) of the whole sequence in one plain pass, layer by layer with an explicit mask.

    From ``schedule.layer`` on, the visual tokens outside the best ceil(r*V) are masked; the ranking comes
    from the full softmax map of the layer before, at the prompt's last token.
    """
    text = model.model.language_model
    hidden = text.embed_tokens(ids)
    hidden[ids == VIDEO] = features
    rotary = text.rotary_emb(hidden, positions_of(ids.shape[1])[1:])
    size = ids.shape[1]
    ranking = torch.zeros(size)
    mask = torch.full((size, size), float("-inf")).triu(1)[None, None]
    for index, layer in enumerate(text.layers):
        if index == schedule.layer:
            visual = (ids[0] == VIDEO).nonzero().squeeze(1)
            count = -(-len(visual) * int(schedule.ratio * 1000) // 1000)
            best = ranking[visual].argsort(descending=True)[:count]
            dropped = torch.tensor(sorted({*visual.tolist()} - {*visual[best].tolist()}), dtype=torch.long)
            mask = mask.clone()
            mask[..., dropped] = float("-inf")
            mask[..., dropped, dropped] = 0  # rows nobody reads; else they would be NaN
        if index == schedule.layer - 1:
            ranking = full_map(layer, hidden, rotary, mask)[:, prompt - 1].mean(dim=0)
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    return model.lm_head(text.norm(hidden))[0]


@pytest.mark.parametrize(("layer", "ratio"), [(1, 0.5), (3, 0.25), (4, 0.02)])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_pruned_inside_equals_masked(
    attn_implementation: str, layer: int, ratio: float, use_cache: bool
) -> None:
    skip_where_refused({"use_cache": use_cache})
    model = tiny_model(attn_implementation)
    schedule = PruningSchedule(layer, ratio)
    wrapped = flashvid(model, 1.0, pruning_layer=layer, llm_retention_ratio=ratio)
    output = wrapped.generate(IDS, **video_inputs(), **GENERATE, use_cache=use_cache)
    inputs = video_inputs()
    with torch.no_grad():
        features = model.model.get_video_features(
            inputs["pixel_values_videos"], inputs["video_grid_thw"]
        ).pooler_output[0]
        logits = masked_forward(model, output.sequences, features, schedule, IDS.shape[1])
    wanted = logits[IDS.shape[1] - 1 : IDS.shape[1] - 1 + NEW_TOKENS]
    torch.testing.assert_close(step_logits(output), wanted, **CLOSE)
    with torch.no_grad():
        everything = masked_forward(
            model, output.sequences, features, PruningSchedule(layer, 1.0), IDS.shape[1]
        )
    assert float((everything[IDS.shape[1] - 1] - wanted[0]).abs().max()) > 1e-4  # pruning does something


def test_attention_of_the_last_token_is_a_row_of_the_map() -> None:
    """Also in a padded batch: what is padding gets nothing, and the others what they get alone."""
    model = tiny_model()
    hidden = torch.randn(2, 15, 192, generator=torch.Generator().manual_seed(1))
    text = model.model.language_model
    layer = text.layers[2]
    valid = torch.arange(15) >= torch.tensor([[0], [4]])
    positions = torch.stack((torch.arange(15), torch.arange(15) - 4))
    rotary = text.rotary_emb(hidden, positions.expand(3, -1, -1))
    with torch.no_grad():
        rows = adapter_for(model).attention_of(layer.self_attn, layer.input_layernorm(hidden), rotary, valid)
    for row, padding in enumerate((0, 4)):
        own = [part[row : row + 1, padding:] for part in rotary]
        mask = torch.full((15 - padding, 15 - padding), float("-inf")).triu(1)
        with torch.no_grad():
            whole = full_map(layer, hidden[row : row + 1, padding:], own, mask)[:, -1].mean(dim=0)
        assert rows[row, :padding].tolist() == [0] * padding
        torch.testing.assert_close(rows[row, padding:], whole, atol=1e-6, rtol=1e-5)
