"""What one video costs: tokens, FLOPs, key-value cache and memory, before anything is run."""

from __future__ import annotations

from dataclasses import dataclass

from flashvid.arithmetic import unit_budget
from flashvid.budget.costs import (
    MemoryEstimate,
    compression_bytes,
    decode_flops,
    head_flops,
    prefill_bytes,
    prefill_flops_by_layer,
    saliency_flops,
    vision_chunk_bytes,
    vision_flops,
)
from flashvid.budget.grids import patch_grid
from flashvid.budget.schedule import (
    NO_PRUNING,
    PruningSchedule,
    config_for_baseline,
    inside_schedule,
    kv_lengths_by_layer,
    mean_visual_tokens,
    schedule_for_baseline,
)
from flashvid.budget.shapes import ModelShape
from flashvid.config import FlashVidConfig

__all__ = ["Estimate", "Workload", "estimate", "frames_that_fit"]

_USABLE_SHARE = 0.9  # the rest is the CUDA context's and the allocator's


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is asked of every video.

    height, width: of the frames as the model sees them, in pixels, whole tokens. text_tokens: of a prompt
    without its video. prompts: decoded together about one video; pruning inside the model decodes them one
    by one. new_tokens: most that each answer may have. baseline_tokens: visual tokens per layer that the
    language model is held to. units_per_chunk: as the engine's `max_units_per_chunk`. Raises ValueError for
    numbers below 1.
    """

    height: int
    width: int
    text_tokens: int = 64
    prompts: int = 1
    new_tokens: int = 128
    baseline_tokens: int | None = None
    units_per_chunk: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


@dataclass(frozen=True)
class Estimate:
    """What one video of `num_frames` frames costs; FLOPs as `flashvid.budget.costs` counts them.

    visual_tokens_before: T*N. visual_tokens_after: entering the language model, exact; an upper bound for
    adaptive retention, a lower one for budget="reference". visual_tokens_mean: per layer, on average.
    lengths_by_layer: the prompt's tokens in each layer's cache, kv_bytes_by_layer their bytes.
    vision_flops: the tower with its saliency. language_flops_by_layer: the prefill of one prompt, in one
    piece; head_flops: its last token's scores. decode_flops_per_token: of the first generated token.
    """

    num_frames: int
    visual_tokens_before: int
    visual_tokens_after: int
    visual_tokens_mean: float
    schedule: PruningSchedule | None
    lengths_by_layer: tuple[int, ...]
    kv_bytes_by_layer: tuple[int, ...]
    vision_flops: int
    language_flops_by_layer: tuple[int, ...]
    head_flops: int
    decode_flops_per_token: int
    memory: MemoryEstimate

    @property
    def language_flops(self) -> int:
        """Prefill of one prompt by the language model, its head included."""
        return sum(self.language_flops_by_layer) + self.head_flops


@dataclass(frozen=True)
class _Clip:
    """A video in the model: its grid in patches, N tokens per unit, those kept, the prompt's lengths."""

    units: int
    rows: int
    columns: int
    tokens: int
    kept: int
    schedule: PruningSchedule | None
    lengths: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.units, self.rows, self.columns


def estimate(shape: ModelShape, config: FlashVidConfig, workload: Workload, num_frames: int) -> Estimate:
    """Tokens, FLOPs and bytes of one video, without running anything.

    Held against counted runs of the small model by the tests: tokens and cache bytes are exact, FLOPs within
    2 %, the peaks of encoding and of the prefill within a factor of 1.3 either way; the peak of compress() is
    an upper bound, at most 3 times what is used where many tokens merge. Raises ValueError for sizes that are
    no whole tokens and for settings that no video of this length can hold.
    """
    clip = _clip(shape, config, workload, num_frames)
    used = clip.schedule or NO_PRUNING
    vision = vision_flops(shape.vision, *clip.grid)
    if _reads_saliency(config):
        vision += saliency_flops(shape.vision, *clip.grid)
    return Estimate(
        num_frames=num_frames,
        visual_tokens_before=clip.units * clip.tokens,
        visual_tokens_after=clip.kept,
        visual_tokens_mean=mean_visual_tokens(clip.kept, shape.language.layers, used.layer, used.ratio),
        schedule=clip.schedule,
        lengths_by_layer=clip.lengths,
        kv_bytes_by_layer=tuple(length * shape.kv_bytes_per_token for length in clip.lengths),
        vision_flops=vision,
        language_flops_by_layer=prefill_flops_by_layer(shape.language, clip.lengths, clip.schedule),
        head_flops=head_flops(shape.language),
        decode_flops_per_token=decode_flops(shape.language, clip.lengths),
        memory=_memory(shape, config, workload, clip),
    )


