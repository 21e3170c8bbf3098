"""Choosing tokens inside the language model, and the hooks that do it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, flash_attention_mask, sdpa_mask

from flashvid.budget.schedule import PruningSchedule
from flashvid.generation.wrapper import flashvid
from flashvid.inside.calls import cache_name
from flashvid.inside.prompt import PromptBatch
from flashvid.inside.pruning import MaskStyle, attention_mask, plan_cut, prune_inside, select_tokens
from flashvid.models.registry import adapter_for
from tests.parity.test_pruned_batches import ROWS, padded, visual_inputs
from tests.tiny_model import cache_among, fingerprint, hooks_of, tiny_model

VISUAL = torch.tensor([False, True, True, True, True, False, False])


def batch_of(visual: Tensor = VISUAL[None], valid: Tensor | None = None) -> PromptBatch:
    """A batch whose token ids do not matter."""
    mask = torch.ones_like(visual) if valid is None else valid
    positions = torch.arange(visual.shape[1]).expand(4, *visual.shape)
    return PromptBatch(torch.ones(visual.shape, dtype=torch.long), mask.long(), positions, visual)


def pruning(model: Any, batch: PromptBatch | None = None, layer: int = 2, ratio: float = 0.5) -> Any:
    return prune_inside(adapter_for(model), batch or batch_of(), PruningSchedule(layer, ratio))


def test_the_most_attended_visual_tokens_stay_and_all_text() -> None:
    attention = torch.tensor([0.9, 0.1, 0.4, 0.2, 0.3, 0.0, 0.8])
    assert select_tokens(attention, VISUAL, 0.5).nonzero()[:, 0].tolist() == [0, 2, 4, 5, 6]


def test_ties_go_to_the_lowest_index() -> None:
    assert select_tokens(torch.ones(7), VISUAL, 0.5).nonzero()[:, 0].tolist() == [0, 1, 2, 5, 6]


def test_every_row_has_its_own_number() -> None:
    visual = torch.stack((VISUAL, ~VISUAL, torch.zeros(7, dtype=torch.bool)))
    kept = select_tokens(torch.arange(7.0).expand(3, -1), visual, 0.5)
    assert [row.nonzero()[:, 0].tolist() for row in kept] == [
        [0, 3, 4, 5, 6],
        [1, 2, 3, 4, 5, 6],
        [*range(7)],
    ]


@given(st.integers(1, 200), st.floats(0.001, 1))
def test_the_number_kept_is_the_ceiling(num_visual: int, ratio: float) -> None:
    visual = torch.cat((torch.ones(num_visual, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)))
    kept = int(select_tokens(torch.rand(num_visual + 3), visual, ratio).sum()) - 3
    assert ratio * num_visual - 1e-6 <= kept < ratio * num_visual + 1


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4))
def test_a_cut_keeps_order_and_ends_on_the_right(rows: list[list[bool]]) -> None:
    keep = torch.tensor(rows)
    keep[:, -1] = True  # as every prompt's last token is
    cut = plan_cut(keep)
    assert cut.index.shape[1] == max(map(sum, keep.tolist()))
    for row, index, padding in zip(keep, cut.index.tolist(), cut.padding.tolist(), strict=True):
        assert index[padding:] == row.nonzero()[:, 0].tolist()
        assert len(index) - padding == int(row.sum())
        assert index[-1] == 8


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.integers(4, 8),
    st.sampled_from([0, 5]),
    st.booleans(),
)
def test_masks_are_what_the_library_makes(padding: list[int], queries: int, past: int, one: bool) -> None:
    """Of the same padding; a query that is padding may see itself here, so only the others are compared."""
    queries = 1 if one and past else queries
    pad, size = torch.tensor(padding), past + queries
    valid = torch.arange(size) >= pad[:, None]
    shape = {"batch_size": len(pad), "q_length": queries, "kv_length": size, "q_offset": past}
    shape["attention_mask"] = valid
    real = valid[:, past:]
    flash = attention_mask(pad, queries, past, "padding", torch.float32)
    wanted = flash_attention_mask(**shape)
    assert flash is wanted is None or torch.equal(flash, wanted)
    makers: tuple[tuple[MaskStyle, Any], ...] = (("bool", sdpa_mask), ("additive", eager_mask))
    for style, maker in makers:
        mask, wanted = (
            attention_mask(pad, queries, past, style, torch.float16),
            maker(**shape, dtype=torch.float16),
        )
        assert (mask is None) == (wanted is None)
        if mask is not None:
            assert mask.dtype == wanted.dtype
            assert torch.equal(mask[:, 0][real], wanted[:, 0][real])
            assert bool((mask[:, 0][~real] == mask.max()).any(dim=-1).all())


def test_hooks_live_only_inside_the_with() -> None:
    model = tiny_model()
    before = fingerprint(model)
    with pruning(model):
        assert hooks_of(model) == 1 + 3  # the attention of layer 1; layers 2, 3, 4
        assert fingerprint(model) != before
    assert fingerprint(model) == before


def test_no_hooks_without_video_tokens() -> None:
    model = tiny_model()
    with pruning(model, batch_of(torch.zeros(2, 7, dtype=torch.bool))):
        assert hooks_of(model) == 0


def test_hooks_go_when_the_body_raises() -> None:
    model = tiny_model()
    with pytest.raises(KeyError), pruning(model):
        raise KeyError
    assert hooks_of(model) == 0


@pytest.mark.parametrize("layer", [0, 5, -1])
def test_impossible_layers_are_refused(layer: int) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"must be in \[1, 5\)"), pruning(model, layer=layer):
        pass
    assert hooks_of(model) == 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3), "holds 3 of the prompts' 7 tokens"),
        ((3, 7), "3 rows is not a multiple of the 2 prompts"),
    ],
)
def test_a_pass_that_is_not_the_prompts_is_refused(shape: tuple[int, int], message: str) -> None:
    model = tiny_model()
    batch = batch_of(VISUAL.expand(2, -1))
    with pytest.raises(ValueError, match=message), pruning(model, batch):
        model(torch.ones(shape, dtype=torch.long))


def test_another_batch_afterwards_is_refused() -> None:
    model = tiny_model()
    with pruning(model):
        model(torch.ones(1, 7, dtype=torch.long))
        with pytest.raises(ValueError, match="a pass of 2 rows after one of 1"):
            model(torch.ones(2, 7, dtype=torch.long))


def test_the_caches_shrink_from_the_pruning_layer_on() -> None:
    model = tiny_model()
    with pruning(model), torch.no_grad():
        cache = cache_among(model(torch.arange(10, 17)[None], use_cache=True))
        assert [layer.keys.shape[2] for layer in cache.layers] == [7, 7, 5, 5, 5]
        cache = cache_among(model(torch.tensor([[20]]), **{cache_name(model): cache}, use_cache=True))
    assert [layer.keys.shape[2] for layer in cache.layers] == [8, 8, 6, 6, 6]


def test_of_the_copies_of_a_prompt_one_decides() -> None:
    """Beams change places, so the copies must keep the same tokens even where their rows differ."""
    model = tiny_model()
    ids = torch.stack((torch.arange(10, 17), torch.arange(20, 27)))
    with pruning(model), torch.no_grad():
        both = cache_among(model(ids, use_cache=True))
    alone = []
    for row in ids:
        with pruning(model), torch.no_grad():
            alone.append(cache_among(model(row[None], use_cache=True)))
    keys = [cache.layers[2].keys for cache in alone]
    torch.testing.assert_close(both.layers[2].keys[:1], keys[0])
    assert float((both.layers[2].keys[1:] - keys[1]).abs().max()) > 1e-3  # it would have kept others


def flash_like(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What flash attention computes: every row without its padding, causal from the end, 0 at padding."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    queries, size = query.shape[2], key.shape[2]
    assert attention_mask is None or attention_mask.shape == (len(query), size)
    positions = kwargs["position_ids"]
    assert attention_mask is not None or bool((positions.diff() == 1).all())  # a gap would mean packed rows
    output = torch.zeros_like(query)
    for row in range(len(query)):
        valid = torch.ones(size, dtype=torch.bool) if attention_mask is None else attention_mask[row].bool()
        real = valid[-queries:]
        looks = torch.ones(int(real.sum()), int(valid.sum())).tril(int(valid.sum() - real.sum())).bool()
        output[row, :, real] = torch.nn.functional.scaled_dot_product_attention(
            query[row, :, real], key[row, :, valid], value[row, :, valid], looks, scale=kwargs["scaling"]
        )
    return output.transpose(1, 2), None


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_padding_mask_serves_implementations_like_flash_attention(num_beams: int) -> None:
    """Flash attention itself needs a GPU; this one takes and refuses what it does."""
    AttentionInterface.register("flash_like", flash_like)
    AttentionMaskInterface.register("flash_like", flash_attention_mask)
    ids, mask = padded(*ROWS)
    model = tiny_model()
    kwargs = {"max_new_tokens": 4, "do_sample": False, "num_beams": num_beams}
    wrapped = flashvid(model, 0.5)
    wanted = wrapped.generate(ids, mask, **visual_inputs(), **kwargs)
    model.model.language_model.config._attn_implementation = "flash_like"
    assert adapter_for(model).mask_style == "padding"
    assert torch.equal(wrapped.generate(ids, mask, **visual_inputs(), **kwargs), wanted)
    single = torch.tensor([ROWS[0]])
    inputs = {
        name: part[: 192 if name == "pixel_values_videos" else 1] for name, part in visual_inputs().items()
    }
    for name in ("pixel_values", "image_grid_thw"):
        del inputs[name]
    found = wrapped.generate(single, **inputs, **kwargs)
    model.model.language_model.config._attn_implementation = "sdpa"
    assert torch.equal(found, wrapped.generate(single, **inputs, **kwargs))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("_attn_implementation", "flex_attention", "'flex_attention' cannot be pruned inside"),
        ("layer_types", ["full_attention"] * 4 + ["sliding_attention"], "use_sliding_window=True"),
        ("layer_types", ["full_attention"] * 4 + ["chunked_attention"], "layers of chunked_attention"),
    ],
)
def test_unknown_masks_are_refused(setting: str, value: Any, message: str) -> None:
    model = tiny_model()
    setattr(model.model.language_model.config, setting, value)
    with pytest.raises(ValueError, match=message), pruning(model):
        pass
    assert hooks_of(model) == 0
