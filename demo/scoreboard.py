"""The demo's tables: what was said beside what is true, all of it computed from the rows and the truth."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from demo.truth import TIME_TOLERANCE_SECONDS, Score, answer_is_right, parse_caption, score_caption, total
from pipeline.cli import print_table

__all__ = ["events_found", "print_claim", "print_next_steps", "print_scores", "print_videos"]

Row = Mapping[str, Any]
Truth = Mapping[str, Any]

_LONG_SECONDS = 60.0
_ASPECTS = (
    ("shapes", "shapes"),
    ("colours", "colours"),
    ("motions", "motions"),
    ("events", "events, by colour and shape"),
    ("times", f"event times within {TIME_TOLERANCE_SECONDS:g} s"),
)


def print_videos(console: Console, rows: Sequence[Row], truth: Truth) -> None:
    """Every caption and answer of every video beside the truth."""
    for row in rows:
        true = _truth_of(row, truth)
        title = (
            f"{_name(row)}: {row['duration_seconds']:.1f} s, {row['num_frames']} frames, "
            f"{row['visual_tokens_after']} of {row['visual_tokens_before']} visual tokens"
        )
        lines = [("caption", row["caption"], _plain(true["caption"]), _caption_mark(row, true))]
        lines += [
            (
                answer["question"],
                answer["answer"],
                _plain(_true_answer(answer, true)),
                _answer_mark(answer, true),
            )
            for answer in row["answers"]
        ]
        print_table(console, title, ("", "said", "true", ""), lines)


def print_scores(
    console: Console, titles: Sequence[str], passes: Sequence[Sequence[Row]], truth: Truth
) -> None:
    """How much was right, by aspect and by question, in either way of looking."""
    sums = [_sum(rows, truth) for rows in passes]
    long = [_sum([row for row in rows if row["duration_seconds"] >= _LONG_SECONDS], truth) for rows in passes]
    lines: list[list[str]] = []
    for aspect, text in _ASPECTS:
        lines.append([text, *(_share(score, aspect) for score in sums)])
        if aspect in ("events", "times"):
            lines.append(
                [f"  in videos over {_LONG_SECONDS:g} s", *(_share(score, aspect) for score in long)]
            )
    for position, answer in enumerate(passes[0][0]["answers"]):
        shares = [_answers_share(rows, position, truth) for rows in passes]
        lines.append([f"answers: {answer['question']}", *shares])
    print_table(console, "What was right: captions, then answers", ("", *titles), lines, right=(1, 2))


def print_claim(
    console: Console, titles: Sequence[str], passes: Sequence[Sequence[Row]], truth: Truth
) -> None:
    """The product's claim on the same videos: more events for no more tokens. 16 frames first."""
    passes, titles = list(reversed(passes)), list(reversed(titles))
    lines: list[list[str]] = [
        ["frames looked at", *(_range(rows, "num_frames") for rows in passes)],
        ["visual tokens before compression", *(_range(rows, "visual_tokens_before") for rows in passes)],
        ["visual tokens in the language model", *(_range(rows, "visual_tokens_after") for rows in passes)],
        ["  all videos together", *(f"{_sum_of(rows, 'visual_tokens_after')}" for rows in passes)],
        ["events found", *(_events_text(rows, truth) for rows in passes)],
        ["events made up", *(str(events_found(rows, truth)[2]) for rows in passes)],
        [
            f"event times within {TIME_TOLERANCE_SECONDS:g} s",
            *(_share(_sum(rows, truth), "times") for rows in passes),
        ],
        ["seconds in the vision tower", *(_mean(rows, "encode_seconds") for rows in passes)],
        ["seconds in the language model", *(_mean(rows, *_LANGUAGE) for rows in passes)],
    ]
    title = f"Ten times the frames, no more visual tokens: {len(passes[0])} videos, figures per video"
    print_table(console, title, ("", *titles), lines, right=(1, 2))


_LANGUAGE = ("prefill_seconds", "text_decode_seconds")


def print_next_steps(console: Console, index: Path) -> None:
    """How to query this index, and how to index one's own videos."""
    folder = _shown(Path(sys.executable).parent)
    sql = f"select uri, caption from '{index}/videos/*.parquet'"
    for what, command in (
        ("Query it", f'{folder}/python -c "import duckdb; print(duckdb.sql(\\"{sql}\\"))"'),
        ("Your own videos", f"{folder}/flashvid index configs/gpu.yaml corpus.uri=FOLDER output.uri=FOLDER"),
    ):
        console.print(f"{what + ':':17}{command}", soft_wrap=True)


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def events_found(rows: Iterable[Row], truth: Truth) -> tuple[int, int, int]:
    """Events named rightly in the captions, events there are, events named that there are not."""
    found = there = said = 0
    for row in rows:
        true = _truth_of(row, truth)
        found += score_caption(row["caption"], true).right["events"]
        there += len(true["events"])
        said += len(parse_caption(row["caption"])["events"])
    return found, there, said - found


def _events_text(rows: Sequence[Row], truth: Truth) -> str:
    found, there, _ = events_found(rows, truth)
    return _of(found, there)


def _name(row: Row) -> str:
    return Path(str(row["uri"])).name


def _truth_of(row: Row, truth: Truth) -> Truth:
    entry: Truth = truth[_name(row)]
    return entry


def _question_of(answer: Row, true: Truth) -> Row:
    entry: Row = next(entry for entry in true["questions"] if entry["question"] == answer["question"])
    return entry


def _plain(text: str) -> str:
    """The world sets full stops apart; the tokenizer's decoder joins them to the word before."""
    return text.replace(" .", ".")


def _true_answer(answer: Row, true: Truth) -> str:
    return str(_question_of(answer, true)["answer"])


def _is_right(answer: Row, true: Truth) -> bool:
    asked = _question_of(answer, true)
    return answer_is_right(asked["kind"], answer["answer"], asked["answer"])


def _answer_mark(answer: Row, true: Truth) -> str:
    return "right" if _is_right(answer, true) else "WRONG"


def _caption_mark(row: Row, true: Truth) -> str:
    score = score_caption(row["caption"], true)
    right, asked = sum(score.right.values()), sum(score.asked.values())
    return "right" if right == asked else f"{right} of {asked}"


def _sum(rows: Iterable[Row], truth: Truth) -> Score:
    return total([score_caption(row["caption"], _truth_of(row, truth)) for row in rows])


def _share(score: Score, aspect: str) -> str:
    return _of(score.right.get(aspect, 0), score.asked.get(aspect, 0))


def _answers_share(rows: Sequence[Row], position: int, truth: Truth) -> str:
    right = sum(_is_right(row["answers"][position], _truth_of(row, truth)) for row in rows)
    return _of(right, len(rows))


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "none there"


def _values(rows: Iterable[Row], name: str) -> list[int]:
    return [int(row[name]) for row in rows]


def _range(rows: Sequence[Row], name: str) -> str:
    low, high = min(_values(rows, name)), max(_values(rows, name))
    return str(low) if low == high else f"{low} to {high}"


def _sum_of(rows: Sequence[Row], name: str) -> int:
    return sum(_values(rows, name))


def _mean(rows: Sequence[Row], *names: str) -> str:
    return f"{sum(float(row[name]) for row in rows for name in names) / len(rows):.2f}"
