"""Pruning inside the language model: from layer K on, only the visual tokens that the question looks at.

FlashVID (ICLR 2026, arXiv 2602.08024), section 3.5; only one row of the attention map is ever computed.
Every prompt of a padded batch keeps its own tokens. So the rows differ in length from layer K on and are
padded anew, on the left, for the layers from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from flashvid.budget import PruningSchedule, pruned_tokens
from flashvid.inside.calls import cache_name, check_layer, hidden_of, keyword, only_known
from flashvid.inside.hooks import own_pre_hooks
from flashvid.inside.prompt import PromptBatch

__all__ = ["Cut", "MaskStyle", "PrunableModel", "attention_mask", "plan_cut", "prune_inside", "select_tokens"]

# What an attention implementation takes as its mask: 4-D bool (sdpa), 4-D added to the scores (eager), 2-D
# bool with True at tokens (flash attention).
MaskStyle = Literal["bool", "additive", "padding"]


class PrunableModel(Protocol):
    """What pruning needs to know of a model; a family's adapter has it."""

    @property
    def decoder_layers(self) -> Sequence[nn.Module] | nn.ModuleList:
        """The language model's layers, first to last."""

    @property
    def mask_style(self) -> MaskStyle:
        """What the layers take as attention mask."""

    def attention_of(
        self, attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], valid: Tensor
    ) -> Tensor:
        """Attention (B, S) float32 that the last token of ``hidden`` (B, S, D) pays in this layer."""


@dataclass(frozen=True)
class Cut:
    """Which columns of a padded batch go on, decided once; every row's last token stays its last.

    index: (B, M) int64, the kept columns of each row, ascending, at the row's right end; M is the longest
    row's number of them. padding: (B,) int64, places at the left of each row that hold nothing.
    """

    index: Tensor
    padding: Tensor

    def expand(self, copies: int) -> Cut:
        """The cut of a batch in which each row stands ``copies`` times, as beams and samples do."""
        return Cut(self.index.repeat_interleave(copies, 0), self.padding.repeat_interleave(copies))

    def columns(self, length: int, prompt: int) -> Tensor:
        """(B, M + length - prompt) int64: the kept columns and all that came after the prompt."""
        new = torch.arange(prompt, length, device=self.index.device)
        return torch.cat((self.index, new.expand(len(self.index), -1)), dim=1)


def select_tokens(attention: Tensor, visual: Tensor, ratio: float) -> Tensor:
    """True at every other token and at each row's visual ones with most attention (section 3.5).

    ``attention`` (..., S) float, ``visual`` (..., S) bool; of V visual tokens in a row ceil(ratio*V) stay,
    ties: the earliest. Returns (..., S) bool.
    """
    counts = [pruned_tokens(number, ratio) for number in visual.sum(-1).flatten().tolist()]
    most = torch.tensor(counts, device=attention.device).view(*visual.shape[:-1], 1)
    ranked = attention.masked_fill(~visual, -math.inf).sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(visual.shape[-1], device=attention.device).expand_as(ranked)
    rank = torch.empty_like(ranked).scatter_(-1, ranked, places)
    return ~visual | (rank < most)


def plan_cut(keep: Tensor) -> Cut:
    """Brings the kept tokens of each row to its right end: (B, S) bool to a :class:`Cut`, int64."""
    lengths = keep.sum(dim=1)
    longest = int(lengths.max())
    index = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, keep.shape[1] - longest :]
    return Cut(index, longest - lengths)


