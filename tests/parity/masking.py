"""The oracle of pruning inside the model: nothing is cut, what was not chosen is masked out.

Written for reading, row by row and from whole attention maps; it shares no code with what it checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from tests.tiny_model import VIDEO, cache_among

__all__ = ["causal", "full_map", "masked_instead"]


def full_map(layer: Any, hidden: Tensor, rotary: Any, mask: Tensor) -> Tensor:
    """The whole attention map (heads, S, S) of a decoder layer for one sequence, hidden (1, S, D)."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (1, hidden.shape[1], -1, attention.head_dim)
    q = attention.q_proj(normed).view(shape).transpose(1, 2)
    k = attention.k_proj(normed).view(shape).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, *rotary)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (q.float() @ k.float().transpose(2, 3) * attention.scaling + mask).softmax(dim=-1)[0]


def causal(hidden_columns: list[int], size: int) -> Tensor:
    """(S, S) float32: 0 where a query looks, -inf after it and at the hidden columns but its own."""
    mask = torch.full((size, size), -math.inf).triu(1)
    mask[:, hidden_columns] = -math.inf
    return mask.fill_diagonal_(0.0)


class _Oracle:
    def __init__(self, layer: int, ratio: float) -> None:
        self.layer = layer
        self.ratio = Fraction(ratio).limit_denominator(10**6)
        self.ids: Tensor | None = None
        self.padding: list[list[int]] = []
        self.hidden_columns: list[list[int]] = []

    def see_ids(self, embedding: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the first tokens are embedded: which columns are video."""
        if self.ids is None:
            self.ids = args[0].clone()

    def see_mask(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the language model's first pass: which columns are padding, in each copy of a prompt."""
        if self.padding:
            return
        assert self.ids is not None
        rows = kwargs["inputs_embeds"].shape[0]
        self.ids = self.ids.repeat_interleave(rows // len(self.ids), 0)
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(self.ids) if mask is None else mask
        self.padding = [(row == 0).nonzero()[:, 0].tolist() for row in mask]

    def rank(self, layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Before layer K-1 of the first pass."""
        if self.hidden_columns:
            return
        assert self.ids is not None
        for row, ids in enumerate(self.ids.tolist()):
            rotary = [part[row : row + 1] for part in kwargs["position_embeddings"]]
            seen = causal(self.padding[row], len(ids))
            paid = full_map(layer, args[0][row : row + 1], rotary, seen)[:, -1].mean(dim=0).tolist()
            visual = [column for column, token in enumerate(ids) if token == VIDEO]
            best = sorted(visual, key=lambda column: (-paid[column], column))
            dropped = best[math.ceil(self.ratio * len(visual)) :]
            self.hidden_columns.append(self.padding[row] + dropped)

    def mask(self, index: int) -> Any:
        def hook(layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            """Before each layer from K on."""
            queries, cache = args[0].shape[1], cache_among(kwargs)
            size = queries + (0 if cache is None else cache.get_seq_length(index))
            rows = [causal(columns, size)[-queries:] for columns in self.hidden_columns]
            mask = torch.stack(rows)[:, None].clamp(min=torch.finfo(args[0].dtype).min)
            return args, {**kwargs, "attention_mask": mask.to(args[0].dtype)}

        return hook


@contextmanager
def masked_instead(model: Any, layer: int, ratio: float) -> Iterator[_Oracle]:
    """Inside the ``with``, the unwrapped model's generate() masks from ``layer`` on what would be dropped."""
    oracle = _Oracle(layer, ratio)
    layers = model.model.language_model.layers
    with ExitStack() as stack:
        hooks = [
            (model.get_input_embeddings(), oracle.see_ids),
            (model.model.language_model, oracle.see_mask),
            (layers[layer - 1], oracle.rank),
        ]
        hooks += [(layers[index], oracle.mask(index)) for index in range(layer, len(layers))]
        for module, hook in hooks:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield oracle
