"""Training sequences: one video, many questions, packed so that every question sees only the video.

A sequence is the chat prefix, the kept visual tokens, and one branch per question. Each branch starts at the
position that follows the video, exactly where it stands when it is asked alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo.language import question_pool
from demo.tiny import MAX_SECOND
from demo.tower import CELLS
from demo.views import View

__all__ = ["Batch", "Packer"]

_TOKENS_PER_SECOND = 2
_LENGTH_STEP = 32
_CHANCES = {
    "caption": 1.0,
    "what": 0.5,
    "count": 0.3,
    "when any": 0.5,
    "when": 0.9,
    "yes": 0.15,
    "no": 0.3,
    "motion": 0.5,
    "shape": 0.5,
    "colour": 0.5,
}


@dataclass
class Batch:
    """Padded sequences: ids (B, S), visual (B, S) bool, tokens (sum K, D), positions (3, B, S),
    mask (B, 1, S, S) bool, targets (B, S) next token or -100, seconds (B, S) time of visual tokens or -100,
    kinds (B, S) kind of question, branches (B, S) its number, 0 = shared, -1 = padding.
    """

    ids: Tensor
    visual: Tensor
    tokens: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    seconds: Tensor
    kinds: Tensor
    branches: Tensor


class Packer:
    """Turns views into batches; holds the tokenizer and the fixed parts of the chat template."""

    kinds = tuple(_CHANCES)

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        content = [{"type": "video"}, {"type": "text", "text": "?"}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = self._ids(str(text))
        self.video_id = int(tokenizer.convert_tokens_to_ids("<|video_pad|>"))
        self.end_id = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        video, question = ids.index(self.video_id), ids.index(self._ids("?")[0])
        self.prefix, self.after_video, self.tail = ids[:video], ids[video + 1 : question], ids[question + 1 :]
        self.numbers = self._ids(" ".join(str(number) for number in range(MAX_SECOND + 1)))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def questions(self, view: View, rng: np.random.Generator, most: int) -> list[tuple[int, str, str]]:
        """(kind, question, answer) drawn for a view; the caption always."""
        asked = []
        pool = question_pool(view.facts, rng)
        for kind, name in enumerate(self.kinds):
            pairs = pool[name]
            repeats = 2 if name in ("when", "motion", "shape", "colour") else 1
            for _ in range(repeats):
                if pairs and rng.random() < _CHANCES[name]:
                    asked.append((kind, *pairs[int(rng.integers(len(pairs)))]))
        asked = list(dict.fromkeys(asked))
        first, rest = asked[:1], asked[1:]
        order = rng.permutation(len(rest))[: most - 1]
        return first + [rest[int(index)] for index in order]

    def batch(self, views: Sequence[View], rng: np.random.Generator, most_questions: int = 8) -> Batch:
        """Pack views with random questions."""
        rows = [self._row(view, self.questions(view, rng, most_questions)) for view in views]
        # few different lengths, so that freed memory fits the next batch
        length = -(-max(row.shape[1] for row in rows) // _LENGTH_STEP) * _LENGTH_STEP
        table = torch.zeros(8, len(rows), length, dtype=torch.long)
        table[1], table[2], table[3] = -1, -100, -100
        for index, row in enumerate(rows):
            table[:, index, : row.shape[1]] = row
        ids, branch, targets, seconds, kinds = table[0], table[1], table[2], table[3], table[4]
        mask = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
        mask = mask & torch.ones(length, length, dtype=torch.bool).tril() & (branch >= 0)[:, None, :]
        mask = mask | torch.eye(length, dtype=torch.bool)
        tokens = torch.cat([view.tokens for view in views])
        visual = ids == self.video_id
        return Batch(ids, visual, tokens, table[5:8], mask[:, None], targets, seconds, kinds, branch)

    def _row(self, view: View, questions: Sequence[tuple[int, str, str]]) -> Tensor:
        """(8, S): ids, branch, target, second, kind, and the three position axes of one sequence."""
        start = len(self.prefix)
        text = torch.arange(start)
        head = _columns(torch.tensor(self.prefix), 0, positions=text.expand(3, -1))
        time = (view.units * view.seconds_per_unit * _TOKENS_PER_SECOND).floor().long()
        place = torch.stack([time, view.cells // CELLS, view.cells % CELLS]) + start
        video = _columns(torch.full((len(time),), self.video_id), 0, positions=place)
        video[3] = time // _TOKENS_PER_SECOND
        every = torch.arange(view.num_units) * view.seconds_per_unit * _TOKENS_PER_SECOND  # float32, as above
        last = int(every[-1])
        following = start + max(last, CELLS - 1) + 1
        shared = torch.tensor(self.after_video)
        after = torch.arange(len(shared)) + following
        parts = [head, video, _columns(shared, 0, positions=after.expand(3, -1))]
        for number, (kind, question, answer) in enumerate(questions, 1):
            parts.append(self._branch(number, kind, question, answer, following + len(shared)))
        return torch.cat(parts, 1)

    def _branch(self, number: int, kind: int, question: str, answer: str, start: int) -> Tensor:
        asked = self._ids(question) + self.tail
        answered = [*self._ids(answer), self.end_id]
        ids = torch.tensor(asked + answered[:-1])
        columns = _columns(ids, number, positions=(torch.arange(len(ids)) + start).expand(3, -1))
        columns[2, len(asked) - 1 :] = torch.tensor(answered)
        columns[4] = kind
        return columns


def _columns(ids: Tensor, branch: int, positions: Tensor) -> Tensor:
    columns = torch.zeros(8, len(ids), dtype=torch.long)
    columns[0], columns[1], columns[2], columns[3] = ids, branch, -100, -100
    columns[5:8] = positions
    return columns
