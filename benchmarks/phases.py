"""Where a call spends its time, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch

from benchmarks.measure import stopwatch
from flashvid.compression import plan

__all__ = ["COMPRESSION", "Stages", "timed_stages"]

# Stage -> the functions that make it up, as (module or class, attribute).
Stages = Mapping[str, Sequence[tuple[Any, str]]]

# What compress() calls for each stage.
COMPRESSION: Stages = {
    "segments": [(plan, "segment_lengths")],
    "products": [(plan, "token_products")],
    "selection": [(plan, "event_relevance"), (plan, "select_tokens")],
    "merging": [(plan, "grow_trees"), (plan, "tree_weights")],
    "clustering": [(plan, "cluster_trees")],
    "apply": [(plan.CompressionPlan, "apply")],
}


def timed_stages(call: Callable[[], object], stages: Stages, device: torch.device) -> dict[str, float]:
    """Seconds that `call` spends in each stage, in what lies between them (`other`) and in `total`.

    Stages must not call one another. The clock waits for the device at every border, so on CUDA the total is
    more than an undisturbed call takes.
    """
    spent = dict.fromkeys(stages, 0.0)
    with ExitStack() as stack:
        for stage, functions in stages.items():
            for holder, name in functions:
                timed = _timed(getattr(holder, name), stage, spent, device)
                stack.enter_context(mock.patch.object(holder, name, timed))
        elapsed = stack.enter_context(stopwatch(device))
        call()
        total = elapsed()
    return spent | {"other": total - sum(spent.values()), "total": total}


def _timed(
    function: Callable[..., Any], stage: str, spent: dict[str, float], device: torch.device
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with stopwatch(device) as elapsed:
            result = function(*args, **kwargs)
            spent[stage] += elapsed()
        return result

    return call
