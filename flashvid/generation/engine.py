"""One video, many prompts: encode, compress and prefill the video once, decode the prompts as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flashvid.budget import (
    NO_PRUNING,
    PruningSchedule,
    config_for_baseline,
    inside_schedule,
    mean_visual_tokens,
    schedule_for_baseline,
)
from flashvid.compression import CompressedVideo, CompressionPlan
from flashvid.config import FlashVidConfig
from flashvid.frames import VisionSettings, iterate_patches
from flashvid.generation.answers import (
    PROMPTS_PER_BATCH,
    Generation,
    VideoAnswers,
    VideoInput,
    check_prompts,
    token_limits,
)
from flashvid.generation.arguments import GREEDY, Arguments, check_embedded
from flashvid.generation.chat import VideoChat
from flashvid.generation.finite import FiniteScores
from flashvid.generation.reports import budget_tokens
from flashvid.generation.timing import Clock, FirstToken
from flashvid.inside import (
    Grid,
    PositionStyle,
    PromptBatch,
    ShortPrompt,
    pad_prompts,
    prune_inside,
    shared_prefix,
)
from flashvid.models import EncodedVideo, adapter_for, load_model, needs_saliency

__all__ = ["Engine", "Generation", "VideoAnswers", "VideoInput"]

_Batch = tuple[list[ShortPrompt], int]  # prompts that are decoded together, and their largest limit


class Engine:
    """Answers prompts about videos with one model; keeps nothing between calls.

    Several engines may share a model, in several threads at once. Raises ValueError for ``vision`` settings
    of another checkpoint and for a batch size below 1, TypeError for unsupported models.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: FlashVidConfig,
        *,
        vision: VisionSettings,
        positions: PositionStyle = "trained",
        max_units_per_chunk: int | None = None,
        max_prompts_per_batch: int = PROMPTS_PER_BATCH,
    ) -> None:
        """``max_units_per_chunk`` bounds the tower's memory, ``max_prompts_per_batch`` the decoder's."""
        self._batch = _checked(max_prompts_per_batch)
        self._adapter = adapter_for(model)
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            if getattr(vision, name) != getattr(self._adapter, name):
                raise ValueError(
                    f"vision.{name}={getattr(vision, name)} but the model has "
                    f"{getattr(self._adapter, name)}; use the processor settings of the same checkpoint"
                )
        if not self._adapter.takes_features:
            check_embedded(Arguments(GREEDY, model.generation_config))
        self._tokenizer = tokenizer
        self._config = config
        self._vision = vision
        self._chat = VideoChat(self._adapter, tokenizer, vision, positions)
        self._units_per_chunk = max_units_per_chunk
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
        """Load a checkpoint from a folder or the hub; ``settings`` are the keywords of ``Engine``.

        ``dtype`` "auto" is the checkpoint's own. Raises as ``load_model`` and ``Engine`` do.
        """
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
        prompts_per_batch: int | None = None,
    ) -> VideoAnswers:
        """Greedy answers to every prompt about one video, in their order; deterministic.

        ``max_new_tokens``: one limit for all prompts or one for each. Of the model's generation config the
        end tokens, penalties and bans hold, not what would sample, search, stop early or prolong; the
        tokenizer's end token ends an answer too.
        ``baseline_tokens``: visual tokens that the language model may see at most, per layer on average with
        pruning inside the model, on entry without. ``prompts_per_batch``: fewer prompts at once than the
        engine's own limit, to need less memory; the answers are the same. Raises ValueError for no prompts,
        frames of a wrong shape, a batch size below 1, a budget that cannot be held, or scores that are no
        numbers. Sections 3.2-3.5.
        """
        check_prompts(prompts)
        limits = token_limits(max_new_tokens, len(prompts))
        size = self._batch if prompts_per_batch is None else min(_checked(prompts_per_batch), self._batch)
        clock = Clock(self._adapter.device)
        config = self._config_for(baseline_tokens)
        self._check_units(video, config, baseline_tokens)
        encoded, grid = self._encode(video)
        encode_seconds = clock.lap()
        compressed = encoded.compress(config)
        schedule = self._schedule_for(len(compressed.kept), baseline_tokens)
        compress_seconds = clock.lap()
        shorts = [self._chat.prompt(text, grid, video.second_per_frame, compressed.kept) for text in prompts]
        batches = _batches(shorts, limits, size)
        rows, prefill_seconds, decode_seconds = self._decode(batches, compressed, schedule, clock)
        planned = schedule or NO_PRUNING
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
            budget_tokens=budget_tokens(config, *encoded.features.shape[:2]),
        )

    @torch.no_grad()
    def plan(self, video: VideoInput, *, baseline_tokens: int | None = None) -> tuple[CompressionPlan, Grid]:
        """What :meth:`answer` keeps of a video's tokens, without answering, and the video's grid in patches.

        Raises as :meth:`answer` does, and ValueError at retention_ratio=1, where there is nothing to plan.
        """
        config = self._config_for(baseline_tokens)
        self._check_units(video, config, baseline_tokens)
        encoded, grid = self._encode(video)
        return encoded.plan(config), grid

    @torch.no_grad()
    def write(self, prompt: str, *, max_new_tokens: int) -> Generation:
        """Greedy answer to a prompt without a video; deterministic.

        Raises TypeError and ValueError for what is no prompt or no limit, ValueError as ``answer`` does.
        """
        check_prompts([prompt])
        (limit,) = token_limits(max_new_tokens, 1)
        short = self._chat.text_prompt(prompt)
        (row,) = self._generate(self._pad([short]), limit)
        return self._generation(row, short, limit)

    def count_tokens(self, text: str) -> int:
        """How many tokens the model reads of a text, without the chat around it."""
        return self._chat.count_tokens(text)

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
        if baseline is None:
            return self._config
        return config_for_baseline(self._config, self._adapter.num_layers, baseline)

    def _check_units(self, video: VideoInput, config: FlashVidConfig, baseline: int | None) -> None:
        """Before the tower runs: every temporal unit keeps a token, so a ceiling bounds the frames."""
        most, per_unit = config.max_visual_tokens, self._vision.temporal_patch_size
        num_frames = len(video.as_tensor())
        units = -(-num_frames // per_unit)
        if most is None or config.is_bypass or units <= most:
            return
        cause = f"max_visual_tokens={most}"
        if baseline is not None and most != self._config.max_visual_tokens:
            cause = f"baseline_tokens={baseline}, which lets {most} visual tokens in,"
        raise ValueError(
            f"{cause} is too few for {num_frames} frames: each of their {units} temporal units keeps at "
            f"least one token; sample at most {most * per_unit} frames or raise it"
        )

    def _schedule_for(self, kept: int, baseline: int | None) -> PruningSchedule | None:
        if self._schedule is None or baseline is None:
            return self._schedule
        return schedule_for_baseline(self._schedule, self._adapter.num_layers, kept, baseline)

    def _decode(
        self,
        batches: list[_Batch],
        compressed: CompressedVideo,
        schedule: PruningSchedule | None,
        clock: Clock,
    ) -> tuple[list[Tensor], float, float]:
        """New tokens of every prompt, the seconds of the prefill and those of the decoding."""
        if schedule is not None and schedule.ratio < 1:
            return self._decode_pruned(batches, compressed, schedule, clock)
        prefix = shared_prefix([short for part, _ in batches for short in part])
        head = self._pad([batches[0][0][0].head(prefix)])
        cache = self._adapter.prefill(head.input_ids, head.position_ids, videos=[compressed.tokens])
        prefill_seconds = clock.lap()
        rows: list[Tensor] = []
        for part, most in batches:
            fork = self._adapter.fork_cache(cache, len(part))
            rows += self._generate(self._pad(part, prefix), most, cache=fork)
        return rows, prefill_seconds, clock.lap()

    def _decode_pruned(
        self,
        batches: list[_Batch],
        compressed: CompressedVideo,
        schedule: PruningSchedule,
        clock: Clock,
    ) -> tuple[list[Tensor], float, float]:
        """Whole prompts in padded batches: what is pruned depends on each prompt's last token."""
        rows: list[Tensor] = []
        prefill_seconds = decode_seconds = 0.0
        for part, most in batches:
            batch = self._pad(part)
            videos = [compressed.tokens] * len(part)
            first = FirstToken(clock)
            with prune_inside(self._adapter, batch, schedule):
                rows += self._generate(batch, most, videos=videos, streamer=first)
            prefill_seconds += first.seconds
            decode_seconds += clock.lap()
        return rows, prefill_seconds, decode_seconds

    def _pad(self, shorts: Sequence[ShortPrompt], prefix: int = 0) -> PromptBatch:
        return pad_prompts(
            shorts, pad_token_id=self._adapter.pad_token_id, prefix=prefix, device=self._adapter.device
        )

    def _generate(self, batch: PromptBatch, max_new_tokens: int, **kwargs: Any) -> list[Tensor]:
        finite = FiniteScores()
        output = self._adapter.generate(
            batch.input_ids,
            batch.attention_mask,
            batch.position_ids,
            max_new_tokens=max_new_tokens,
            pad_token_id=self._adapter.pad_token_id,
            eos_token_id=list(self._chat.end_tokens) or None,
            logits_processor=[finite],
            **GREEDY,
            **kwargs,
        )
        finite.check(self._adapter.dtype)
        return list(output[:, batch.input_ids.shape[1] :].cpu())

    def _generation(self, new: Tensor, short: ShortPrompt, limit: int) -> Generation:
        """Cut a row at its end token, or at its limit."""
        tokens: list[int] = new[:limit].tolist()
        ends = [index for index, token in enumerate(tokens) if token in self._chat.end_tokens]
        count = ends[0] + 1 if ends else len(tokens)
        text = self._tokenizer.decode(tokens[:count], skip_special_tokens=True).strip()
        return Generation(text, "stop" if ends else "length", count, len(short))


def _batches(shorts: list[ShortPrompt], limits: list[int], size: int) -> list[_Batch]:
    starts = range(0, len(shorts), size)
    return [(shorts[start : start + size], max(limits[start : start + size])) for start in starts]


def _checked(max_prompts_per_batch: int) -> int:
    if max_prompts_per_batch < 1:
        raise ValueError(f"{max_prompts_per_batch = } must be at least 1")
    return max_prompts_per_batch