def frames_that_fit(
    memory_bytes: int,
    shape: ModelShape,
    config: FlashVidConfig,
    workload: Workload,
    *,
    usable_share: float = _USABLE_SHARE,
) -> int:
    """The most frames of one video whose estimated peak is within `usable_share` of `memory_bytes`.

    Found by bisection over temporal units. A ceiling on visual tokens also bounds it: every unit keeps one.
    Raises ValueError where not even one unit fits.
    """
    if not 0 < usable_share <= 1:
        raise ValueError(f"{usable_share=} must be in (0, 1]; the CUDA context and fragments need the rest")
    usable, frames_per_unit = int(memory_bytes * usable_share), shape.vision.temporal_patch_size

    def peak(units: int) -> int:
        return estimate(shape, config, workload, units * frames_per_unit).memory.peak

    if peak(1) > usable:
        raise ValueError(
            f"one unit of {workload.height} x {workload.width} pixels needs {peak(1)} bytes, of "
            f"{memory_bytes} are {usable} usable; take a smaller model, smaller frames or more memory"
        )
    most = _most_units(shape, config, workload)
    fits, fails = 1, 2
    while fails <= most and peak(fails) <= usable:
        fits, fails = fails, 2 * fails
    fails = min(fails, most + 1)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if peak(middle) <= usable else (fits, middle)
    return fits * frames_per_unit


def _most_units(shape: ModelShape, config: FlashVidConfig, workload: Workload) -> int:
    """Units that a ceiling on visual tokens allows; without one, more than fit into any memory."""
    if workload.baseline_tokens is not None:
        config = config_for_baseline(config, shape.language.layers, workload.baseline_tokens)
    if config.max_visual_tokens is None:
        return 2**40
    _, rows, columns = _grid(shape, workload, 1)
    least = rows * columns // shape.vision.merge_size**2 if config.is_bypass else 1
    return config.max_visual_tokens // least


def _grid(shape: ModelShape, workload: Workload, num_frames: int) -> tuple[int, int, int]:
    sizes = {
        name: getattr(shape.vision, name) for name in ("patch_size", "merge_size", "temporal_patch_size")
    }
    return patch_grid(num_frames, workload.height, workload.width, **sizes)


def _clip(shape: ModelShape, config: FlashVidConfig, workload: Workload, num_frames: int) -> _Clip:
    units, rows, columns = _grid(shape, workload, num_frames)
    tokens = rows * columns // shape.vision.merge_size**2
    kept, schedule = _kept(shape.language.layers, config, workload.baseline_tokens, units, tokens)
    used = schedule or NO_PRUNING
    lengths = kv_lengths_by_layer(workload.text_tokens, kept, shape.language.layers, used.layer, used.ratio)
    return _Clip(units, rows, columns, tokens, kept, schedule, lengths)


def _kept(
    layers: int, config: FlashVidConfig, baseline: int | None, units: int, tokens: int
) -> tuple[int, PruningSchedule | None]:
    """Visual tokens entering the language model, and where it prunes them."""
    schedule = inside_schedule(config, layers)
    if baseline is not None:
        config = config_for_baseline(config, layers, baseline)
    kept = units * (tokens if config.is_bypass else unit_budget(config, units, tokens).kept)
    if config.max_visual_tokens is not None and kept > config.max_visual_tokens:
        raise ValueError(
            f"retention_ratio=1 keeps all {kept} tokens, more than "
            f"max_visual_tokens={config.max_visual_tokens}; lower the ratio or sample fewer frames"
        )
    if schedule is not None and baseline is not None:
        schedule = schedule_for_baseline(schedule, layers, kept, baseline)
    return kept, None if schedule is None or schedule.ratio >= 1 else schedule


def _reads_saliency(config: FlashVidConfig) -> bool:
    return not config.is_bypass and config.token_selection_method != "div"


def _memory(shape: ModelShape, config: FlashVidConfig, workload: Workload, clip: _Clip) -> MemoryEstimate:
    size, width = shape.bytes_per_value, shape.vision.out
    together = workload.prompts if clip.schedule is None else 1
    return MemoryEstimate(
        weights=shape.weights_bytes,
        features=clip.units * clip.tokens * width * size,
        tokens=0 if config.is_bypass else clip.kept * width * size,
        vision_chunk=vision_chunk_bytes(shape, *clip.grid, workload.units_per_chunk),
        compression=0 if config.is_bypass else compression_bytes(clip.units, clip.tokens, width, size),
        prefill=prefill_bytes(shape.language, clip.lengths[0], size),
        kv_cache=_cache_bytes(shape, clip.lengths, together, workload.new_tokens),
    )


def _cache_bytes(shape: ModelShape, lengths: tuple[int, ...], together: int, new_tokens: int) -> int:
    """The prompt's cache, one copy more for each of several prompts decoded together, and the answers'.

    One layer counts twice: a cache layer grows by making a new tensor.
    """
    copies = together + 1 if together > 1 else 1
    grown = [length + new_tokens for length in lengths]
    held = (copies - together) * sum(lengths) + together * (sum(grown) + max(grown))
    return held * shape.kv_bytes_per_token
