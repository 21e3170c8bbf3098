"""Floating point operations of the vision tower and of the language model, counted as they are executed.

Convention: a multiplication and its addition are two; only products of matrices count (no norms, activations,
softmax or rotations). Attention counts its whole map: the half that a causal mask hides is not subtracted,
as in torch.utils.flop_counter, whose numbers these are.
"""

from __future__ import annotations

from collections.abc import Sequence

from flashvid.schedule import PruningSchedule
from flashvid.shapes import LanguageShape, VisionShape

__all__ = ["decode_flops", "head_flops", "prefill_flops_by_layer", "saliency_flops", "vision_flops"]


def vision_flops(shape: VisionShape, units: int, rows: int, columns: int) -> int:
    """The tower over `units` temporal units of rows x columns patches: embedding, blocks and merger.

    Most blocks attend within windows, which are smaller at the lower and right border; only `full_blocks`
    attend over a whole unit. Never across units, so the count is linear in them.
    """
    patches = rows * columns
    per_patch = 4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate  # qkv, output, gated MLP
    linear = 2 * patches * (shape.patch_values * shape.hidden + shape.depth * per_patch)
    merged = patches // shape.merge_size**2
    wide = shape.hidden * shape.merge_size**2
    merger = 2 * merged * wide * (wide + shape.out)
    full = len(set(shape.full_blocks))
    pairs = full * patches**2 + (shape.depth - full) * _window_pairs(shape, rows, columns)
    return units * (linear + merger + 4 * shape.hidden * pairs)


def _window_pairs(shape: VisionShape, rows: int, columns: int) -> int:
    """Query-key pairs of one unit's attention windows, in patches."""
    sides = (_split(extent // shape.merge_size, shape.window_tokens) for extent in (rows, columns))
    down, across = (sum((side * shape.merge_size) ** 2 for side in each) for each in sides)
    return down * across


def _split(extent: int, window: int) -> list[int]:
    whole, rest = divmod(extent, window)
    return [window] * whole + [rest] * (rest > 0)


def saliency_flops(shape: VisionShape, units: int, rows: int, columns: int) -> int:
    """What reading the last block's attention adds: its q, k, v once more, and q*k over whole units."""
    patches = rows * columns
    return units * 2 * (3 * patches * shape.hidden**2 + shape.hidden * patches**2)


def prefill_flops_by_layer(
    shape: LanguageShape, lengths: Sequence[int], schedule: PruningSchedule | None = None
) -> tuple[int, ...]:
    """A prompt through every decoder layer; `lengths`: tokens it has in each.

    With a schedule the layer before the pruning one also holds the scoring: one query and all keys projected
    once more, and one row of the attention map.
    """
    flops = [2 * n * shape.layer_weights + 4 * shape.query_width * n**2 for n in lengths]
    if schedule is not None:
        seen = lengths[schedule.layer - 1]
        keys = seen * (shape.hidden * shape.kv_width + shape.query_width)
        flops[schedule.layer - 1] += 2 * (shape.hidden * shape.query_width + keys)
    return tuple(flops)


def head_flops(shape: LanguageShape) -> int:
    """Scores over the vocabulary for one token: a prefill makes them for the last token only."""
    return 2 * shape.hidden * shape.vocab


def decode_flops(shape: LanguageShape, cached: Sequence[int]) -> int:
    """One generated token over caches of these lengths by layer, the head included."""
    layers = sum(2 * shape.layer_weights + 4 * shape.query_width * (n + 1) for n in cached)
    return layers + head_flops(shape)
