"""Scoring: how much of a generated caption or answer is true. Pure functions of text and truth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TIME_TOLERANCE_SECONDS", "Score", "answer_is_right", "parse_caption", "score_caption", "total"]

TIME_TOLERANCE_SECONDS = 3.0
_OBJECT = re.compile(r"\ban? (\w+) (\w+) (?:moves (\w+)|stays (still))")
_EVENT = re.compile(r"\ban? (\w+) (\w+) flashes at second (\d+)")


@dataclass
class Score:
    """Right answers and chances per aspect: shapes, colours, motions, events, times."""

    right: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def add(self, aspect: str, right: int, asked: int) -> None:
        """Count `right` of `asked` more."""
        self.right[aspect] = self.right.get(aspect, 0) + right
        self.asked[aspect] = self.asked.get(aspect, 0) + asked

    def shares(self) -> dict[str, float]:
        """Share right per aspect, for aspects asked at least once."""
        return {aspect: self.right[aspect] / asked for aspect, asked in self.asked.items() if asked}


def total(scores: Sequence[Score]) -> Score:
    """Sum over videos."""
    result = Score()
    for score in scores:
        for aspect, asked in score.asked.items():
            result.add(aspect, score.right[aspect], asked)
    return result


def parse_caption(text: str) -> dict[str, list[dict[str, Any]]]:
    """Objects (colour, shape, motion) and events (colour, shape, second) that a caption claims."""
    text = text.lower()
    objects = [
        {"colour": colour, "shape": shape, "motion": way or still}
        for colour, shape, way, still in _OBJECT.findall(text)
    ]
    events = [
        {"colour": colour, "shape": shape, "second": int(second)}
        for colour, shape, second in _EVENT.findall(text)
    ]
    return {"objects": objects, "events": events}


def score_caption(text: str, truth: Mapping[str, Any]) -> Score:
    """Compare a caption with the truth of its video.

    Aspects: `colours` and `shapes` (of all objects and events), `motions` (of objects), `events` (colour and
    shape of the flash both right), `times` (start within TIME_TOLERANCE_SECONDS; a missed event is wrong).
    Claims beyond what is true cost as much as misses: what is asked is the larger of claimed and true.
    """
    said = parse_caption(text)
    score = Score()
    for aspect, key, groups in (
        ("colours", "colour", ("objects", "events")),
        ("shapes", "shape", ("objects", "events")),
        ("motions", "motion", ("objects",)),
    ):
        for group in groups:
            _score_items(score, aspect, key, said[group], truth[group])
    _score_events(score, said["events"], truth["events"])
    return score


def _score_items(
    score: Score, aspect: str, key: str, said: Sequence[Mapping[str, Any]], true: Sequence[Mapping[str, Any]]
) -> None:
    """An item is right if one said item agrees in this key and, for motions, in colour or shape too."""
    left = list(said)
    right = 0
    for item in true:
        hits = [other for other in left if other[key] == item[key]]
        if aspect == "motions":
            hits = [o for o in hits if o["colour"] == item["colour"] or o["shape"] == item["shape"]]
        if hits:
            right += 1
            left.remove(hits[0])
    score.add(aspect, right, max(len(said), len(true)))


def _score_events(score: Score, said: Sequence[Mapping[str, Any]], true: Sequence[Mapping[str, Any]]) -> None:
    found = timed = 0
    for event in true:
        hits = [o for o in said if o["colour"] == event["colour"] and o["shape"] == event["shape"]]
        found += bool(hits)
        timed += any(abs(o["second"] - event["second"]) <= TIME_TOLERANCE_SECONDS for o in hits)
    score.add("events", found, max(len(said), len(true)))
    score.add("times", timed, len(true))


def answer_is_right(kind: str, answer: str, truth: str) -> bool:
    """Whether an answer says the same as the true one; numbers of seconds may be off by the tolerance."""
    said, true = _words(answer), _words(truth)
    if not kind.startswith("when"):
        return said == true
    numbers = [int(word) for word in said if word.isdigit()]
    wanted = [int(word) for word in true if word.isdigit()]
    if len(numbers) != len(wanted):
        return False
    # truth is the whole second before the flash starts
    near = all(abs(a - b) <= TIME_TOLERANCE_SECONDS for a, b in zip(numbers, wanted, strict=True))
    return near and [w for w in said if not w.isdigit()] == [w for w in true if not w.isdigit()]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", text.lower())
