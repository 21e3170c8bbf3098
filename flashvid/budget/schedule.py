"""Where the language model prunes, how much, and how many visual tokens each of its layers then sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from flashvid.arithmetic import ceil_product, floor_product
from flashvid.config import FlashVidConfig

__all__ = [
    "NO_PRUNING",
    "PruningSchedule",
    "config_for_baseline",
    "inside_schedule",
    "kv_lengths_by_layer",
    "llm_ratio_for_budget",
    "mean_visual_tokens",
    "pruned_tokens",
    "pruning_schedule",
    "schedule_for_baseline",
]

_LAYER_SHARE = 0.7  # the paper prunes at 20 of 28 layers
_LEAST_DERIVED_RATIO = 0.1  # a derived layer never leaves less; below it the last layers hardly see the video
_LEAST_BASELINE_RATIO = 0.1  # a baseline pushes the ratio down to this before fewer tokens are let in


@dataclass(frozen=True)
class PruningSchedule:
    """From decoder layer `layer` (0-based) on, `ratio` of the visual tokens is kept; 1 prunes nothing."""

    layer: int
    ratio: float


NO_PRUNING = PruningSchedule(1, 1.0)  # for sums over layers, where a model has no schedule


def pruning_schedule(
    num_layers: int,
    expansion: float = 1.25,
    pruning_layer: int | None = None,
    llm_retention_ratio: float | None = None,
) -> PruningSchedule:
    """Where to prune inside a language model of L layers, and how much: r = (L - x*K) / (x*(L - K)).

    So the mean over the layers is R*N*T tokens although x*R*N*T come in (FlashVID section 3.5). A layer that
    is not given is the one nearest to 0.7*L, or the last before it, that leaves a ratio of at least 0.1. A
    ratio that is given is taken as it is. Raises ValueError where no layer or ratio fits.
    """
    _check_depth(num_layers)
    if expansion < 1:
        raise ValueError(f"{expansion=} must be at least 1; 1 means no pruning inside the model")
    if pruning_layer is None:
        return _derived_schedule(num_layers, expansion, llm_retention_ratio)
    _check_layer(pruning_layer, num_layers)
    if llm_retention_ratio is not None:
        return PruningSchedule(pruning_layer, _checked_ratio(llm_retention_ratio))
    ratio = _equation(num_layers, expansion, pruning_layer)
    if ratio <= 0:
        most = math.ceil(num_layers / expansion) - 1
        raise ValueError(
            f"{pruning_layer=} leaves no ratio for {expansion=} and {num_layers} layers: even dropping every "
            "visual token there spends more than the budget; use a layer of at most "
            f"{most} or a smaller expansion"
        )
    return PruningSchedule(pruning_layer, ratio)


def _equation(num_layers: int, expansion: float, layer: int) -> float:
    return (num_layers - expansion * layer) / (expansion * (num_layers - layer))


def _derived_schedule(num_layers: int, expansion: float, ratio: float | None) -> PruningSchedule:
    wanted = min(num_layers - 1, round(_LAYER_SHARE * num_layers))
    if ratio is not None:
        return PruningSchedule(max(1, wanted), _checked_ratio(ratio))
    for layer in range(wanted, 0, -1):
        if (derived := _equation(num_layers, expansion, layer)) >= _LEAST_DERIVED_RATIO:
            return PruningSchedule(layer, derived)
    raise ValueError(
        f"no pruning layer fits {num_layers} layers with {expansion=}: each leaves a ratio below "
        f"{_LEAST_DERIVED_RATIO}; use expansion=1 or give llm_retention_ratio"
    )


def _checked_ratio(ratio: float) -> float:
    if not 0 < ratio <= 1:
        raise ValueError(
            f"llm_retention_ratio={ratio!r} must be in (0, 1]; 1 prunes nothing inside the model"
        )
    return ratio


def _check_depth(num_layers: int) -> None:
    if num_layers < 1:
        raise ValueError(f"{num_layers=} must be at least 1")


def _check_layer(layer: int, num_layers: int) -> None:
    if not 1 <= layer < num_layers:
        raise ValueError(
            f"pruning_layer={layer} must be in [1, {num_layers}): the layer before it scores the tokens; "
            "llm_retention_ratio=1 switches pruning off"
        )


def pruned_tokens(tokens: int, ratio: float) -> int:
    """Visual tokens left at the pruning layer: ceil(ratio * tokens), free of binary rounding."""
    return min(tokens, ceil_product(ratio * tokens))


def llm_ratio_for_budget(num_layers: int, layer: int, kept_tokens: int, budget_tokens: float) -> float:
    """The largest ratio at `layer` that keeps the mean over all layers within `budget_tokens` (R*N*T)
    exactly.

    Unlike the equation of `pruning_schedule` it starts from the tokens that really came in, whose number was
    rounded up per unit. Raises ValueError where `layer` layers of all tokens leave less than one token for
    the others.
    """
    _check_layer(layer, num_layers)
    if kept_tokens <= budget_tokens:
        return 1.0
    left = floor_product((budget_tokens * num_layers - kept_tokens * layer) / (num_layers - layer))
    if left < 1:
        raise ValueError(
            f"{kept_tokens} visual tokens in {layer} of {num_layers} layers already spend the budget of "
            f"{budget_tokens:g} per layer; prune at an earlier layer or set max_visual_tokens"
        )
    return left / kept_tokens


def mean_visual_tokens(kept_tokens: int, num_layers: int, layer: int, ratio: float) -> float:
    """Visual tokens per decoder layer, averaged over the layers.

    Raises ValueError for less than one layer. (FlashVID section 3.5.)
    """
    lengths = kv_lengths_by_layer(0, kept_tokens, num_layers, layer, ratio)
    return sum(lengths) / num_layers


def kv_lengths_by_layer(
    text_tokens: int, kept_tokens: int, num_layers: int, layer: int, ratio: float
) -> tuple[int, ...]:
    """Entries in each layer's key-value cache after the prompt; pruning starts at `layer` (0-based).

    Raises ValueError for less than one layer. (FlashVID section 3.5.)
    """
    _check_depth(num_layers)
    before, after = text_tokens + kept_tokens, text_tokens + pruned_tokens(kept_tokens, ratio)
    return tuple(before if index < layer else after for index in range(num_layers))


def inside_schedule(config: FlashVidConfig, num_layers: int) -> PruningSchedule | None:
    """Where the language model prunes, or None where it does not; retention 1 prunes only when told to.

    Raises ValueError where no layer or ratio fits, as `pruning_schedule`. (FlashVID section 3.5.)
    """
    if config.is_bypass and config.llm_retention_ratio is None:
        return None
    schedule = pruning_schedule(
        num_layers, config.expansion, config.pruning_layer, config.llm_retention_ratio
    )
    return None if schedule.ratio >= 1 else schedule


def config_for_baseline(config: FlashVidConfig, num_layers: int, baseline_tokens: int) -> FlashVidConfig:
    """The settings with a ceiling on the tokens entering, so that `baseline_tokens` per layer can be held.

    Without pruning inside the ceiling is the baseline itself. With it more may enter, as many as a tenth of
    them kept from the pruning layer on brings back to the baseline's mean. A bypass stays as it is. Raises
    ValueError for a baseline below 1.
    """
    if baseline_tokens < 1:
        raise ValueError(f"{baseline_tokens=} must be at least 1")
    if config.is_bypass:
        return config
    most = baseline_tokens
    if (schedule := inside_schedule(config, num_layers)) is not None:
        full, rest = schedule.layer, num_layers - schedule.layer
        most = math.floor(baseline_tokens * num_layers / (full + _LEAST_BASELINE_RATIO * rest))
    if config.max_visual_tokens is not None:
        most = min(most, config.max_visual_tokens)
    return replace(config, max_visual_tokens=most)


def schedule_for_baseline(
    schedule: PruningSchedule, num_layers: int, kept_tokens: int, baseline_tokens: int
) -> PruningSchedule:
    """The schedule with its ratio lowered, where need be, until the mean over the layers is the baseline's.

    Raises ValueError as `llm_ratio_for_budget` does.
    """
    ratio = llm_ratio_for_budget(num_layers, schedule.layer, kept_tokens, baseline_tokens)
    return PruningSchedule(schedule.layer, min(ratio, schedule.ratio))
