"""``flashvid(model, ...)``: a video model that compresses what it sees, by composition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flashvid.budget import NO_PRUNING, inside_schedule, mean_visual_tokens
from flashvid.compression import CompressedVideo, check_config
from flashvid.config import FlashVidConfig
from flashvid.generation.arguments import Arguments, check_arguments, check_embedded
from flashvid.generation.reports import GenerationReport, VideoReport
from flashvid.generation.rows import Row, RowReader, VisualInputs
from flashvid.inside import PositionStyle, pad_prompts, prune_inside, restore_prompt
from flashvid.models import adapter_for
from flashvid.settings import FlashVidSettings, with_settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["FlashVidModel", "flashvid"]

# What torch and transformers let one chain: `flashvid(model).eval()` must not hand back the bare model.
_CHAINED = ("to", "cuda", "cpu", "eval", "train", "half", "float", "bfloat16", "requires_grad_")


class FlashVidModel:
    """A wrapped model. ``generate`` compresses; every other attribute is the model's own, read or set.

    Made by :func:`flashvid`, which see. Several may share one model, in several threads at once. Raises
    TypeError for unsupported models, ValueError for settings that do not fit its number of layers.
    """

    def __init__(self, model: Any, config: FlashVidConfig, *, positions: PositionStyle = "trained") -> None:
        if positions not in ("trained", "transformers"):
            raise ValueError(f'{positions=} is unknown; use "trained" or "transformers"')
        self._model = model
        self._adapter = adapter_for(model)
        self._schedule = inside_schedule(config, self._adapter.num_layers)
        self._reader = RowReader(self._adapter, config, positions)
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

    def __setattr__(self, name: str, value: Any) -> None:
        """``wrapped.generation_config = ...`` is the model's too; else it would be set and never be read."""
        if name.startswith("_") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self._model, name, value)

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
        second_per_grid_ts: Tensor | list[float] | float | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        *,
        return_report: bool = False,
        **generate_kwargs: Any,
    ) -> Any:
        """The model's ``generate`` on compressed videos; inputs as the Hugging Face processor returns them.

        ``input_ids`` (B, S) int64 holds one placeholder per uncompressed visual token, ``attention_mask``
        (B, S) int64 is 0 at padding on either side; pixels (patches, C*tp*p*p) float, grids (videos, 3)
        int64. ``mm_token_type_ids`` is derived and, if given, only checked. ``second_per_grid_ts``, seconds
        between two units, one per video, is required. Images stay uncompressed; text-only rows are welcome.

        Returns what ``model.generate`` returns: ``out[:, input_ids.shape[1]:]`` are the new tokens, also of
        beams and of several returned sequences, and with ``return_report`` comes a pair with the
        :class:`GenerationReport`. ``max_length`` and ``min_length``, wherever set, count the caller's prompt;
        streamers, logits processors, stopping criteria and ``prefix_allowed_tokens_fn`` see it whole.
        Processors that ``generate`` makes itself, such as the one of ``no_repeat_ngram_size``, see the
        shortened prompt, padded with one of its own tokens. A processor given beside one of its kind that
        ``generate`` makes adds to it.
        The cache, hidden states and attentions are those of the shortened prompt, and from the
        pruning layer on of its kept tokens, with each row's padding on the left.

        Raises ValueError for inputs that do not belong together, and for what is not supported: static
        caches with pruning inside, prompts in pieces, assisted decoding, guidance. Sections 3.2-3.5.
        """
        arguments = Arguments(generate_kwargs, self._model.generation_config)
        check_arguments(arguments, pruned=self._schedule is not None)
        if not self._adapter.takes_features:
            check_embedded(arguments)
        visual = VisualInputs(
            pixel_values_videos, video_grid_thw, second_per_grid_ts, pixel_values, image_grid_thw
        )
        rows = self._reader.read(input_ids, attention_mask, mm_token_type_ids, visual)
        output = self._run(input_ids, rows, arguments)
        return (output, self._report(rows)) if return_report else output

    @torch.no_grad()
    def encode_video(
        self, pixel_values_videos: Tensor, video_grid_thw: Tensor
    ) -> tuple[CompressedVideo, VideoReport]:
        """Encode and compress one video; sections 3.2-3.4.

        ``pixel_values_videos`` (patches, C*tp*p*p) float, ``video_grid_thw`` (3,) or (1, 3) int64, in
        patches. Raises ValueError where they do not fit each other.
        """
        units, height, width = (int(value) for value in video_grid_thw.flatten().tolist())
        return self._reader.compress(pixel_values_videos, (units, height, width))

    def _run(self, input_ids: Tensor, rows: list[Row], arguments: Arguments) -> Any:
        pad = arguments.value("pad_token_id")
        batch = pad_prompts(
            [row.prompt for row in rows],
            pad_token_id=self._adapter.pad_token_id if pad is None else int(pad),
            device=self._adapter.device,
        )
        kwargs = arguments.fitted(input_ids, batch.input_ids)
        schedule = self._schedule
        inside = nullcontext() if schedule is None else prune_inside(self._adapter, batch, schedule)
        with inside:
            output = self._adapter.generate(
                batch.input_ids,
                batch.attention_mask,
                batch.position_ids,
                videos=[video.tokens for row in rows for video in row.videos],
                images=[image for row in rows for image in row.images],
                **kwargs,
            )
        return restore_prompt(output, input_ids, batch.input_ids.shape[1])

    def _report(self, rows: list[Row]) -> GenerationReport:
        schedule = self._schedule or NO_PRUNING
        entered = [sum(len(video.kept) for video in row.videos) for row in rows]
        layers = self._adapter.num_layers
        means = (mean_visual_tokens(count, layers, schedule.layer, schedule.ratio) for count in entered)
        return GenerationReport(tuple(report for row in rows for report in row.reports), tuple(means))


@with_settings
def flashvid(
    model: Any,
    retention_ratio: float | None = None,
    *,
    config: FlashVidConfig | None = None,
    positions: PositionStyle = "trained",
    **settings: Unpack[FlashVidSettings],
) -> FlashVidModel:
    """Wrap a video model so that ``generate`` keeps about ``retention_ratio`` of its visual tokens.

    ``settings`` are the fields of :class:`FlashVidConfig`, under the reference's names, with its defaults;
    with ``config`` they override its fields. ``positions="transformers"`` reproduces the library's M-RoPE,
    for comparisons. The model is not changed, and a wrapped one is wrapped anew. Raises TypeError for
    unsupported models and unknown settings, ValueError for values out of range. FlashVID, ICLR 2026, arXiv
    2602.08024.
    """
    if isinstance(model, FlashVidModel):
        model = model._model  # wrapped again, with other settings
    if config is not None:
        check_config(config)
    changed: dict[str, Any] = {**settings}
    if retention_ratio is not None:
        changed["retention_ratio"] = retention_ratio
    return FlashVidModel(model, replace(config or FlashVidConfig(), **changed), positions=positions)
