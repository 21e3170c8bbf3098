"""What hooks rely on is there by name, or the model is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from flashvid.budget.schedule import PruningSchedule
from flashvid.generation.arguments import Arguments, check_embedded
from flashvid.generation.wrapper import flashvid
from flashvid.inside.calls import UnknownCallError, cache_name, check_layer, check_module
from flashvid.inside.pruning import prune_inside
from flashvid.models.registry import adapter_for
from tests.tiny_model import hooks_of, tiny_model
from tests.unit.inside.test_pruning import batch_of

LAYER = 2


def renamed(module: Any, old: str, new: str) -> Any:
    """The module with a forward that calls one of its arguments otherwise; works as before."""
    forward = type(module).forward
    parameters = [new if name == old else name for name in ORDER]
    scope: dict[str, Any] = {"forward": forward}
    named = ", ".join(f"{name}=None" for name in parameters)
    passed = ", ".join(f"{name}={new if name == old else name}" for name in ORDER)
    exec(f"def renamed(self, {named}, **kwargs):\n    return forward(self, {passed}, **kwargs)", scope)
    module.__class__ = type("Renamed", (type(module),), {"forward": scope["renamed"]})
    return module


CACHE = cache_name(tiny_model().model.language_model.layers[0])
ORDER = ("hidden_states", "attention_mask", "position_ids", CACHE, "position_embeddings")


@pytest.mark.parametrize("old", ORDER)
@pytest.mark.parametrize("part", ["layer", "attention"])
def test_a_renamed_argument_is_refused_before_anything_is_done(old: str, part: str) -> None:
    model: Any = tiny_model()
    layer = model.model.language_model.layers[3]
    renamed(layer if part == "layer" else layer.self_attn, old, "renamed")
    missing = f"{CACHE}" if old == CACHE else f"does not take {old}"
    with pytest.raises(UnknownCallError, match=f"^Renamed of transformers .*{missing}"):
        flashvid(model, 0.5)


def test_layers_of_any_family_are_checked_where_they_are_pruned() -> None:
    model: Any = tiny_model()
    adapter = adapter_for(model)
    renamed(model.model.language_model.layers[3], CACHE, "kv")
    with (
        pytest.raises(UnknownCallError, match=r"Renamed .* key-value cache"),
        prune_inside(adapter, batch_of(torch.ones(1, 7, dtype=torch.bool)), PruningSchedule(LAYER, 0.5)),
    ):
        raise AssertionError("nothing may run")


def as_caller(model: Any, change: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """The language model calls the layers that are pruned otherwise than it did."""
    for layer in model.model.language_model.layers[LAYER:]:
        layer.register_forward_pre_hook(lambda _, args, kwargs: change(args, kwargs), with_kwargs=True)


def without(name: str) -> Callable[..., Any]:
    return lambda args, kwargs: (args, {key: value for key, value in kwargs.items() if key != name})


def beside(name: str, value: Any) -> Callable[..., Any]:
    return lambda args, kwargs: (args, {**kwargs, name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(CACHE), f"was called without {CACHE}"),
        (without("position_embeddings"), "was called without position_embeddings"),
        (without("attention_mask"), "was called without attention_mask"),
        (without("position_ids"), "was called without position_ids"),
        (beside("deep", torch.ones(1, 7, 4)), "was given the tensor deep"),
        (beside("pair", (torch.ones(1), None)), "was given the tensor pair"),
        (lambda args, kwargs: ((*args, None), kwargs), "called with 2 arguments without a name"),
    ],
    ids=["no cache", "no rotary", "no mask", "no positions", "a tensor", "tensors", "places"],
)
def test_a_layer_that_is_called_otherwise_is_refused(change: Callable[..., Any], message: str) -> None:
    model = tiny_model()
    as_caller(model, change)
    batch = batch_of(torch.tensor([[0, 0, 1, 1, 1, 1, 0]]).bool())
    with (
        prune_inside(adapter_for(model), batch, PruningSchedule(LAYER, 0.5)),
        torch.no_grad(),
        pytest.raises(UnknownCallError, match=message),
    ):
        model(torch.arange(10, 17)[None])
    assert hooks_of(model) == len(model.model.language_model.layers[LAYER:])


def test_hidden_states_by_name_are_the_same() -> None:
    model = tiny_model()
    batch = batch_of(torch.tensor([[0, 0, 1, 1, 1, 1, 0]]).bool())

    def run() -> Tensor:
        with prune_inside(adapter_for(model), batch, PruningSchedule(LAYER, 0.5)), torch.no_grad():
            logits: Tensor = model(torch.arange(10, 17)[None]).logits
        return logits

    wanted = run()
    as_caller(model, lambda args, kwargs: ((), {"hidden_states": args[0], **kwargs}))
    assert torch.equal(run(), wanted)


@pytest.mark.parametrize("part", ["language", "tower"])
def test_parts_that_what_is_recomputed_would_leave_out_are_refused(part: str) -> None:
    model: Any = tiny_model()
    layers = model.model.language_model.layers
    attention = layers[1].self_attn if part == "language" else model.model.visual.blocks[-1].attn
    attention.q_norm = nn.Identity()
    with pytest.raises(UnknownCallError, match=r"consists of .*q_norm"):
        flashvid(model, 0.5)


def test_a_further_argument_is_refused() -> None:
    class Further(nn.Module):
        def forward(  # noqa: PLR0917
            self,
            hidden_states: Any,
            attention_mask: Any,
            position_ids: Any,
            cache: Any,
            position_embeddings: Any,
            deep: Any,
        ) -> None: ...

    with pytest.raises(UnknownCallError, match=r"Further .* takes deep, of which nothing is known"):
        check_layer(Further())


def test_hidden_states_come_first() -> None:
    class Turned(nn.Module):
        def forward(
            self,
            attention_mask: Any,
            hidden_states: Any,
            position_ids: Any,
            cache: Any,
            position_embeddings: Any,
        ) -> None: ...

    with pytest.raises(UnknownCallError, match="takes attention_mask first"):
        check_layer(Turned())


@pytest.mark.parametrize("name", ["use_cache", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size"])
def test_what_needs_ids_is_refused_where_videos_enter_as_embeddings(name: str) -> None:
    check_embedded(Arguments({}, GenerationConfig()))
    value: Any = False if name == "use_cache" else 2
    for arguments in (Arguments({name: value}, None), Arguments({}, GenerationConfig(**{name: value}))):
        with pytest.raises(ValueError, match=f"{name}={value} cannot be given .* install transformers>=5.18"):
            check_embedded(arguments)


def test_a_module_that_is_as_expected_passes() -> None:
    check_module(nn.Linear(2, 2), ("input",), parts=())
