"""From a question about a video to the shortened prompt the language model gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashvid.frames import VisionSettings
from flashvid.inside import Grid, PositionStyle, ShortPrompt, VisionSpan, shorten_prompt
from flashvid.models import Qwen25VLAdapter

__all__ = ["VideoChat"]


class VideoChat:
    """A tokenizer's chat with one video, which comes first, and one question; no system prompt of ours."""

    def __init__(
        self, adapter: Qwen25VLAdapter, tokenizer: Any, vision: VisionSettings, positions: PositionStyle
    ) -> None:
        self._adapter = adapter
        self._tokenizer = tokenizer
        self._vision = vision
        self._positions = positions

    def prompt(self, text: str, grid: Grid, second_per_frame: float, kept: Tensor) -> ShortPrompt:
        """The prompt with the placeholders of the kept tokens only.

        ``grid`` (units, rows, columns) in patches, ``kept`` (K,) int64 as in ``CompressedVideo``. Raises
        ValueError where text and template do not give exactly one placeholder, of the video.
        """
        units, rows, columns = grid
        merge = self._adapter.merge_size
        ids = self._template_ids(text)
        start = ids.index(self._adapter.video_token_id)
        span = VisionSpan(
            "video",
            start,
            (units, rows // merge, columns // merge),
            self._vision.temporal_patch_size * second_per_frame,
        )
        full = ids[:start] + [self._adapter.video_token_id] * span.num_tokens + ids[start + 1 :]
        return shorten_prompt(
            torch.tensor(full),
            [span],
            [kept],
            tokens_per_second=self._adapter.tokens_per_second,
            style=self._positions,
        )

    def text_prompt(self, text: str) -> ShortPrompt:
        """The prompt of a chat without a video. Raises ValueError for a text that holds placeholders."""
        return shorten_prompt(
            torch.tensor(self._template_ids(text, num_videos=0)),
            [],
            [],
            tokens_per_second=self._adapter.tokens_per_second,
            style=self._positions,
        )

    def count_tokens(self, text: str) -> int:
        """How many tokens a text is, without the chat around it."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _template_ids(self, text: str, num_videos: int = 1) -> list[int]:
        """Token ids of the chat with one placeholder for each video."""
        if not self._tokenizer.chat_template:
            raise ValueError(
                "the checkpoint has no chat template: there is none in chat_template.jinja, "
                "tokenizer_config.json, chat_template.json or processor_config.json; take the one of the "
                "model that it was made from"
            )
        content = [*[{"type": "video"}] * num_videos, {"type": "text", "text": text}]
        message = {"role": "user", "content": content}
        chat = self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        ids: list[int] = list(self._tokenizer(chat, add_special_tokens=False)["input_ids"])
        found, images = ids.count(self._adapter.video_token_id), ids.count(self._adapter.image_token_id)
        if found != num_videos or images:
            raise ValueError(
                f"the chat of prompt {text!r} has {found} video placeholders and {images} of images, need "
                f"exactly {num_videos} and 0; prompts must not hold special tokens, and the chat template "
                "must know videos"
            )
        return ids
