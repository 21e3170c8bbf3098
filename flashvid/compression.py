"""compress(): the visual tokens of one video in, a fraction of them out, each standing for a stated group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashvid.budget import share_places, unit_budget
from flashvid.clustering import TreeValues, cluster_trees
from flashvid.config import Budget, FlashVidConfig
from flashvid.merging import add_rows, grow_trees, tree_weights
from flashvid.segments import segment_ids, segment_lengths, unit_means
from flashvid.selection import event_relevance, select_tokens

__all__ = ["CompressedVideo", "CompressionPlan", "compress", "plan_compression"]

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class CompressedVideo:
    """The kept tokens of a video, in raster order; global token index = unit * N + position.

    tokens: (K, D) in the dtype of the features. kept: (K,) int64, strictly increasing global indices.
    group_sizes: (K,) int64, how many original tokens each stands for.
    """

    tokens: Tensor
    kept: Tensor
    group_sizes: Tensor


@dataclass(frozen=True)
class CompressionPlan:
    """What to keep and what to average, decided once; `apply` may then be called on any features of that
    shape.

    shape: (T, N). segment_lengths: in units. selected: (T, a) int64, positions chosen by ADTS. kept and
    group_sizes: as in `CompressedVideo`. group: (T*N,) int64, row of `kept` that stands for each token, -1
    where none does (only without any places for merged tokens). weights: (T*N,) float32, share of each token
    in its group's value.
    """

    shape: tuple[int, int]
    segment_lengths: tuple[int, ...]
    selected: Tensor
    kept: Tensor
    group_sizes: Tensor
    group: Tensor
    weights: Tensor

    @torch.no_grad()
    def apply(self, features: Tensor) -> Tensor:
        """Averages each group in float32: (T, N, D) -> (K, D) in the same dtype; writes to nothing."""
        if tuple(features.shape[:2]) != self.shape:
            raise ValueError(
                f"features of shape {tuple(features.shape)} do not fit a plan for (T, N) = {self.shape}"
            )
        rows = features.reshape(-1, features.shape[-1])
        members, group, weights = _without_dropped(self.group, self.weights)
        sums = add_rows(rows if members is None else rows[members], group, weights, len(self.kept))
        return sums.to(features.dtype)


def _without_dropped(group: Tensor, weights: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    is_member = group >= 0
    if bool(is_member.all()):
        return None, group, weights
    members = is_member.nonzero().squeeze(1)
    return members, group[members], weights[members]


@torch.no_grad()
def compress(features: Tensor, saliency: Tensor | None, config: FlashVidConfig) -> CompressedVideo:
    """Keeps about retention_ratio * expansion of a video's visual tokens and merges the others into them.

    features: (T, N, D) bfloat16, float16 or float32, T temporal units of N tokens in raster order, after the
    vision tower's merger; never written to. saliency: (T, N) float32, attention each token receives; None
    only for token_selection_method="div". Decisions are taken in float32 and ties go to the lowest index, so
    the result does not depend on a seed. With retention_ratio=1 `tokens` is a view of the features,
    unchanged. Raises ValueError or TypeError for inputs of the wrong shape, dtype, device, or not finite.
    (FlashVID, ICLR 2026, arXiv 2602.08024, sections 3.2-3.4.)
    """
    _check_inputs(features, saliency, config)
    if config.is_bypass:
        return _everything(features, config)
    plan = plan_compression(features, saliency, config)
    return CompressedVideo(plan.apply(features), plan.kept, plan.group_sizes)


@torch.no_grad()
def plan_compression(features: Tensor, saliency: Tensor | None, config: FlashVidConfig) -> CompressionPlan:
    """Decides what `compress` does, without doing it. Arguments and errors as there; retention_ratio < 1."""
    _check_inputs(features, saliency, config)
    if config.is_bypass:
        raise ValueError("retention_ratio=1 keeps every token: there is nothing to plan; call compress()")
    num_units, num_tokens, _ = features.shape
    with _full_precision(features.device):
        means = unit_means(features)
        if not bool(means.isfinite().all()):
            raise ValueError(
                "features must be finite; there is NaN or infinity in them: look at the vision tower's output"
            )
        lengths = _lengths(means, config)
        selected = _select(features, saliency, means, lengths, config)
        owner, weights = _owners(features, selected, lengths, config)
    return _plan((num_units, num_tokens), lengths, selected, owner, weights)


def _lengths(means: Tensor, config: FlashVidConfig) -> tuple[int, ...]:
    if not config.do_segment:
        return (len(means),)
    return segment_lengths(
        means,
        threshold=config.segment_threshold,
        min_segments=config.min_segment_num,
        fill=config.complementary_segment,
    )


def _select(
    features: Tensor, saliency: Tensor | None, means: Tensor, lengths: tuple[int, ...], config: FlashVidConfig
) -> Tensor:
    method = config.token_selection_method
    count = unit_budget(config, *features.shape[:2]).selected
    relevance = None
    if method == "attn_div_v2":
        relevance = event_relevance(features, means, segment_ids(lengths, features.device), len(lengths))
    return select_tokens(features, None if saliency is None else saliency.float(), count, method, relevance)


def _owners(
    features: Tensor, selected: Tensor, lengths: tuple[int, ...], config: FlashVidConfig
) -> tuple[Tensor, Tensor]:
    """For each token the global index of the one standing for it, -1 for none, and its weight there."""
    chosen = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
    chosen.scatter_(1, selected, True)
    own = torch.arange(chosen.numel(), device=features.device)
    budget = unit_budget(config, *features.shape[:2])
    if budget.merged == 0:
        return own.masked_fill(~chosen.view(-1), -1), torch.ones(len(own), device=features.device)
    forest = grow_trees(
        features, chosen, lengths, unit_budget=budget.kept, threshold=config.temporal_threshold
    )
    shares = tree_weights(forest, config.tree_mean)
    is_root = (forest.root == own).view_as(chosen) & ~chosen
    counts = _center_counts(is_root.sum(dim=1).tolist(), lengths, budget.merged, config.budget)
    values = TreeValues(features, forest, shares)
    center = cluster_trees(values, is_root, counts, library_ties=config.budget == "reference")
    owner = center[forest.root]
    # by default every token weighs the same in its group; in the reference every tree does
    counted = owner if config.tree_mean == "members" else center[forest.root == own]
    weights = 1 / torch.bincount(counted, minlength=len(own))[owner].float()
    return owner, weights if config.tree_mean == "members" else weights * shares


def _center_counts(
    roots: list[int], lengths: tuple[int, ...], merged: int, budget: Budget
) -> list[tuple[int, int]]:
    """(roots, places) of each unit; a segment of F units has merged * F places."""
    counts: list[tuple[int, int]] = []
    for length in lengths:
        part = roots[len(counts) : len(counts) + length]
        counts += zip(part, _segment_counts(part, merged * length, budget), strict=True)
    return counts


def _segment_counts(roots: list[int], places: int, budget: Budget) -> list[int]:
    if budget == "exact" or sum(roots) <= places:
        return share_places(roots, places)
    share = places / sum(roots)  # multiplied in the reference code's order, which decides what is rounded up
    return [min(n, math.ceil(n * share)) for n in roots]


def _plan(
    shape: tuple[int, int], lengths: tuple[int, ...], selected: Tensor, owner: Tensor, weights: Tensor
) -> CompressionPlan:
    sizes = torch.bincount(owner[owner >= 0], minlength=len(owner))
    kept = sizes.nonzero().squeeze(1)
    rank = torch.full_like(owner, -1)
    rank[kept] = torch.arange(len(kept), device=owner.device)
    group = rank[owner.clamp(min=0)].masked_fill_(owner < 0, -1)
    return CompressionPlan(shape, lengths, selected, kept, sizes[kept], group, weights)


def _everything(features: Tensor, config: FlashVidConfig) -> CompressedVideo:
    num_units, num_tokens, width = features.shape
    total = num_units * num_tokens
    if config.max_visual_tokens is not None and total > config.max_visual_tokens:
        raise ValueError(
            f"retention_ratio=1 keeps all {total} tokens, more than "
            f"max_visual_tokens={config.max_visual_tokens}; lower the ratio or sample fewer frames"
        )
    kept = torch.arange(total, device=features.device)
    return CompressedVideo(features.detach().reshape(total, width), kept, torch.ones_like(kept))


def _check_inputs(features: Tensor, saliency: Tensor | None, config: FlashVidConfig) -> None:
    if not isinstance(features, Tensor) or features.dtype not in _DTYPES:
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"features are {got}; they must be a tensor of bfloat16, float16 or float32")
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(f"features of shape {tuple(features.shape)} must be (T, N, D), none of them 0")
    if saliency is not None:
        _check_saliency(saliency, features)
    elif config.token_selection_method != "div":
        raise ValueError(
            f"saliency=None needs token_selection_method='div', not {config.token_selection_method!r}; "
            "otherwise pass the (T, N) attention each token receives"
        )


def _check_saliency(saliency: Tensor, features: Tensor) -> None:
    if not isinstance(saliency, Tensor) or saliency.dtype not in _DTYPES:
        got = saliency.dtype if isinstance(saliency, Tensor) else type(saliency).__name__
        raise TypeError(f"saliency is {got}; it must be a tensor of float32")
    if saliency.shape != features.shape[:2]:
        raise ValueError(
            f"saliency of shape {tuple(saliency.shape)} must be (T, N) = {tuple(features.shape[:2])}"
        )
    if saliency.device != features.device:
        raise ValueError(f"saliency is on {saliency.device}, features on {features.device}; move one of them")
    if not bool(saliency.isfinite().all()):
        raise ValueError("saliency must be finite; there is NaN or infinity in it")


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Real float32 products: neither autocast nor TF32 may decide which tokens are kept."""
    backends = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    switches: list[Any] = [backend for backend in backends if hasattr(backend, "fp32_precision")]
    before = [(switch, switch.fp32_precision) for switch in switches]
    with torch.autocast(device.type, enabled=False):
        legacy = _legacy_precision()
        torch.set_float32_matmul_precision("highest")  # sets the newer switches as well
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(legacy)
            for switch, value in before:
                switch.fp32_precision = value


def _legacy_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # raised where a caller has used the newer switches, so the old one is untouched
        return "highest"
