"""From a question about a video to the shortened prompt the language model gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashvid.frames import VisionSettings
from flashvid.generation.plain_text import PlainText
from flashvid.inside import Grid, PositionStyle, ShortPrompt, VisionSpan, shorten_prompt
from flashvid.models import Qwen25VLAdapter

__all__ = ["VideoChat"]

_STAND_IN = "text-of-the-prompt"  # no template changes it, or has it


class VideoChat:
    """A tokenizer's chat with one video, which comes first, and one question; no system prompt of ours.

    Texts are data: a name of a control token in one, such as ``<|im_end|>``, is read as its letters.
    ``end_tokens``: what ends an answer, to the generation config or to the tokenizer.
    """

    def __init__(
        self, adapter: Qwen25VLAdapter, tokenizer: Any, vision: VisionSettings, positions: PositionStyle
    ) -> None:
        self._adapter = adapter
        self._tokenizer = tokenizer
        self.end_tokens = _end_tokens(adapter, tokenizer)
        reserved = (adapter.video_token_id, adapter.image_token_id, *self.end_tokens)
        self._text = PlainText(tokenizer, reserved)
        self._vision = vision
        self._positions = positions

    def prompt(self, text: str, grid: Grid, second_per_frame: float, kept: Tensor) -> ShortPrompt:
        """The prompt with the placeholders of the kept tokens only.

        ``grid`` (units, rows, columns) in patches, ``kept`` (K,) int64 as in ``CompressedVideo``. Raises
        ValueError where the template does not give exactly one placeholder, of the video.
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
        """The prompt of a chat without a video. Raises ValueError for a template that puts one in."""
        return shorten_prompt(
            torch.tensor(self._template_ids(text, num_videos=0)),
            [],
            [],
            tokens_per_second=self._adapter.tokens_per_second,
            style=self._positions,
        )

    def count_tokens(self, text: str) -> int:
        """How many tokens a text is, without the chat around it."""
        return len(self._text.encode(text))

    def _template_ids(self, text: str, num_videos: int = 1) -> list[int]:
        """Token ids of the chat with one placeholder for each video; the text adds no control token.

        Those of the whole chat, as the template writes it, unless the text holds names of control tokens.
        """
        empty, chat = self._render(_STAND_IN, num_videos), self._render(text, num_videos)
        wanted = self._text.control_in(self._text.read(empty))
        self._check_placeholders(wanted, num_videos)
        self._check_prompt(empty)
        ids = self._text.read(chat)
        return ids if self._text.control_in(ids) == wanted else self._joined(empty, chat)

    def _render(self, text: str, num_videos: int) -> str:
        if not self._tokenizer.chat_template:
            raise ValueError(
                "the checkpoint has no chat template: there is none in chat_template.jinja, "
                "tokenizer_config.json, chat_template.json or processor_config.json; take the one of the "
                "model that it was made from"
            )
        content = [*[{"type": "video"}] * num_videos, {"type": "text", "text": text}]
        message = {"role": "user", "content": content}
        return str(self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))

    def _check_placeholders(self, control: list[int], num_videos: int) -> None:
        found, images = (
            control.count(token) for token in (self._adapter.video_token_id, self._adapter.image_token_id)
        )
        if found != num_videos or images:
            raise ValueError(
                f"the chat template puts {found} video placeholders and {images} of images around a prompt, "
                f"need exactly {num_videos} and 0; it must know videos: use the template of the checkpoint"
            )

    def _check_prompt(self, empty: str) -> None:
        if _STAND_IN not in empty.lower():
            raise ValueError(
                "the chat template leaves the prompt out, so that every question would have the same answer; "
                "use the template of the checkpoint"
            )
        if (ids := self._text.read(empty.rstrip())) and ids[-1] in self.end_tokens:
            raise ValueError(
                "the chat template ends with the end of a turn and begins no answer: it has no generation "
                "prompt, such as <|im_start|>assistant; use the template of the checkpoint"
            )

    def _joined(self, empty: str, chat: str) -> list[int]:
        """The template's control tokens, and between two of them all that has the text in it, as text."""
        first, *others = pieces = empty.split(_STAND_IN)
        width = (len(chat) - sum(map(len, pieces))) // max(1, len(others))  # of the text, maybe trimmed
        text = chat[len(first) : len(first) + max(0, width)]
        if not others or text.join(pieces) != chat:
            raise ValueError(
                "the chat template does not keep a prompt that holds names of control tokens in one piece; "
                "use the template of the checkpoint, or leave those names out"
            )
        return self._text.filled(empty, _STAND_IN, text)


def _end_tokens(adapter: Qwen25VLAdapter, tokenizer: Any) -> tuple[int, ...]:
    """A generation config may lack the token that ends a turn: then answers would run on into others."""
    found = (*adapter.eos_token_ids, tokenizer.eos_token_id)
    return tuple(dict.fromkeys(int(token) for token in found if token is not None))
