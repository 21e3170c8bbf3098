"""Prompts whose video placeholders have been shortened to the tokens that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashvid.inside.positions import PositionStyle, VisionSpan, mrope_positions

__all__ = [
    "PromptBatch",
    "ShortPrompt",
    "pad_prompts",
    "restore_prompt",
    "shared_prefix",
    "shorten_prompt",
    "token_types",
]


@dataclass(frozen=True)
class ShortPrompt:
    """One prompt as the language model gets it, without padding; all on the CPU.

    input_ids (S,) int64; positions (3, S) int64, each kept token's own from the full prompt;
    video (S,) bool, True at video tokens. filler: a text token of its own to pad it with; None: it has none.
    """

    input_ids: Tensor
    positions: Tensor
    video: Tensor
    filler: int | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def head(self, length: int) -> ShortPrompt:
        """The first ``length`` tokens."""
        return ShortPrompt(
            self.input_ids[:length], self.positions[:, :length], self.video[:length], self.filler
        )


@dataclass(frozen=True)
class PromptBatch:
    """Padded prompts: input_ids, attention_mask (B, S) int64; position_ids (4, B, S) int64.

    The first of the four is the text row. video: (B, S) bool, True at video tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    video: Tensor


def token_types(input_ids: Tensor, *, image_token_id: int, video_token_id: int) -> Tensor:
    """0 for text, 1 for image, 2 for video placeholders: (B, S) or (S,) int64, as ``input_ids``."""
    return (input_ids == image_token_id).long() + 2 * (input_ids == video_token_id).long()


def shorten_prompt(
    input_ids: Tensor,
    spans: Sequence[VisionSpan],
    kept: Sequence[Tensor],
    *,
    tokens_per_second: float,
    style: PositionStyle,
) -> ShortPrompt:
    """Keep the placeholders listed in ``kept`` (one (K,) int64 per video, in order) and all other tokens.

    ``input_ids`` (S,) is the full prompt. Positions are those of the full prompt, so time and place of a kept
    token and of the text behind it do not move.
    """
    input_ids = input_ids.cpu()
    positions = mrope_positions(len(input_ids), spans, tokens_per_second=tokens_per_second, style=style)
    stays = torch.ones(len(input_ids), dtype=torch.bool)
    video = torch.zeros_like(stays)
    text = torch.ones_like(stays)
    for span in spans:
        text[span.start : span.stop] = False
    videos = (span for span in spans if span.kind == "video")
    for span, indices in zip(videos, kept, strict=True):
        stays[span.start : span.stop] = False
        stays[span.start + indices.cpu()] = True
        video[span.start : span.stop] = True
    own = input_ids[text]
    filler = int(own[0]) if len(own) else None
    return ShortPrompt(input_ids[stays], positions[:, stays], video[stays], filler)


def pad_prompts(
    prompts: Sequence[ShortPrompt], *, pad_token_id: int, prefix: int = 0, device: torch.device | None = None
) -> PromptBatch:
    """Bring prompts to one length with padding after their first ``prefix`` tokens (0: on the left).

    A shared prefix that is already in the cache has to stay in front, so the padding goes behind it. A prompt
    is padded with its filler, or ``pad_token_id`` where it has none: a penalty on the tokens that it holds
    then is what it is without padding.
    """
    size = max(len(prompt) for prompt in prompts)
    shape = (len(prompts), size)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    positions = torch.zeros((4, *shape), dtype=torch.int64)
    video = torch.zeros(shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        behind = size - (len(prompt) - prefix)
        if prompt.filler is not None:
            input_ids[row] = prompt.filler
        for target, source in (
            (slice(0, prefix), slice(0, prefix)),
            (slice(behind, None), slice(prefix, None)),
        ):
            input_ids[row, target] = prompt.input_ids[source]
            mask[row, target] = 1
            # The text row counts on without a gap: the library would take a gap for a packed sequence.
            positions[0, row, target] = torch.arange(len(prompt))[source]
            positions[1:, row, target] = prompt.positions[:, source]
            video[row, target] = prompt.video[source]
    return PromptBatch(input_ids.to(device), mask.to(device), positions.to(device), video.to(device))


def restore_prompt(output: Any, input_ids: Tensor, short: int) -> Any:
    """Put the caller's prompt back before the new tokens, so that ``out[:, input_ids.shape[1]:]`` holds.

    ``output``: ids (rows, short + new) int64, or a mapping with such "sequences"; ``input_ids`` (B, S) int64,
    where each prompt has rows / B rows, one after another; ``short``: length of the prompts in ``output``.
    """
    if isinstance(output, Tensor):
        prompt = input_ids.repeat_interleave(output.shape[0] // input_ids.shape[0], dim=0)
        return torch.cat((prompt.to(output.device), output[:, short:]), dim=1)
    output["sequences"] = restore_prompt(output["sequences"], input_ids, short)
    return output


def shared_prefix(shorts: Sequence[ShortPrompt]) -> int:
    """Length of the prompts' common beginning: up to and including the video, which must be there.

    Raises ValueError where they have not, because a chat template puts a part of the question first.
    """
    prefix = int(shorts[0].video.nonzero()[-1]) + 1
    if any(not torch.equal(short.input_ids[:prefix], shorts[0].input_ids[:prefix]) for short in shorts):
        raise ValueError(
            "the prompts differ before the video; use a chat template that keeps the order of the content, "
            "where the video comes first, or ask one prompt at a time"
        )
    return prefix
