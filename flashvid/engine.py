"""One video, many prompts: encode, compress and prefill the video once, decode the prompts as a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flashvid.answers import Generation, VideoAnswers, VideoInput, token_limits
from flashvid.budget import PruningSchedule, llm_ratio_for_budget, mean_visual_tokens
from flashvid.compression import CompressedVideo
from flashvid.config import FlashVidConfig
from flashvid.frames import VisionSettings, iterate_patches
from flashvid.models import EncodedVideo, adapter_for, load_model, needs_saliency
from flashvid.positions import Grid, PositionStyle, VisionSpan
from flashvid.prompt import ShortPrompt, pad_prompts, shorten_prompt
from flashvid.pruning import prune_inside
from flashvid.timing import Clock, FirstToken
from flashvid.wrapper import inside_schedule

__all__ = ["Engine", "Generation", "VideoAnswers", "VideoInput"]

_PROMPTS_PER_BATCH = 16
# A budget may push the ratio inside the model down to this before fewer tokens are let in.
_LEAST_INSIDE_RATIO = 0.1


class Engine:
    """Answers prompts about videos with one model; keeps nothing between calls."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: FlashVidConfig,
        *,
        vision: VisionSettings,
        positions: PositionStyle = "trained",
        max_units_per_chunk: int | None = None,
        max_prompts_per_batch: int = _PROMPTS_PER_BATCH,
    ) -> None:
        """``max_units_per_chunk`` bounds the tower's memory, ``max_prompts_per_batch`` the decoder's."""
        if max_prompts_per_batch < 1:
            raise ValueError(f"{max_prompts_per_batch = } must be at least 1")
        self._adapter = adapter_for(model)
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            if getattr(vision, name) != getattr(self._adapter, name):
                raise ValueError(
                    f"vision.{name}={getattr(vision, name)} but the model has "
                    f"{getattr(self._adapter, name)}; use the processor settings of the same checkpoint"
                )
        self._tokenizer = tokenizer
        self._config = config
        self._vision = vision
        self._positions = positions
        self._units_per_chunk = max_units_per_chunk
        self._batch = max_prompts_per_batch
        self._schedule = inside_schedule(config, self._adapter.num_layers)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        config: FlashVidConfig,
        device: str = "cpu",
        dtype: str = "auto",
        revision: str | None = None,
        attn_implementation: str | None = None,
        **settings: Any,
    ) -> Engine:
        """Load a checkpoint from a folder or the hub; ``settings`` are the keywords of ``Engine``."""
        loaded = load_model(
            name_or_path,
            device=device,
            dtype=dtype,
            revision=revision,
            attn_implementation=attn_implementation,
        )
        return cls(loaded.model, loaded.tokenizer, config, vision=loaded.vision, **settings)

    @property
    def vision(self) -> VisionSettings:
        """How the model sees frames; decode to ``vision.frame_size(height, width)`` to resize only once."""
        return self._vision

    @torch.no_grad()
    def answer(
        self,
        video: VideoInput,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | Sequence[int],
        baseline_tokens: int | None = None,
    ) -> VideoAnswers:
        """Greedy answers to every prompt about one video, in their order; deterministic.

        ``max_new_tokens``: one limit for all prompts or one for each.
        ``baseline_tokens``: visual tokens that the language model may see at most, per layer on average with
        pruning inside the model, on entry without. Raises ValueError for no prompts, frames of a wrong shape
        or a budget that cannot be held.
        """
        limits = token_limits(max_new_tokens, len(prompts))
        clock = Clock(self._adapter.device)
        encoded, grid = self._encode(video)
        encode_seconds = clock.lap()
        config = self._config_for(baseline_tokens)
        compressed = encoded.compress(config)
        schedule = self._schedule_for(len(compressed.kept), baseline_tokens)
        compress_seconds = clock.lap()
        shorts = [self._short_prompt(text, grid, video, compressed) for text in prompts]
        rows, prefill_seconds, decode_seconds = self._decode(shorts, compressed, schedule, limits, clock)
        planned = schedule or PruningSchedule(1, 1.0)
        return VideoAnswers(
            generations=tuple(map(self._generation, rows, shorts, limits)),
            visual_tokens_before=encoded.features.shape[0] * encoded.features.shape[1],
            visual_tokens_after=len(compressed.kept),
            visual_tokens_mean=mean_visual_tokens(
                len(compressed.kept), self._adapter.num_layers, planned.layer, planned.ratio
            ),
            encode_seconds=encode_seconds,
            compress_seconds=compress_seconds,
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
            kept=compressed.kept.cpu(),
            grid_thw=grid,
        )

    def _encode(self, video: VideoInput) -> tuple[EncodedVideo, Grid]:
        frames = video.as_tensor()
        if frames.ndim != 4:
            raise ValueError(f"frames of shape {tuple(frames.shape)}; need (T, H, W, 3) uint8")
        grid = self._vision.grid(frames.shape[0], frames.shape[1], frames.shape[2])
        _, rows, columns = grid
        chunks = iterate_patches(
            frames,
            self._vision,
            units_per_chunk=self._units_per_chunk or self._adapter.default_units_per_chunk(rows, columns),
            device=self._adapter.device,
            dtype=self._adapter.dtype,
        )
        needed = needs_saliency(self._config)
        return self._adapter.encode_units(chunks, rows, columns, with_saliency=needed), grid

    def _config_for(self, baseline: int | None) -> FlashVidConfig:
        """The settings with the budget as a ceiling on the tokens that enter the language model."""
        if baseline is None or self._config.is_bypass:
            return self._config
        most = baseline
        if self._schedule is not None:
            layers, before = self._adapter.num_layers, self._schedule.layer
            most = math.floor(baseline * layers / (before + _LEAST_INSIDE_RATIO * (layers - before)))
        if self._config.max_visual_tokens is not None:
            most = min(most, self._config.max_visual_tokens)
        return replace(self._config, max_visual_tokens=most)

    def _schedule_for(self, kept: int, baseline: int | None) -> PruningSchedule | None:
        if self._schedule is None or baseline is None:
            return self._schedule
        layer = self._schedule.layer
        ratio = llm_ratio_for_budget(self._adapter.num_layers, layer, kept, baseline)
        return PruningSchedule(layer, min(ratio, self._schedule.ratio))

    def _short_prompt(
        self, text: str, grid: Grid, video: VideoInput, compressed: CompressedVideo
    ) -> ShortPrompt:
        units, rows, columns = grid
        merge = self._adapter.merge_size
        ids = self._template_ids(text)
        start = ids.index(self._adapter.video_token_id)
        span = VisionSpan(
            "video",
            start,
            (units, rows // merge, columns // merge),
            self._vision.temporal_patch_size * video.second_per_frame,
        )
        full = ids[:start] + [self._adapter.video_token_id] * span.num_tokens + ids[start + 1 :]
        return shorten_prompt(
            torch.tensor(full),
            [span],
            [compressed.kept],
            tokens_per_second=self._adapter.tokens_per_second,
            style=self._positions,
        )

    def _template_ids(self, text: str) -> list[int]:
        """Token ids of the chat with one placeholder for the video, which comes first."""
        message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}
        chat = self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        ids: list[int] = list(self._tokenizer(chat, add_special_tokens=False)["input_ids"])
        found = ids.count(self._adapter.video_token_id)
        if found != 1:
            raise ValueError(
                f"the chat of prompt {text!r} has {found} video placeholders, need exactly 1; "
                "prompts must not hold special tokens, and the chat template must know videos"
            )
        return ids

    def _decode(
        self,
        shorts: list[ShortPrompt],
        compressed: CompressedVideo,
        schedule: PruningSchedule | None,
        limits: list[int],
        clock: Clock,
    ) -> tuple[list[Tensor], float, float]:
        """New tokens of every prompt, the seconds of the prefill and those of the decoding."""
        if schedule is not None and schedule.ratio < 1:
            return self._decode_pruned(shorts, compressed, schedule, limits, clock)
        prefix = _shared_prefix(shorts)
        head = pad_prompts(
            [shorts[0].head(prefix)],
            pad_token_id=self._adapter.pad_token_id,
            device=self._adapter.device,
        )
        cache = self._adapter.prefill(head.input_ids, head.position_ids, videos=[compressed.tokens])
        prefill_seconds = clock.lap()
        rows: list[Tensor] = []
        for start in range(0, len(shorts), self._batch):
            part = shorts[start : start + self._batch]
            fork = self._adapter.fork_cache(cache, len(part))
            most = max(limits[start : start + self._batch])
            rows += self._generate(part, most, prefix=prefix, past_key_values=fork)
        return rows, prefill_seconds, clock.lap()

    def _decode_pruned(
        self,
        shorts: list[ShortPrompt],
        compressed: CompressedVideo,
        schedule: PruningSchedule,
        limits: list[int],
        clock: Clock,
    ) -> tuple[list[Tensor], float, float]:
        """One prompt at a time from the same tokens: what is pruned depends on the prompt's last token."""
        rows: list[Tensor] = []
        prefill_seconds = decode_seconds = 0.0
        for short, limit in zip(shorts, limits, strict=True):
            first = FirstToken(clock)
            with prune_inside(
                self._adapter.decoder_layers,
                short.video,
                layer=schedule.layer,
                ratio=schedule.ratio,
                attention_of=self._adapter.attention_of,
            ):
                rows += self._generate([short], limit, videos=[compressed.tokens], streamer=first)
            prefill_seconds += first.seconds
            decode_seconds += clock.lap()
        return rows, prefill_seconds, decode_seconds

    def _generate(
        self, shorts: Sequence[ShortPrompt], max_new_tokens: int, *, prefix: int = 0, **kwargs: Any
    ) -> list[Tensor]:
        batch = pad_prompts(
            shorts, pad_token_id=self._adapter.pad_token_id, prefix=prefix, device=self._adapter.device
        )
        output = self._adapter.generate(
            batch.input_ids,
            batch.attention_mask,
            batch.position_ids,
            max_new_tokens=max_new_tokens,
            pad_token_id=self._adapter.pad_token_id,
            **_GREEDY,
            **kwargs,
        )
        return list(output[:, batch.input_ids.shape[1] :].cpu())

    def _generation(self, new: Tensor, short: ShortPrompt, limit: int) -> Generation:
        """Cut a row at its end token, or at its limit."""
        tokens: list[int] = new[:limit].tolist()
        ends = [index for index, token in enumerate(tokens) if token in self._adapter.eos_token_ids]
        count = ends[0] + 1 if ends else len(tokens)
        text = self._tokenizer.decode(tokens[:count], skip_special_tokens=True).strip()
        return Generation(text, "stop" if ends else "length", count, len(short))


# Explicit, because checkpoints bring sampling settings that greedy decoding would warn about.
_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
}


def _shared_prefix(shorts: Sequence[ShortPrompt]) -> int:
    """Tokens up to and including the video, which all prompts have in common."""
    return int(shorts[0].video.nonzero()[-1]) + 1
