"""Arithmetic of frames, visual tokens and language model layers. Plain numbers, no tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flashvid.config import FlashVidConfig

__all__ = [
    "PruningSchedule",
    "UnitBudget",
    "frames_for_budget",
    "kv_lengths_by_layer",
    "llm_ratio_for_budget",
    "mean_visual_tokens",
    "pruned_tokens",
    "pruning_schedule",
    "share_places",
    "unit_budget",
    "visual_tokens",
]

_LAYER_SHARE = 0.7  # the paper prunes at 20 of 28 layers
_LEAST_DERIVED_RATIO = 0.1  # a derived layer never leaves less; below it the last layers hardly see the video


def _ceil(value: float) -> int:
    """Rounds up, but takes a product that misses a whole number by binary rounding alone for that number."""
    return math.ceil(value - 1e-9 * max(1.0, abs(value)))


def _floor(value: float) -> int:
    return math.floor(value + 1e-9 * max(1.0, abs(value)))


@dataclass(frozen=True)
class UnitBudget:
    """Places of one temporal unit: `kept` in all, `selected` of them for ADTS, the rest for merged tokens."""

    kept: int
    selected: int

    @property
    def merged(self) -> int:
        return self.kept - self.selected


def unit_budget(config: FlashVidConfig, num_units: int, num_tokens: int) -> UnitBudget:
    """b = ceil(N*R*x) places per unit, ceil(alpha*b) of them for selected tokens; 1 <= b <= N.

    With `budget="exact"` products that miss a whole number by rounding alone count as that number, and
    `max_visual_tokens` lowers b to max_visual_tokens // T; with "reference" the products are rounded up as
    they come. Raises ValueError where the ceiling is below one token per unit.
    """
    ceil = _ceil if config.budget == "exact" else math.ceil
    kept = min(num_tokens, max(1, ceil(num_tokens * config.retention_ratio * config.expansion)))
    if config.max_visual_tokens is not None:
        if num_units > config.max_visual_tokens:
            raise ValueError(
                f"max_visual_tokens={config.max_visual_tokens} must be at least the number of temporal "
                f"units, {num_units}: every unit keeps one token; sample fewer frames or raise it"
            )
        kept = min(kept, config.max_visual_tokens // num_units)
    return UnitBudget(kept, min(kept, ceil(config.alpha * kept)))


def share_places(roots: Sequence[int], places: int) -> list[int]:
    """Spreads places over units in proportion to their roots by largest remainder; exact integers.

    Every unit with roots gets at least one place and none gets more than its roots, so the sum is
    min(places, sum(roots)). Equal remainders go to the earliest unit. Raises ValueError where there are fewer
    places than units with roots.
    """
    if sum(roots) <= places:
        return list(roots)
    if places < sum(n > 0 for n in roots):
        raise ValueError(f"{places=} must be at least the number of units with roots in {list(roots)}")
    shares = [0] * len(roots)
    waiting = [t for t, n in enumerate(roots) if n > 0]
    # units whose proportional share is below one place take one; the others share the rest
    while small := [t for t in waiting if places * roots[t] < sum(roots[u] for u in waiting)]:
        for t in small:
            shares[t] = 1
        places -= len(small)
        waiting = [t for t in waiting if shares[t] == 0]
    total = sum(roots[t] for t in waiting)
    for t in waiting:
        shares[t] = places * roots[t] // total
    by_remainder = sorted(waiting, key=lambda t: -(places * roots[t] % total))
    for t in by_remainder[: places - sum(shares[t] for t in waiting)]:
        shares[t] += 1
    return shares


@dataclass(frozen=True)
class PruningSchedule:
    """From decoder layer `layer` (0-based) on, `ratio` of the visual tokens is kept; 1 prunes nothing."""

    layer: int
    ratio: float


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
    return min(tokens, _ceil(ratio * tokens))


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
    left = _floor((budget_tokens * num_layers - kept_tokens * layer) / (num_layers - layer))
    if left < 1:
        raise ValueError(
            f"{kept_tokens} visual tokens in {layer} of {num_layers} layers already spend the budget of "
            f"{budget_tokens:g} per layer; prune at an earlier layer or set max_visual_tokens"
        )
    return left / kept_tokens


def mean_visual_tokens(kept_tokens: int, num_layers: int, layer: int, ratio: float) -> float:
    """Visual tokens per decoder layer, averaged over the layers."""
    lengths = kv_lengths_by_layer(0, kept_tokens, num_layers, layer, ratio)
    return sum(lengths) / num_layers


def kv_lengths_by_layer(
    text_tokens: int, kept_tokens: int, num_layers: int, layer: int, ratio: float
) -> tuple[int, ...]:
    """Entries in each layer's key-value cache after the prompt; pruning starts at `layer` (0-based)."""
    _check_depth(num_layers)
    before, after = text_tokens + kept_tokens, text_tokens + pruned_tokens(kept_tokens, ratio)
    return tuple(before if index < layer else after for index in range(num_layers))


def frames_for_budget(baseline_frames: int, retention_ratio: float) -> int:
    """Frames that cost the language model what `baseline_frames` cost uncompressed: 16 at 0.1 -> 160."""
    if baseline_frames < 1:
        raise ValueError(f"{baseline_frames=} must be at least 1")
    if not 0 < retention_ratio <= 1:
        raise ValueError(f"{retention_ratio=} must be in (0, 1]; 0.1 allows ten times the frames")
    return _floor(baseline_frames / retention_ratio)


def visual_tokens(
    num_frames: int,
    height: int,
    width: int,
    *,
    patch_size: int = 14,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
) -> int:
    """T*N, the visual tokens of a clip before compression; height and width in pixels, defaults of
    Qwen2.5-VL.

    The last unit is filled up where the frames do not divide. Raises ValueError for sizes that are no whole
    tokens.
    """
    token_pixels = patch_size * merge_size
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % token_pixels:
            raise ValueError(
                f"{name}={value} must be a multiple of {token_pixels} pixels; resize the frames first"
            )
    if num_frames < 1:
        raise ValueError(f"{num_frames=} must be at least 1")
    num_units = -(-num_frames // temporal_patch_size)
    return num_units * (height // token_pixels) * (width // token_pixels)
