"""Bugs around the compression: budgets, saliency, positions, pruning inside the language model."""

from __future__ import annotations

from tests.mutations.planted import Planted

__all__ = ["MODEL_SIDE"]

_BUDGET = ("tests/property/test_budget.py",)
_MODEL_SIDE = ("tests/property/test_model_side.py",)

MODEL_SIDE = (
    Planted(
        "budget",
        "products are rounded down",
        "flashvid/arithmetic.py",
        "return math.ceil(value - 1e-9 * max(1.0, abs(value)))",
        "return math.floor(value + 1e-9 * max(1.0, abs(value)))",
        _BUDGET,
    ),
    Planted(
        "budget",
        "binary rounding takes a place more",
        "flashvid/arithmetic.py",
        "return math.ceil(value - 1e-9 * max(1.0, abs(value)))",
        "return math.ceil(value)",
        _BUDGET,
    ),
    Planted(
        "budget",
        "a unit with few roots is left without a place",
        "flashvid/arithmetic.py",
        "if places * roots[t] < total]",
        "if places * roots[t] < 0]",
        _BUDGET,
    ),
    Planted(
        "budget",
        "the smallest remainders are rounded up",
        "flashvid/arithmetic.py",
        "key=lambda t: -(places * roots[t] % total))",
        "key=lambda t: places * roots[t] % total)",
        _BUDGET,
    ),
    Planted(
        "budget",
        "pruning ratio without the expansion below the line",
        "flashvid/budget/schedule.py",
        "/ (expansion * (num_layers - layer))",
        "/ (num_layers - layer)",
        _BUDGET,
    ),
    Planted(
        "saliency",
        "patches stay in window order",
        "flashvid/inside/saliency.py",
        "raster[order.to(pooled.device)] = pooled",
        "raster[:] = pooled",
        _MODEL_SIDE,
    ),
    Planted(
        "saliency",
        "window order is applied the wrong way round",
        "flashvid/inside/saliency.py",
        "raster[order.to(pooled.device)] = pooled",
        "raster = pooled[order.to(pooled.device)]",
        _MODEL_SIDE,
    ),
    Planted(
        "saliency",
        "largest patch instead of their mean",
        "flashvid/inside/saliency.py",
        "received.view(-1, patches_per_token).mean(dim=1)",
        "received.view(-1, patches_per_token).amax(dim=1)",
        _MODEL_SIDE,
    ),
    Planted(
        "saliency",
        "attention given instead of received",
        "flashvid/inside/saliency.py",
        ".softmax(dim=-1).sum(dim=(1, 2))",
        ".softmax(dim=-2).sum(dim=(1, 2))",
        _MODEL_SIDE,
    ),
    Planted(
        "positions",
        "text starts inside the video",
        "flashvid/inside/positions.py",
        'max(span.grid[1:]) if style == "transformers" else int(vision.max()) + 1 - position',
        "max(span.grid[1:])",
        _MODEL_SIDE,
    ),
    Planted(
        "positions",
        "seconds between units are truncated",
        "flashvid/inside/positions.py",
        "seconds = steps * span.second_per_grid * tokens_per_second",
        "seconds = steps * int(span.second_per_grid) * tokens_per_second",
        _MODEL_SIDE,
    ),
    Planted(
        "positions",
        "rows and columns change places",
        "flashvid/inside/positions.py",
        "torch.stack(axes).reshape(3, -1)",
        "torch.stack([axes[0], axes[2], axes[1]]).reshape(3, -1)",
        _MODEL_SIDE,
    ),
    Planted(
        "pruning",
        "the least attended tokens stay",
        "flashvid/inside/pruning.py",
        ".sort(dim=-1, descending=True, stable=True).indices",
        ".sort(dim=-1, descending=False, stable=True).indices",
        _MODEL_SIDE,
    ),
    Planted(
        "pruning",
        "one token too many stays",
        "flashvid/inside/pruning.py",
        "return ~visual | (rank < most)",
        "return ~visual | (rank <= most)",
        _MODEL_SIDE,
    ),
    Planted(
        "pruning",
        "text is dropped with the video",
        "flashvid/inside/pruning.py",
        "return ~visual | (rank < most)",
        "return rank < most",
        _MODEL_SIDE,
    ),
    Planted(
        "pruning",
        "attended text takes the places of visual tokens",
        "flashvid/inside/pruning.py",
        "attention.masked_fill(~visual, -math.inf).sort(",
        "attention.sort(",
        _MODEL_SIDE,
    ),
)