def attention_mask(padding: Tensor, queries: int, past: int, style: MaskStyle, dtype: torch.dtype) -> Any:
    """The causal mask of the last ``queries`` tokens over ``past + queries``, with padding on the left.

    ``padding`` (B,) int64. "bool" gives (B, 1, queries, past + queries) bool with True where a query looks,
    "additive" the same in ``dtype`` with 0 there and the lowest number elsewhere, "padding" (B, past +
    queries) bool. None where the implementation needs none. A query that is padding sees itself, so that
    nothing becomes NaN.
    """
    padded = bool(padding.any())
    columns = torch.arange(past + queries, device=padding.device)
    if style == "padding":
        return columns >= padding[:, None] if padded else None
    if style == "bool" and not padded and (queries == 1 or past == 0):
        return None
    rows = columns[past:, None]
    seen = (columns <= rows) & (columns >= padding[:, None, None]) | (columns == rows)
    if style == "bool":
        return seen[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=padding.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


@contextmanager
def prune_inside(model: PrunableModel, batch: PromptBatch, schedule: PruningSchedule) -> Iterator[None]:
    """Inside the ``with``, the caller's passes drop video tokens of ``batch`` at ``schedule.layer``.

    Paper, section 3.5. The choice is made in the first pass, from the attention of each prompt's last token
    at the layer before, and decoding follows it: a row keeps its text, its images and ceil(ratio*V) of its V
    video tokens. Rows may stand several times in a pass, one after another, as beams and samples do. Only
    passes of this thread, begun inside the ``with``, are pruned. Raises ValueError for a layer outside [1,
    number of layers), for an attention implementation whose masks are unknown, and, in a pass, for prompts
    that come in pieces (a cached beginning, chunks); UnknownCallError for layers that take, or are given,
    other arguments than are known here.
    """
    layers = model.decoder_layers
    for layer in layers:
        check_layer(layer)
    if not 1 <= schedule.layer < len(layers):
        raise ValueError(
            f"pruning layer={schedule.layer} must be in [1, {len(layers)}); it reads the attention of the "
            "layer before it"
        )
    if not bool(batch.video.any()):
        yield
        return
    pruner = _Pruner(model, batch, schedule)
    watched: Any = layers[schedule.layer - 1]
    first, *others = layers[schedule.layer :]
    hooks = [(watched.self_attn, pruner.choose), (first, pruner.cut_first)]
    with own_pre_hooks(hooks + [(layer, pruner.cut) for layer in others]):
        yield


class _Pruner:
    """What the hooks of one ``with`` share: which columns go on, and what the present pass is given."""

    def __init__(self, model: PrunableModel, batch: PromptBatch, schedule: PruningSchedule) -> None:
        self._attention_of = model.attention_of
        self._style = model.mask_style
        self._visual = batch.video
        self._valid = batch.attention_mask.bool()
        self._schedule = schedule
        self._cut: Cut | None = None  # of the rows as they stand in a pass, copies included
        self._columns: Tensor | None = None  # (rows, kept + new) of the present pass; None while decoding
        self._mask: Any = None  # of the present pass, for all layers from K on

    def choose(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the attention of layer K-1: decide, once; afterwards only see what kind of pass it is."""
        hidden = hidden_of(module, args, kwargs)
        prompt = self._visual.shape[1]
        if self._cut is None:
            self._cut = self._decide(module, hidden, keyword(module, kwargs, "position_embeddings"))
        if hidden.shape[0] != len(self._cut.index):
            raise ValueError(
                f"a pass of {hidden.shape[0]} rows after one of {len(self._cut.index)}; pruning inside the "
                "model follows one call of generate()"
            )
        whole = hidden.shape[1] >= prompt  # always without a cache, else only the first time
        self._columns = self._cut.columns(hidden.shape[1], prompt) if whole else None

    def _decide(self, module: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Cut:
        rows, prompt = self._visual.shape
        if hidden.shape[1] != prompt:
            raise ValueError(
                f"the first pass holds {hidden.shape[1]} of the prompts' {prompt} tokens; pruning inside the "
                "model needs them in one piece: no prefilled cache and no prefill_chunk_size"
            )
        if hidden.shape[0] % rows:
            raise ValueError(f"a pass of {hidden.shape[0]} rows is not a multiple of the {rows} prompts")
        copies = hidden.shape[0] // rows
        # One of the copies decides for all: beams change places, so they must have kept the same tokens.
        own = [part[::copies] if len(part) > 1 else part for part in (hidden, *rotary)]
        visual, valid = self._visual.to(hidden.device), self._valid.to(hidden.device)
        with torch.no_grad():
            scores = self._attention_of(module, own[0], (own[1], own[2]), valid)
            keep = valid & select_tokens(scores, visual, self._schedule.ratio)
        return plan_cut(keep).expand(copies)

    def cut_first(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before layer K: the hidden states lose the dropped tokens, once for all further layers."""
        assert self._cut is not None  # `choose` runs first, in the layer before
        hidden = hidden_of(module, args, kwargs)
        if self._columns is not None:
            hidden = _gather(hidden, self._columns)
        cache = keyword(module, kwargs, cache_name(module))
        past = 0 if cache is None else int(cache.get_seq_length(self._schedule.layer))
        self._mask = attention_mask(
            self._cut.padding.to(hidden.device), hidden.shape[1], past, self._style, hidden.dtype
        )
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return self.cut(module, (hidden,), others)

    def cut(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before every layer from K on: mask, rotary and text positions follow the hidden states."""
        only_known(module, kwargs)
        keyword(module, kwargs, "attention_mask")
        rotary = keyword(module, kwargs, "position_embeddings")
        device = hidden_of(module, args, kwargs).device
        kwargs = {**kwargs, "attention_mask": None if self._mask is None else self._mask.to(device)}
        if (columns := self._columns) is None:
            return args, kwargs
        kwargs["position_embeddings"] = tuple(_gather(part, columns) for part in rotary)
        if keyword(module, kwargs, "position_ids") is not None:
            # Not the kept tokens' own numbers: flash attention takes a gap for the start of another sequence.
            kwargs["position_ids"] = torch.arange(columns.shape[1], device=device).expand(columns.shape)
        return args, kwargs


def _gather(rows: Tensor, columns: Tensor) -> Tensor:
    """Columns (B, M) of (B, S, D), or of (1, S, D) for all rows: (B, M, D)."""
    columns = columns.to(rows.device)
    if len(rows) != len(columns):
        rows = rows.expand(len(columns), -1, -1)
    return rows.gather(1, columns[..., None].expand(-1, -1, rows.shape[2]))
