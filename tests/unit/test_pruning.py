"""Choosing tokens inside the language model, and the hooks that do it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashvid.models import adapter_for
from flashvid.pruning import prune_inside, select_tokens
from tests.tiny_model import fingerprint, hooks_of, tiny_model

VISUAL = torch.tensor([False, True, True, True, True, False, False])


def pruning(model: Any, visual: torch.Tensor = VISUAL, layer: int = 2, ratio: float = 0.5) -> Any:
    adapter = adapter_for(model)
    return prune_inside(
        adapter.decoder_layers, visual, layer=layer, ratio=ratio, attention_of=adapter.attention_of
    )


def test_the_most_attended_visual_tokens_stay_and_all_text() -> None:
    attention = torch.tensor([0.9, 0.1, 0.4, 0.2, 0.3, 0.0, 0.8])
    assert select_tokens(attention, VISUAL, 0.5).tolist() == [0, 2, 4, 5, 6]


def test_ties_go_to_the_lowest_index() -> None:
    assert select_tokens(torch.ones(7), VISUAL, 0.5).tolist() == [0, 1, 2, 5, 6]


@given(st.integers(1, 200), st.floats(0.001, 1))
def test_the_number_kept_is_the_ceiling(num_visual: int, ratio: float) -> None:
    visual = torch.cat((torch.ones(num_visual, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)))
    kept = len(select_tokens(torch.rand(num_visual + 3), visual, ratio)) - 3
    assert ratio * num_visual - 1e-6 <= kept < ratio * num_visual + 1


def test_hooks_live_only_inside_the_with() -> None:
    model = tiny_model()
    before = fingerprint(model)
    with pruning(model):
        assert hooks_of(model) == 1 + 3  # the attention of layer 1; layers 2, 3, 4
        assert fingerprint(model) != before
    assert fingerprint(model) == before


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


def test_a_batch_is_refused_with_the_way_out() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="one sequence, got a batch of 2"), pruning(model):
        model(torch.ones(2, 7, dtype=torch.long))


def test_a_prompt_in_pieces_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="holds 3 of the prompt's 7 tokens"), pruning(model):
        model(torch.ones(1, 3, dtype=torch.long))


def test_the_caches_shrink_from_the_pruning_layer_on() -> None:
    model = tiny_model()
    with pruning(model), torch.no_grad():
        cache = model(torch.arange(10, 17)[None], use_cache=True).past_key_values
        assert [layer.keys.shape[2] for layer in cache.layers] == [7, 7, 5, 5, 5]
        cache = model(torch.tensor([[20]]), past_key_values=cache, use_cache=True).past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == [8, 8, 6, 6, 6]
