"""compress(): the visual tokens of one video in, a fraction of them out, each standing for a stated group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from flashvid.arithmetic import UnitBudget, share_places, unit_budget
from flashvid.compression.adaptive import merged_places, unit_budgets, unit_novelty
from flashvid.compression.checks import check_config, check_inputs, check_norms
from flashvid.compression.crowds import Trees
from flashvid.compression.filling import cluster_trees
from flashvid.compression.merging import Groups, best_matches, grow_trees, tree_weights
from flashvid.compression.precision import full_precision
from flashvid.compression.products import TokenProducts, token_products
from flashvid.compression.segments import segment_ids, segment_lengths
from flashvid.compression.selection import event_relevance, select_tokens
from flashvid.config import Budget, FlashVidConfig

__all__ = ["CompressedVideo", "CompressionPlan", "compress", "plan_compression"]

_T = TypeVar("_T")


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

    shape: (T, N). segment_lengths: in units. budgets: of each unit. selected: (T, N) bool, True at tokens
    chosen by ADTS. root: (T*N,) int64, global index of the root of each token's tree, itself for roots and
    selected tokens. kept and group_sizes: as in `CompressedVideo`. group: (T*N,) int64, row of `kept` that
    stands for each token, -1 where none does (only without any places for merged tokens). weights: (T*N,)
    float32, share of each token in its group's value; None where all members of a group have the same.
    """

    shape: tuple[int, int]
    segment_lengths: tuple[int, ...]
    budgets: tuple[UnitBudget, ...]
    selected: Tensor
    root: Tensor
    kept: Tensor
    group_sizes: Tensor
    group: Tensor
    weights: Tensor | None

    @torch.no_grad()
    def apply(self, features: Tensor) -> Tensor:
        """Averages each group in float32: (T, N, D) -> (K, D) in the same dtype; writes to nothing.

        Raises ValueError for features of another (T, N).
        """
        if tuple(features.shape[:2]) != self.shape:
            raise ValueError(
                f"features of shape {tuple(features.shape)} do not fit a plan for (T, N) = {self.shape}"
            )
        rows = features.contiguous().flatten(0, 1)
        if self.num_members == len(self.kept):
            return rows[self.kept]
        groups = Groups(self.group, self.group_sizes, self.num_members)
        return groups.mean(rows, self.weights).to(features.dtype)

    @property
    def num_members(self) -> int:
        """Original tokens that some kept token stands for."""
        if any(budget.merged for budget in self.budgets):
            return len(self.group)
        return len(self.kept)


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
    check_config(config)
    if config.is_bypass:
        check_inputs(features, saliency, config)
        return _everything(features, config)
    plan = plan_compression(features, saliency, config)
    return CompressedVideo(plan.apply(features), plan.kept, plan.group_sizes)


@torch.no_grad()
def plan_compression(features: Tensor, saliency: Tensor | None, config: FlashVidConfig) -> CompressionPlan:
    """Decides what `compress` does, without doing it.

    features: (T, N, D) bfloat16, float16 or float32; saliency: (T, N) float32 or None, as for `compress`.
    Raises what `compress` raises, and ValueError for retention_ratio=1, which leaves nothing to decide.
    (FlashVID, sections 3.2-3.4.)
    """
    check_config(config)
    check_inputs(features, saliency, config)
    if config.is_bypass:
        raise ValueError("retention_ratio=1 keeps every token: there is nothing to plan; call compress()")
    with full_precision(features.device):
        budget = unit_budget(config, *features.shape[:2])
        is_read = budget.merged > 0 or config.adaptive
        products = token_products(features, across=is_read and config.temporal_threshold < 1)
        check_norms(products.norms)
        lengths = _lengths(products.means, config)
        budgets = _budgets(products, lengths, budget, config)
        selected = _select(products, saliency, lengths, budgets, config)
        if budget.merged == 0:
            return _plan_without_trees(lengths, budgets, selected)
        trees = _trees(products, selected, lengths, budgets, config)
        owner = _owners(trees, lengths, budgets, config)
    return _plan(lengths, budgets, selected, trees, owner)


def _lengths(means: Tensor, config: FlashVidConfig) -> tuple[int, ...]:
    if not config.do_segment:
        return (len(means),)
    return segment_lengths(
        means,
        threshold=config.segment_threshold,
        min_segments=config.min_segment_num,
        fill=config.complementary_segment,
        reference_ties=config.budget == "reference",
    )


def _budgets(
    products: TokenProducts, lengths: tuple[int, ...], budget: UnitBudget, config: FlashVidConfig
) -> tuple[UnitBudget, ...]:
    num_units = products.shape[0]
    if not config.adaptive or num_units == 1 or config.temporal_threshold >= 1:
        return (budget,) * num_units  # in one unit, and where nothing merges, all is new
    cosine, _ = best_matches(products)
    novelty = unit_novelty(cosine, config.temporal_threshold).tolist()
    return unit_budgets(novelty, lengths, budget)


