"""Pruning inside the language model: from layer K on, only the visual tokens that the question looks at.

FlashVID (ICLR 2026, arXiv 2602.08024), section 3.5; only one row of the attention map is ever computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flashvid.budget import pruned_tokens

__all__ = ["prune_inside", "select_tokens"]

AttentionOf = Callable[[Any, Tensor, tuple[Tensor, Tensor], int], Tensor]


def select_tokens(attention: Tensor, visual: Tensor, ratio: float) -> Tensor:
    """Indices (kept,) int64, ascending: every text token and the visual ones with most attention.

    ``attention`` (S,) float32, ``visual`` (S,) bool; ceil(ratio*V) visual tokens stay, ties: the earliest.
    """
    places = visual.nonzero().squeeze(1)
    ranked = attention[places].sort(descending=True, stable=True).indices
    keep = ~visual
    keep[places[ranked[: pruned_tokens(len(places), ratio)]]] = True
    return keep.nonzero().squeeze(1)


@contextmanager
def prune_inside(
    layers: Sequence[nn.Module] | nn.ModuleList,
    visual: Tensor,
    *,
    layer: int,
    ratio: float,
    attention_of: AttentionOf,
) -> Iterator[None]:
    """Inside the ``with``, decoder layers from ``layer`` on see only the kept tokens of one prompt.

    ``visual`` (S,) bool marks the prompt's prunable tokens. The choice is made in the first pass, from the
    attention of token S-1 at layer ``layer - 1`` (``attention_of(self_attn, hidden, rotary, query)``),
    and decoding follows it. The sequence must have no padding and enter in one piece. Raises ValueError for
    batches, for a cached beginning, and for a layer outside [1, number of layers).
    """
    if not 1 <= layer < len(layers):
        raise ValueError(
            f"pruning {layer=} must be in [1, {len(layers)}); it reads the attention of the layer before it"
        )
    pruner = _Pruner(visual, ratio, attention_of, first=layer)
    with ExitStack() as hooks:
        watched: Any = layers[layer - 1]
        hooks.enter_context(
            _removed_after(watched.self_attn.register_forward_pre_hook(pruner.choose, with_kwargs=True))
        )
        for index in range(layer, len(layers)):
            hook = pruner.cut_first if index == layer else pruner.cut
            hooks.enter_context(
                _removed_after(layers[index].register_forward_pre_hook(hook, with_kwargs=True))
            )
        yield


@contextmanager
def _removed_after(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


class _Pruner:
    """What the hooks of one ``with`` share: the prompt's tokens and, after the first pass, which are kept."""

    def __init__(self, visual: Tensor, ratio: float, attention_of: AttentionOf, first: int) -> None:
        self._visual = visual
        self._ratio = ratio
        self._attention_of = attention_of
        self._first = first
        self._kept: Tensor | None = None  # (kept,) int64, of the prompt only
        self._selected: Tensor | None = None  # (kept + new,) rows of the present pass; None while decoding

    def choose(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the attention of layer K-1: decide, if this pass holds the whole prompt."""
        hidden = args[0] if args else kwargs["hidden_states"]
        prompt = len(self._visual)
        self._check(hidden, prompt)
        if hidden.shape[1] < prompt:
            self._selected = None
            return
        with torch.no_grad():
            scores = self._attention_of(module, hidden, kwargs["position_embeddings"], prompt - 1)
            self._kept = select_tokens(scores, self._visual.to(scores.device), self._ratio)
        self._selected = self._columns(hidden.shape[1])

    def cut_first(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before layer K: the hidden states lose the dropped tokens, once for all further layers."""
        if self._selected is not None:
            rows = self._selected.to(args[0].device)
            args = (args[0].index_select(1, rows), *args[1:])
        return self.cut(module, args, kwargs)

    def cut(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before every layer from K on: mask, rotary and text positions follow the hidden states."""
        device = args[0].device
        rows = None if self._selected is None else self._selected.to(device)
        kwargs = {**kwargs, "attention_mask": self._cut_mask(kwargs.get("attention_mask"), rows)}
        if rows is None:
            return args, kwargs
        kwargs["position_embeddings"] = tuple(
            part.index_select(1, rows) for part in kwargs["position_embeddings"]
        )
        if kwargs.get("position_ids") is not None:
            # Not the kept tokens' own numbers: flash attention takes a gap for the start of another sequence.
            kwargs["position_ids"] = kwargs["position_ids"][:, : len(rows)]
        return args, kwargs

    def _cut_mask(self, mask: Any, rows: Tensor | None) -> Any:
        if mask is None:
            return None
        if not isinstance(mask, Tensor):
            raise ValueError(
                f"cannot prune an attention mask of type {type(mask).__name__}; "
                "load the model with attn_implementation sdpa, eager or flash_attention_2"
            )
        columns = self._columns(mask.shape[-1]).to(mask.device)
        if rows is not None and mask.ndim == 4:
            mask = mask.index_select(2, rows.to(mask.device))
        return mask.index_select(-1, columns)

    def _columns(self, length: int) -> Tensor:
        """Kept tokens among ``length``: the prompt's, and everything generated after it."""
        assert self._kept is not None  # `choose` runs first, in the layer before
        prompt = len(self._visual)
        return torch.cat((self._kept, torch.arange(prompt, length, device=self._kept.device)))

    def _check(self, hidden: Tensor, prompt: int) -> None:
        if hidden.shape[0] != 1:
            raise ValueError(
                f"pruning inside the model takes one sequence, got a batch of {hidden.shape[0]} (beams count "
                "too); use num_beams=1 and one prompt per call, or llm_retention_ratio=1"
            )
        if self._kept is None and hidden.shape[1] < prompt:
            raise ValueError(
                f"the first pass holds {hidden.shape[1]} of the prompt's {prompt} tokens; pruning inside the "
                "model needs the prompt in one piece: no prefilled cache and no prefill_chunk_size"
            )
