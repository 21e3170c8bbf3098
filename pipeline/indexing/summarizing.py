"""From the captions of a video's windows to one caption: as lines, or summarized by the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.config import SummaryConfig
from pipeline.errors import UserError

if TYPE_CHECKING:
    from flashvid.generation import Generation

__all__ = ["Summary", "TimedText", "WritesText", "check_prompt", "fewest_tokens", "join_lines", "summarize"]

_FEWEST_TOKENS = 256  # as in SummaryConfig


class WritesText(Protocol):
    """The half of an engine that needs no video."""

    def write(self, prompt: str, *, max_new_tokens: int) -> Generation:
        """Answer a prompt."""
        ...

    def count_tokens(self, text: str) -> int:
        """How many tokens the model reads of a text."""
        ...


@dataclass(frozen=True)
class TimedText:
    """What was said of [start, end) of a video, in seconds."""

    start_seconds: float
    end_seconds: float
    text: str

    @property
    def line(self) -> str:
        """As one line: ``1:00-2:00 text``; tenths of a second where there are any."""
        begin, end = _clock(self.start_seconds), _clock(self.end_seconds)
        return f"{begin}-{end} {' '.join(self.text.split())}"


@dataclass(frozen=True)
class Summary:
    """``finish_reason`` is that of the last call; ``output_tokens`` are those of all calls."""

    text: str
    finish_reason: str
    output_tokens: int


def join_lines(parts: Sequence[TimedText]) -> str:
    """All parts, one to a line, in their order."""
    return "\n".join(part.line for part in parts)


def check_prompt(engine: WritesText, config: SummaryConfig) -> None:
    """Raises UserError for a prompt that leaves less than half of ``max_input_tokens`` to the captions."""
    used = engine.count_tokens(config.prompt)
    if used > config.max_input_tokens // 2:
        raise UserError(
            f"windows.summary.prompt is {used} tokens long, more than half of "
            f"windows.summary.max_input_tokens={config.max_input_tokens}; shorten it or raise the limit"
        )


def fewest_tokens(engine: WritesText, config: SummaryConfig) -> int:
    """The least ``max_input_tokens`` with which a summary is worth trying: half of it for the captions."""
    return max(_FEWEST_TOKENS, 2 * engine.count_tokens(config.prompt))


def summarize(engine: WritesText, config: SummaryConfig, parts: Sequence[TimedText]) -> Summary:
    """One text about all ``parts``, of which there are two or more, written by the language model.

    No call reads more than ``max_input_tokens`` tokens, the chat around them not counted. Where the parts are
    more than that, consecutive ones are summarized in groups, then the groups' summaries, and so on: each
    group holds two parts at least, so n parts take at most log2(n) rounds, rounded up. Deterministic as far
    as the engine is. Raises what the engine raises.
    """
    room = config.max_input_tokens - engine.count_tokens(config.prompt + "\n\n")
    output_tokens = 0
    while True:
        groups = _groups(engine, parts, room)
        texts = []
        for group in groups:
            if len(group) == 1:  # the odd one at the end; said again it would only be worse
                texts.append(group[0])
                continue
            written = engine.write(_prompt(config, group), max_new_tokens=config.max_new_tokens)
            output_tokens += written.output_tokens
            texts.append(TimedText(group[0].start_seconds, group[-1].end_seconds, written.text))
        if len(groups) == 1:
            return Summary(written.text, written.finish_reason, output_tokens)
        parts = texts


def _groups(engine: WritesText, parts: Sequence[TimedText], room: int) -> list[list[TimedText]]:
    """Consecutive parts that fit together into ``room`` tokens; two at least, but for the last group."""
    groups: list[list[TimedText]] = []
    left = -1
    for part in parts:
        fitting, size = _cut(engine, part, room // 2)
        if size > left:
            groups.append([])
            left = room
        groups[-1].append(fitting)
        left -= size
    return groups


def _cut(engine: WritesText, part: TimedText, most: int) -> tuple[TimedText, int]:
    """The part with as much of its text, from the start, as makes a line of ``most`` tokens; its size."""
    size = engine.count_tokens(part.line + "\n")
    if size <= most:
        return part, size
    fits, too_long = 0, len(part.text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        shorter = TimedText(part.start_seconds, part.end_seconds, part.text[:middle])
        if engine.count_tokens(shorter.line + "\n") <= most:
            fits = middle
        else:
            too_long = middle
    shortest = TimedText(part.start_seconds, part.end_seconds, part.text[:fits])
    return shortest, engine.count_tokens(shortest.line + "\n")


def _prompt(config: SummaryConfig, group: Sequence[TimedText]) -> str:
    return f"{config.prompt}\n\n{join_lines(group)}"


def _clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``, with tenths where they are not 0."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    whole, tenth = divmod(rest, 10)
    return (
        (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{whole:02}" + (f".{tenth}" if tenth else "")
    )
