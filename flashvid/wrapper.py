"""``flashvid(model, ...)``: a video model that compresses what it sees, by composition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flashvid.budget import PruningSchedule, mean_visual_tokens, pruning_schedule
from flashvid.compression import CompressedVideo
from flashvid.config import FlashVidConfig
from flashvid.models import adapter_for, needs_saliency
from flashvid.positions import Grid, PositionStyle, VisionSpan, find_spans
from flashvid.prompt import ShortPrompt, pad_prompts, restore_prompt, shorten_prompt, stack_right, token_types
from flashvid.pruning import prune_inside
from flashvid.reports import GenerationReport, VideoReport

__all__ = ["FlashVidModel", "flashvid", "inside_schedule"]

_OURS = ("inputs", "inputs_embeds", "position_ids", "past_key_values", "mm_encoder_outputs")
# What torch and transformers let one chain: `flashvid(model).eval()` must not hand back the bare model.
_CHAINED = ("to", "cuda", "cpu", "eval", "train", "half", "float", "bfloat16", "requires_grad_")


@dataclass(frozen=True)
class _Row:
    """One prompt of a call with the features that belong to it."""

    prompt: ShortPrompt
    videos: tuple[CompressedVideo, ...]
    images: tuple[Tensor, ...]
    reports: tuple[VideoReport, ...]


def inside_schedule(config: FlashVidConfig, num_layers: int) -> PruningSchedule | None:
    """Where the language model prunes, or None where it does not; retention 1 prunes only when told to."""
    if config.is_bypass and config.llm_retention_ratio is None:
        return None
    schedule = pruning_schedule(
        num_layers, config.expansion, config.pruning_layer, config.llm_retention_ratio
    )
    return None if schedule.ratio >= 1 else schedule


class FlashVidModel:
    """A wrapped model. ``generate`` compresses; every other attribute is the model's own."""

    def __init__(self, model: Any, config: FlashVidConfig, *, positions: PositionStyle = "trained") -> None:
        if positions not in ("trained", "transformers"):
            raise ValueError(f'{positions=} is unknown; use "trained" or "transformers"')
        self._model = model
        self._adapter = adapter_for(model)
        self._schedule = inside_schedule(config, self._adapter.num_layers)
        self._positions = positions
        self._config = config

    @property
    def flashvid_config(self) -> FlashVidConfig:
        """The settings this wrapper was made with."""
        return self._config

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also keeps copy and pickle from recursing before __init__
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        value = getattr(self._model, name)
        return self._chained(value) if name in _CHAINED else value

    def _chained(self, method: Callable[..., Any]) -> Callable[..., FlashVidModel]:
        def call(*args: Any, **kwargs: Any) -> FlashVidModel:
            method(*args, **kwargs)
            return self

        return call

    @torch.no_grad()
    def generate(  # noqa: PLR0917 - the names and the order of transformers
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | list[float] | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        *,
        return_report: bool = False,
        **generate_kwargs: Any,
    ) -> Any:
        """The model's ``generate`` on compressed videos; inputs as the Hugging Face processor returns them.

        ``input_ids`` (B, S) holds one placeholder per uncompressed visual token. ``mm_token_type_ids`` is
        derived from it and, if given, only checked. ``second_per_grid_ts``, seconds between two units, one
        per video, is required. Images stay uncompressed. Returns what ``model.generate`` returns, beginning
        with the caller's prompt, and with ``return_report`` a pair with the :class:`GenerationReport`. With
        pruning inside the model the rows of a batch run one after another. Raises ValueError for bad inputs.
        """
        for name in _OURS:
            if generate_kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} cannot be given: it is made here from input_ids and the pixel values"
                )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self._check_types(input_ids, mm_token_type_ids)
        images = self._images(pixel_values, image_grid_thw)
        videos = self._videos(pixel_values_videos, video_grid_thw, second_per_grid_ts)
        rows = [
            self._row(ids[keep.bool()], images, videos) for ids, keep in zip(input_ids, mask, strict=True)
        ]
        for name, left in (("image", images), ("video", videos)):
            if next(left, None) is not None:
                raise ValueError(
                    f"{name}_grid_thw has more rows than input_ids has {name}s; pass one row per {name}"
                )
        output = self._run(input_ids, rows, _fit_lengths(generate_kwargs, input_ids, rows))
        return (output, self._report(rows)) if return_report else output

    def encode_video(
        self, pixel_values_videos: Tensor, video_grid_thw: Tensor
    ) -> tuple[CompressedVideo, VideoReport]:
        """Encode and compress one video: patches (P, C) and its grid, (3,) or (1, 3), in patches."""
        units, height, width = (int(value) for value in video_grid_thw.flatten().tolist())
        merge = self._adapter.merge_size
        compressed = self._compress(pixel_values_videos, (units, height, width))
        return compressed, VideoReport((units, height // merge, width // merge), compressed.kept)

    def _compress(self, pixels: Tensor, grid: Grid) -> CompressedVideo:
        needed = needs_saliency(self._config)
        return self._adapter.encode_video(pixels, grid, with_saliency=needed).compress(self._config)

    def _check_types(self, input_ids: Tensor, given: Tensor | None) -> None:
        if given is not None and not torch.equal(given.to(input_ids), self._types(input_ids)):
            raise ValueError("mm_token_type_ids disagrees with the placeholders in input_ids; leave it out")

    def _types(self, input_ids: Tensor) -> Tensor:
        return token_types(
            input_ids,
            image_token_id=self._adapter.image_token_id,
            video_token_id=self._adapter.video_token_id,
        )

    def _images(self, pixels: Tensor | None, grids: Tensor | None) -> Iterator[tuple[Grid, Tensor]]:
        if (pixels is None) != (grids is None):
            raise ValueError("pixel_values and image_grid_thw belong together; pass both or neither")
        if pixels is None or grids is None:
            return iter(())
        return iter(list(zip(_grids(grids), self._adapter.encode_images(pixels, grids), strict=True)))

    def _videos(
        self, pixels: Tensor | None, grids: Tensor | None, seconds: Tensor | list[float] | None
    ) -> Iterator[tuple[Grid, float, CompressedVideo]]:
        """Encode and compress one video after another, so that only one has its full features in memory."""
        if (pixels is None) != (grids is None):
            raise ValueError("pixel_values_videos and video_grid_thw belong together; pass both or neither")
        if pixels is None or grids is None:
            return iter(())
        if seconds is None:
            raise ValueError(
                "second_per_grid_ts is missing; pass the seconds between two temporal units of each video "
                "(frames per unit / sampled frames per second), else the model cannot tell when things happen"
            )
        sizes = [units * high * wide for units, high, wide in _grids(grids)]
        if sum(sizes) != len(pixels):
            raise ValueError(
                f"pixel_values_videos has {len(pixels)} patches, video_grid_thw stands for {sum(sizes)}"
            )
        patches = torch.split(pixels, sizes)
        every = [float(value) for value in seconds]
        if len(every) != len(patches):
            raise ValueError(f"{len(every)} second_per_grid_ts for {len(patches)} videos; pass one per video")
        timed = zip(patches, _grids(grids), every, strict=True)
        return ((grid, second, self._compress(part, grid)) for part, grid, second in timed)

    def _row(
        self,
        input_ids: Tensor,
        images: Iterator[tuple[Grid, Tensor]],
        videos: Iterator[tuple[Grid, float, CompressedVideo]],
    ) -> _Row:
        taken_images: list[Tensor] = []
        taken_videos: list[CompressedVideo] = []

        def image_grids() -> Iterator[Grid]:
            for grid, features in images:
                taken_images.append(features)
                yield grid

        def video_grids() -> Iterator[tuple[Grid, float]]:
            for grid, second, compressed in videos:
                taken_videos.append(compressed)
                yield grid, second

        spans = find_spans(
            self._types(input_ids).tolist(), image_grids(), video_grids(), merge_size=self._adapter.merge_size
        )
        prompt = shorten_prompt(
            input_ids,
            spans,
            [video.kept for video in taken_videos],
            tokens_per_second=self._adapter.tokens_per_second,
            style=self._positions,
        )
        return _Row(prompt, tuple(taken_videos), tuple(taken_images), _reports(spans, taken_videos))

    def _run(self, input_ids: Tensor, rows: list[_Row], kwargs: dict[str, Any]) -> Any:
        if self._schedule is None or not any(row.videos for row in rows):
            return self._run_together(input_ids, rows, kwargs)
        if (kind := kwargs.get("cache_implementation")) not in (None, "dynamic"):
            rule = "'dynamic' while tokens are pruned inside the model; or set llm_retention_ratio=1"
            raise ValueError(f"cache_implementation={kind!r} must be {rule}")
        if len(rows) == 1:
            with self._pruned(rows[0].prompt):
                return self._run_together(input_ids, rows, kwargs)
        if kwargs.get("return_dict_in_generate"):
            raise NotImplementedError(
                "return_dict_in_generate needs one prompt per call while tokens are pruned inside the model; "
                "pass the prompts singly or set llm_retention_ratio=1"
            )
        parts = []
        for index, row in enumerate(rows):
            with self._pruned(row.prompt):
                parts.append(self._run_together(input_ids[index : index + 1], [row], kwargs))
        return stack_right(parts, self._adapter.pad_token_id)

    def _pruned(self, prompt: ShortPrompt) -> AbstractContextManager[None]:
        if self._schedule is None or not bool(prompt.video.any()):
            return nullcontext()
        return prune_inside(
            self._adapter.decoder_layers,
            prompt.video,
            layer=self._schedule.layer,
            ratio=self._schedule.ratio,
            attention_of=self._adapter.attention_of,
        )

    def _run_together(self, input_ids: Tensor, rows: list[_Row], kwargs: dict[str, Any]) -> Any:
        batch = pad_prompts(
            [row.prompt for row in rows],
            pad_token_id=self._adapter.pad_token_id,
            device=self._adapter.device,
        )
        output = self._adapter.generate(
            batch.input_ids,
            batch.attention_mask,
            batch.position_ids,
            videos=[video.tokens for row in rows for video in row.videos],
            images=[image for row in rows for image in row.images],
            **kwargs,
        )
        return restore_prompt(output, input_ids, batch.input_ids.shape[1])

    def _report(self, rows: list[_Row]) -> GenerationReport:
        schedule = self._schedule or PruningSchedule(1, 1.0)
        entered = [sum(len(video.kept) for video in row.videos) for row in rows]
        layers = self._adapter.num_layers
        means = (mean_visual_tokens(count, layers, schedule.layer, schedule.ratio) for count in entered)
        return GenerationReport(tuple(report for row in rows for report in row.reports), tuple(means))


def flashvid(
    model: Any,
    retention_ratio: float | None = None,
    *,
    config: FlashVidConfig | None = None,
    positions: PositionStyle = "trained",
    **settings: Any,
) -> FlashVidModel:
    """Wrap a video model so that ``generate`` keeps about ``retention_ratio`` of its visual tokens.

    ``settings`` are the fields of :class:`FlashVidConfig`, under the reference's names; with ``config`` they
    override its fields. ``positions="transformers"`` reproduces the library's M-RoPE, for comparisons. The
    model is not changed, and a wrapped one is wrapped anew. Raises TypeError for unsupported models and
    unknown settings, ValueError for values out of range. FlashVID, ICLR 2026, arXiv 2602.08024.
    """
    if isinstance(model, FlashVidModel):
        model = model._model  # wrapped again, with other settings
    if retention_ratio is not None:
        settings["retention_ratio"] = retention_ratio
    return FlashVidModel(model, replace(config or FlashVidConfig(), **settings), positions=positions)


def _grids(grids: Tensor) -> list[Grid]:
    return [(int(units), int(high), int(wide)) for units, high, wide in grids.tolist()]


def _reports(spans: list[VisionSpan], videos: list[CompressedVideo]) -> tuple[VideoReport, ...]:
    grids = [span.grid for span in spans if span.kind == "video"]
    return tuple(VideoReport(grid, video.kept) for grid, video in zip(grids, videos, strict=True))


def _fit_lengths(kwargs: dict[str, Any], input_ids: Tensor, rows: list[_Row]) -> dict[str, Any]:
    """``max_length`` and ``min_length`` count the caller's prompt, the model sees a shorter one."""
    shorter = input_ids.shape[1] - max(len(row.prompt) for row in rows)
    fitted = {name: kwargs[name] - shorter for name in ("max_length", "min_length") if kwargs.get(name)}
    return {**kwargs, **fitted}
