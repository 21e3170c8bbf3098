"""The stages as the tests call them: features in, indices out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flashvid.compression.merging import Forest, grow_trees
from flashvid.compression.products import token_products
from flashvid.compression.segments import segment_ids
from flashvid.compression.selection import event_relevance, select_tokens
from flashvid.config import SelectionMethod

__all__ = ["link", "select", "unit_means"]


def unit_means(features: Tensor) -> Tensor:
    """Mean token of each unit: (T, N, D) -> (T, D) float32."""
    return token_products(features, across=False).means


def select(
    features: Tensor, saliency: Tensor | None, count: int, method: SelectionMethod, lengths: Sequence[int]
) -> Tensor:
    """Positions selected in each unit: (T, count), in order of choice; lengths: of the segments."""
    products = token_products(features, across=False)
    ids = segment_ids(lengths, features.device)
    relevance = event_relevance(features, products.means, ids, len(lengths))
    return select_tokens(products, saliency, count, method, relevance)


def link(
    features: Tensor, chosen: Tensor, lengths: Sequence[int], *, unit_budget: int, threshold: float
) -> Forest:
    """Trees of the tokens not chosen, (T, N) bool, with the same budget in every unit."""
    products = token_products(features, across=threshold < 1)
    most_links = [length * (features.shape[1] - unit_budget) for length in lengths]
    return grow_trees(products, chosen, lengths, most_links=most_links, threshold=threshold)
