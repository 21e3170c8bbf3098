"""The fields of :class:`FlashVidConfig` as keywords of a function, for editors and for ``inspect``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypedDict, TypeVar

from flashvid.config import Budget, FlashVidConfig, SelectionMethod, TreeMean

__all__ = ["FlashVidSettings", "with_settings"]

_F = TypeVar("_F", bound=Callable[..., Any])


class FlashVidSettings(TypedDict, total=False):
    """Keywords of ``flashvid()``: names and types of :class:`FlashVidConfig`, which has the defaults.

    ``retention_ratio`` is not among them, because it may be given by its place.
    """

    do_segment: bool
    segment_threshold: float
    min_segment_num: int
    complementary_segment: bool
    token_selection_method: SelectionMethod
    alpha: float
    temporal_threshold: float
    expansion: float
    pruning_layer: int | None
    llm_retention_ratio: float | None
    tree_mean: TreeMean
    budget: Budget
    max_visual_tokens: int | None
    adaptive: bool


def with_settings(function: _F) -> _F:
    """Shows every field and its default in ``inspect.signature`` and ``help``, for ``**settings``."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    shown = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in fields(FlashVidConfig)
        if field.name not in signature.parameters
    ]
    vars(function)["__signature__"] = signature.replace(parameters=[*own, *shown])
    return function
