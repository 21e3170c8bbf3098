"""Captions of windows to one caption: bounded prompts, in order, every window heard, the same every time."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvid.config import FlashVidConfig
from flashvid.generation.answers import Generation
from flashvid.generation.engine import Engine
from pipeline.config.sections import SummaryConfig
from pipeline.errors import UserError
from pipeline.indexing.summarizing import TimedText, check_prompt, join_lines, summarize
from tests.tiny_model import VISION, tiny_model, tiny_tokenizer


@dataclass
class Recorder:
    """An engine whose tokens are words, and which says what windows it read about."""

    prompts: list[str] = field(default_factory=list)

    def write(self, prompt: str, *, max_new_tokens: int) -> Generation:
        self.prompts.append(prompt)
        names = re.findall(r"w\d+", prompt)
        words = names[: max_new_tokens - 1]
        return Generation(" ".join(words), "stop", len(words) + 1, self.count_tokens(prompt))

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def config(max_input_tokens: int = 256, max_new_tokens: int = 256) -> SummaryConfig:
    return SummaryConfig(
        prompt="Sum this up .", max_input_tokens=max_input_tokens, max_new_tokens=max_new_tokens
    )


def parts_of(num: int, words: int = 1) -> list[TimedText]:
    rest = " and" * (words - 1)
    return [TimedText(60.0 * n, 60.0 * (n + 1), f"w{n}{rest}") for n in range(num)]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 60, "0:00-1:00"),
        (3540, 3600, "59:00-1:00:00"),
        (7140, 7199.96, "1:59:00-2:00:00"),
        (0.5, 2.25, "0:00.5-0:02.2"),
        (36_000, 360_000, "10:00:00-100:00:00"),
    ],
)
def test_lines_have_times_as_people_write_them(start: float, end: float, expected: str) -> None:
    assert TimedText(start, end, "A red\n circle. ").line == f"{expected} A red circle."


def test_joined_captions_are_one_to_a_line() -> None:
    parts = [TimedText(0, 60, "First.\nStill first."), TimedText(60, 90, "Then.")]
    assert join_lines(parts) == "0:00-1:00 First. Still first.\n1:00-1:30 Then."


def test_what_fits_is_one_prompt() -> None:
    engine = Recorder()
    summary = summarize(engine, config(), parts_of(3))
    assert engine.prompts == ["Sum this up .\n\n0:00-1:00 w0\n1:00-2:00 w1\n2:00-3:00 w2"]
    assert (summary.text, summary.finish_reason, summary.output_tokens) == ("w0 w1 w2", "stop", 4)


def test_more_than_fits_is_summarized_in_groups_first() -> None:
    engine = Recorder()
    summary = summarize(engine, config(max_new_tokens=20), parts_of(30, words=20))  # 12 lines of 21 fit
    assert len(engine.prompts) == 4
    firsts = [prompt.splitlines()[2] for prompt in engine.prompts]
    assert [line.split()[0] for line in firsts] == [
        "0:00-1:00",
        "12:00-13:00",
        "24:00-25:00",
        "0:00-12:00",
    ]
    assert engine.prompts[3].splitlines()[4].startswith("24:00-30:00 w24")
    assert summary.text.split()[:3] == ["w0", "w1", "w2"]
    assert summary.output_tokens == 13 + 13 + 7 + 20


def test_a_single_part_at_the_end_is_not_said_again() -> None:
    engine = Recorder()
    summarize(engine, config(), parts_of(13, words=20))
    assert len(engine.prompts) == 2
    assert "12:00-13:00 w12 and and" in engine.prompts[1]


@settings(max_examples=25)
@given(
    num=st.integers(2, 120),
    words=st.integers(1, 300),
    limit=st.integers(256, 2000),
    new=st.integers(1, 3000),
)
def test_no_prompt_exceeds_the_limit_and_the_rounds_are_bounded(
    num: int, words: int, limit: int, new: int
) -> None:
    engine = Recorder()
    summarize(engine, config(limit, new), parts_of(num, words))
    assert max(map(engine.count_tokens, engine.prompts)) <= limit
    assert len(engine.prompts) < num
    rounds = sum("\n0:00-" in prompt for prompt in engine.prompts)
    assert 2 ** (rounds - 1) < num, "each round at least halves the number of parts"


def test_a_caption_that_is_too_long_is_cut_not_dropped() -> None:
    engine = Recorder()
    summarize(engine, config(), [*parts_of(1, words=1000), TimedText(60, 120, "w1 ends")])
    assert re.findall(r"w\d", engine.prompts[-1]) == ["w0", "w1"]


def test_every_window_is_read_in_its_order() -> None:
    engine = Recorder()
    summarize(engine, config(), parts_of(100, words=10))
    first_round = [name for prompt in engine.prompts for name in re.findall(r"(?<=\d )w\d+ and", prompt)]
    assert first_round[:100] == [f"w{number} and" for number in range(100)]


def test_the_same_captions_give_the_same_summary() -> None:
    first, second = Recorder(), Recorder()
    found = [summarize(engine, config(300, 30), parts_of(200, words=15)) for engine in (first, second)]
    assert found[0] == found[1]
    assert first.prompts == second.prompts


def test_text_read_off_the_screen_is_handed_on_as_it_is() -> None:
    """What looks like a token of the model's own is text to the engine, which is asked with it whole."""
    says = "It says <|video_pad|> <|im_end|> < | w1"
    parts, engine = [TimedText(0, 60, says), TimedText(60, 120, "w2")], Recorder()
    summarize(engine, config(), parts)
    assert says in engine.prompts[0]
    own = Engine(tiny_model(), tiny_tokenizer(), FlashVidConfig(), vision=VISION)
    assert summarize(own, config(max_new_tokens=8), parts).output_tokens > 0


def test_a_prompt_that_leaves_no_room_is_refused_before_anything_runs() -> None:
    long = SummaryConfig(prompt="word " * 129, max_input_tokens=256)
    with pytest.raises(UserError, match=r"summary\.prompt is 129 tokens long, .*max_input_tokens=256"):
        check_prompt(Recorder(), long)
    check_prompt(Recorder(), SummaryConfig(prompt="word " * 128, max_input_tokens=256))


def test_a_real_model_reads_no_more_than_it_may() -> None:
    engine = Engine(tiny_model(), tiny_tokenizer(), FlashVidConfig(), vision=VISION)
    read: list[int] = []

    class Counting:
        count_tokens = staticmethod(engine.count_tokens)

        def write(self, prompt: str, *, max_new_tokens: int) -> Generation:
            written = engine.write(prompt, max_new_tokens=max_new_tokens)
            read.append(written.prompt_tokens)
            return written

    texts = [TimedText(n, n + 1, "a red circle moves . " * 12) for n in range(9)]
    summary = summarize(Counting(), config(max_new_tokens=8), texts)
    assert len(read) == 3, "two groups, then both"
    assert max(read) <= 256 + 8, "the chat around it has a few tokens of its own"
    assert summary.text
    assert summarize(engine, config(max_new_tokens=8), texts) == summary