def _select(
    products: TokenProducts,
    saliency: Tensor | None,
    lengths: tuple[int, ...],
    budgets: tuple[UnitBudget, ...],
    config: FlashVidConfig,
) -> Tensor:
    """(T, N) bool, the tokens chosen by ADTS."""
    features, method = products.features, config.token_selection_method
    relevance = None
    if method == "attn_div_v2":
        relevance = event_relevance(
            features, products.means, segment_ids(lengths, features.device), len(lengths)
        )
    counts = [budget.selected for budget in budgets]
    most = max(counts)
    scale = None if saliency is None else saliency.float()
    picks = select_tokens(products, scale, most, method, relevance)
    chosen = torch.zeros(products.shape, dtype=torch.bool, device=features.device)
    if min(counts) == most:
        return chosen.scatter_(1, picks, True)
    rank = torch.arange(most, device=features.device)
    return chosen.scatter_(1, picks, rank < torch.tensor(counts, device=features.device).unsqueeze(-1))


def _trees(
    products: TokenProducts,
    selected: Tensor,
    lengths: tuple[int, ...],
    budgets: tuple[UnitBudget, ...],
    config: FlashVidConfig,
) -> Trees:
    num_tokens = products.shape[1]
    most_links = [sum(num_tokens - budget.kept for budget in part) for part in _by_segment(budgets, lengths)]
    forest = grow_trees(
        products,
        selected,
        lengths,
        most_links=most_links,
        threshold=config.temporal_threshold,
        reference_ties=config.budget == "reference",
    )
    own = torch.arange(selected.numel(), device=selected.device)
    is_root = (forest.root == own).view_as(selected) & ~selected
    shares = tree_weights(forest, "reference") if config.tree_mean == "reference" else None
    return Trees(products, forest, is_root, shares)


def _owners(
    trees: Trees, lengths: tuple[int, ...], budgets: tuple[UnitBudget, ...], config: FlashVidConfig
) -> Tensor:
    """(T*N,) int64, for each token the global index of the one standing for it."""
    roots = trees.is_root.sum(dim=1).tolist()
    counts: list[tuple[int, int]] = []
    for part, some in zip(_by_segment(roots, lengths), _by_segment(budgets, lengths), strict=True):
        counts += zip(part, _segment_counts(part, merged_places(some, part), config.budget), strict=True)
    return cluster_trees(trees, counts, library_ties=config.budget == "reference")[trees.forest.root]


def _by_segment(values: Sequence[_T], lengths: tuple[int, ...]) -> Iterator[Sequence[_T]]:
    start = 0
    for length in lengths:
        yield values[start : start + length]
        start += length


def _segment_counts(roots: Sequence[int], places: int, budget: Budget) -> list[int]:
    """Places of each unit of a segment."""
    if budget == "exact" or sum(roots) <= places:
        return share_places(roots, places)
    share = places / sum(roots)  # multiplied in the reference code's order, which decides what is rounded up
    return [min(n, math.ceil(n * share)) for n in roots]


def _plan(
    lengths: tuple[int, ...], budgets: tuple[UnitBudget, ...], selected: Tensor, trees: Trees, owner: Tensor
) -> CompressionPlan:
    sizes = torch.bincount(owner, minlength=len(owner))
    kept = sizes.nonzero().squeeze(1)
    rank = (sizes > 0).cumsum(0).sub_(1)
    weights = None
    if trees.shares is not None:  # every tree weighs the same in its cluster
        is_own = trees.forest.root == torch.arange(len(owner), device=owner.device)
        trees_of_owner = torch.bincount(owner[is_own], minlength=len(owner))
        weights = trees.shares / trees_of_owner[owner]
    return CompressionPlan(
        shape=(selected.shape[0], selected.shape[1]),
        segment_lengths=lengths,
        budgets=budgets,
        selected=selected,
        root=trees.forest.root,
        kept=kept,
        group_sizes=sizes[kept],
        group=rank[owner],
        weights=weights,
    )


def _plan_without_trees(
    lengths: tuple[int, ...], budgets: tuple[UnitBudget, ...], selected: Tensor
) -> CompressionPlan:
    """No places for merged tokens: whatever is not selected is dropped."""
    chosen = selected.view(-1)
    kept = chosen.nonzero().squeeze(1)
    return CompressionPlan(
        shape=(selected.shape[0], selected.shape[1]),
        segment_lengths=lengths,
        budgets=budgets,
        selected=selected,
        root=torch.arange(len(chosen), device=chosen.device),
        kept=kept,
        group_sizes=torch.ones_like(kept),
        group=chosen.cumsum(0).sub_(1).masked_fill_(~chosen, -1),
        weights=None,
    )


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
