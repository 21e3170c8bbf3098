"""What one video costs: floating point operations as they are executed, and bytes of device memory.

Convention: a multiplication and its addition are two operations; only products of matrices count (no norms,
activations, softmax or rotations). Attention counts its whole map: the half that a causal mask hides is not
subtracted, as in torch.utils.flop_counter, whose numbers these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashvid.arithmetic import MAP_BYTES, PATCHES_PER_CHUNK, RESIZE_BYTES, SALIENCY_WEIGHTS, WIDENED_PIECES
from flashvid.budget.schedule import PruningSchedule
from flashvid.budget.shapes import LanguageShape, ModelShape, VisionShape

__all__ = [
    "MemoryEstimate",
    "compression_bytes",
    "decode_flops",
    "head_flops",
    "prefill_bytes",
    "prefill_flops_by_layer",
    "saliency_flops",
    "vision_chunk_bytes",
    "vision_flops",
]

_BYTES_PER_TOKEN = 64  # links, roots, ranks and weights of one token


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


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what holds them. `peak` is the weights and the largest of the stages.

    weights: all parameters. features: the video's uncompressed tokens, which live until the answers are
    there. tokens: those kept. vision_chunk: patches and activations of the units that go through the tower
    together. compression: similarity maps and working copies, an upper bound. prefill: the language model's
    activations. kv_cache: the prompt's keys and values, and those of the prompts that are decoded together.

    Left out: the CUDA context, the allocator's unused remainders, and the attention map that
    attn_implementation="eager" holds.
    """

    weights: int
    features: int
    tokens: int
    vision_chunk: int
    compression: int
    prefill: int
    kv_cache: int

    @property
    def by_stage(self) -> dict[str, int]:
        """Bytes beside the weights while the stage runs."""
        return {
            # at the end the chunks' features are put together, while the chunks are still there
            "encode": self.features + max(self.vision_chunk, self.features),
            "compress": self.features + self.tokens + self.compression,
            "language": self.features + self.tokens + self.kv_cache + self.prefill,
        }

    @property
    def peak(self) -> int:
        """Bytes of the weights and of the stage that needs most beside them."""
        return self.weights + max(self.by_stage.values())


def vision_chunk_bytes(
    shape: ModelShape, units: int, rows: int, columns: int, units_per_chunk: int | None = None
) -> int:
    """Most that one chunk of units holds at once, while its patches are made or while it is in the tower.

    units, rows, columns: of the whole video, in patches; its frames come at model resolution. Patches are
    made while those of the chunk before are still there.
    """
    at_once = min(units, units_per_chunk or max(1, PATCHES_PER_CHUNK // (rows * columns)))
    patches, size = at_once * rows * columns, shape.bytes_per_value
    pixels = patches * shape.vision.patch_values
    working = min(RESIZE_BYTES, 4 * pixels)  # float32
    making = max(3 * size * pixels, 2 * working + size * (pixels - working // 4))
    before = 0 if at_once == units else size * (pixels + patches * shape.vision.hidden)
    tower = size * pixels + _tower_bytes(shape, at_once, rows * columns)
    return pixels + max(making + before, tower)  # uint8 frames beside either


def _tower_bytes(shape: ModelShape, units: int, patches: int) -> int:
    """Activations of the tower's widest place, for units of so many patches.

    That is one block's rotation of queries and keys, which is done in float32, or its output projection, or
    its MLP, or the last block's attention maps while saliency is read.
    """
    vision, size = shape.vision, shape.bytes_per_value
    copies = 0 if size == 4 else 8  # float32 queries and keys beside those of the model's dtype
    rotation = vision.hidden * (5 * size + copies + 16)
    projection = vision.hidden * 10 * size
    mlp = (2 * vision.hidden + 3 * vision.intermediate) * size
    angles = 2 * 4 * vision.head_dim
    maps = 2 * min(4 * SALIENCY_WEIGHTS, units * 4 * vision.heads * patches**2)
    saliency = units * patches * vision.hidden * 7 * size + maps
    return max(units * patches * (angles + max(rotation, projection, mlp)), saliency)


def compression_bytes(units: int, tokens: int, width: int, bytes_per_value: int) -> int:
    """Most that compress() on (units, tokens, width) holds beside its input and result; an upper bound.

    Products of all tokens with those of their own and the neighbouring unit, if they fit within the limit;
    the clustering's maps and the values of merged trees, in chunks of units within the same limit; pieces of
    the features that are widened to float32; a few numbers for every token. How much of it is used depends
    on how many trees merge.
    """
    maps = 8 * units * tokens**2
    held = maps if maps <= MAP_BYTES else 0
    one = 4 * tokens * max(6 * tokens, 2 * width) + (0 if held else 4 * tokens * width)
    working = max(one, min(MAP_BYTES, units * one))
    floats = 4 * units * tokens * width
    widened = 0 if bytes_per_value == 4 else min(floats, 4 * tokens * width * (units // WIDENED_PIECES + 3))
    return held + working + widened + _BYTES_PER_TOKEN * units * tokens


def prefill_bytes(shape: LanguageShape, tokens: int, bytes_per_value: int) -> int:
    """Activations of a prompt of so many tokens: one layer's, at its widest place, and the embeddings.

    The widest place of the released models is the MLP. No map of the attention is held.
    """
    attention = 6 * shape.query_width + 2 * shape.kv_width
    widest = 3 * shape.hidden + max(shape.hidden + 3 * shape.intermediate, attention)
    return tokens * widest * bytes_per_value + 4 * shape.vocab
