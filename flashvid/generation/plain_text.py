"""Text that stays text: whatever somebody writes, none of its tokens means anything to the chat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["PlainText"]


class PlainText:
    """A tokenizer's control tokens, and the ids of a text without them.

    Control is every token that was added to the vocabulary by name, be it flagged special (``<|im_end|>``) or
    not (``<tool_call>``, ``<think>``), and ``reserved``: chats are built of them. An added token of letters,
    digits and blanks that is not flagged is a word like others, and so is the one for unknown words.
    """

    def __init__(self, tokenizer: Any, reserved: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._control = _control_ids(tokenizer, frozenset(reserved))

    def control_in(self, ids: Sequence[int]) -> list[int]:
        """The control tokens among ``ids``, in their order."""
        return [token for token in ids if token in self._control]

    def read(self, text: str) -> list[int]:
        """Ids of a text in which names of control tokens are those tokens."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(self, text: str) -> list[int]:
        """Ids of a text, none of them control; those of ``read`` where that finds none."""
        ids = self.read(text)
        return self._encode_plainly(text) if self.control_in(ids) else ids

    def filled(self, frame: str, blank: str, text: str) -> list[int]:
        """Ids of ``frame`` with ``text`` for each ``blank``: no control tokens but the frame's own."""
        encoded = self._tokenizer(frame, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = []
        done = 0
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if token in self._control:
                ids += [*self.encode(frame[done:start].replace(blank, text)), token]
                done = end
        return ids + self.encode(frame[done:].replace(blank, text))

    def _encode_plainly(self, text: str) -> list[int]:
        """By the tokenizer's own steps but the first, which looks for added tokens.

        Not by ``split_special_tokens=True``: it still finds those that are not flagged special, and it is a
        state of the tokenizer, which threads share.
        """
        steps = self._tokenizer.backend_tokenizer
        if steps.normalizer is not None:
            text = steps.normalizer.normalize_str(text)
        pieces = [text]
        if steps.pre_tokenizer is not None:
            pieces = [piece for piece, _ in steps.pre_tokenizer.pre_tokenize_str(text)]
        return [token for piece in pieces for token in self._piece(steps.model, piece)]

    def _piece(self, model: Any, piece: str) -> list[int]:
        """A vocabulary of whole words may hold a control token as a word: that is spelled out."""
        ids = [token.id for token in model.tokenize(piece)]
        if not self.control_in(ids):
            return ids
        spelled = [token.id for char in piece for token in model.tokenize(char)]
        return [token for token in spelled if token not in self._control]


def _control_ids(tokenizer: Any, reserved: frozenset[int]) -> frozenset[int]:
    roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, *reserved} - {None}
    added = tokenizer.added_tokens_decoder.items()
    control = {number for number, token in added if token.special or not _is_word(token.content)}
    # A vocabulary of bytes knows every word, whatever token is named for those it does not.
    unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", tokenizer.unk_token)
    return frozenset((control - {tokenizer.convert_tokens_to_ids(unknown)} if unknown else control) | roles)


def _is_word(name: str) -> bool:
    return all(char.isalnum() or char.isspace() for char in name)
