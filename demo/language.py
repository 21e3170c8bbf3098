"""What is true about a scene, in words: captions, questions and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from demo.world import COLOURS, SHAPES, Event, Scene, Thing

__all__ = ["CAPTION_PROMPTS", "Facts", "caption", "question_pool", "seen_facts", "truth_of"]

CAPTION_PROMPTS = (
    "describe this video .",
    "describe the video .",
    "what happens in this video ?",
    "what happens in the video ?",
)
_NUMBERS = ("zero", "one", "two")


@dataclass(frozen=True)
class Facts:
    """What can be said: the objects, and the flashes (by time) with the second each is first seen."""

    things: tuple[Thing, ...]
    flashes: tuple[tuple[Event, int], ...]


def seen_facts(scene: Scene, seconds: Sequence[float]) -> Facts:
    """Facts visible at the sampled instants: a flash between two samples did not happen."""
    flashes = []
    for event in scene.events:
        visible = [instant for instant in seconds if event.visible(instant)]
        if visible:
            flashes.append((event, int(visible[0])))
    return Facts(scene.things, tuple(flashes))


def _name(item: Thing | Event) -> str:
    return f"{item.colour} {item.shape}"


def _with_article(item: Thing | Event) -> str:
    return f"{'an' if item.colour == 'orange' else 'a'} {_name(item)}"


def caption(facts: Facts) -> str:
    """One clause per object (in the order of COLOURS), then one per flash (by time)."""
    clauses = []
    for thing in facts.things:
        verb = "stays still" if thing.motion == "still" else f"moves {thing.motion}"
        clauses.append(f"{_with_article(thing)} {verb} .")
    for event, second in facts.flashes:
        clauses.append(f"{_with_article(event)} flashes at second {second} .")
    return " ".join(clauses)


def _flash_answers(facts: Facts) -> tuple[str, str]:
    """Answers to "what flashes ?" and "when does something flash ?"."""
    if not facts.flashes:
        return "nothing .", "nothing flashes ."
    names = " and ".join(_with_article(event) for event, _ in facts.flashes)
    return f"{names} .", "at second " + " and ".join(str(second) for _, second in facts.flashes) + " ."


def question_pool(facts: Facts, rng: np.random.Generator) -> dict[str, list[tuple[str, str]]]:
    """Kind of question -> (question, answer) pairs, in several wordings, with made-up negatives."""
    what, when = _flash_answers(facts)
    number = _NUMBERS[len(facts.flashes)]
    pool: dict[str, list[tuple[str, str]]] = {
        "caption": [(prompt, caption(facts)) for prompt in CAPTION_PROMPTS],
        "what": [
            (text, what)
            for text in ("what flashes ?", "what flashes in the video ?", "which thing flashes ?")
        ],
        "count": [
            (text, number + " .") for text in ("how many things flash ?", "how many flashes are there ?")
        ],
        "when any": [
            (text, when) for text in ("when does something flash ?", "at what second does something flash ?")
        ],
        "when": [],
        "yes": [(f"does the {_name(event)} flash ?", "yes .") for event, _ in facts.flashes],
        "no": [(f"does the {name} flash ?", "no .") for name in _absent(facts, rng)],
        "motion": [],
        "shape": [],
        "colour": [],
    }
    for event, second in facts.flashes:
        for text in ("when does the {} flash ?", "at what second does the {} flash ?"):
            pool["when"].append((text.format(_name(event)), f"at second {second} ."))
    for thing in facts.things:
        answer = "it stays still ." if thing.motion == "still" else f"{thing.motion} ."
        for text in ("which way does the {} move ?", "what direction does the {} move ?"):
            pool["motion"].append((text.format(_name(thing)), answer))
    items: tuple[Thing | Event, ...] = (*facts.things, *(event for event, _ in facts.flashes))
    for item in items:
        for text in ("what shape is the {} thing ?", "what is the shape of the {} thing ?"):
            pool["shape"].append((text.format(item.colour), f"a {item.shape} ."))
        for text in ("what colour is the {} ?", "what color is the {} ?", "what is the colour of the {} ?"):
            pool["colour"].append((text.format(item.shape), f"{item.colour} ."))
    return pool


def _absent(facts: Facts, rng: np.random.Generator) -> list[str]:
    """Names of things that do not flash: objects, near misses, and made-up pairs."""
    flashing = {_name(event) for event, _ in facts.flashes}
    names = [_name(thing) for thing in facts.things]
    names.append(f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}")
    for event, _ in facts.flashes:
        names.append(f"{event.colour} {rng.choice(SHAPES)}")
        names.append(f"{rng.choice(list(COLOURS))} {event.shape}")
    return [name for name in names if name not in flashing]


def truth_of(scene: Scene) -> dict[str, Any]:
    """The truth about a video, as written beside it: objects, events, caption, and questions with answers."""
    facts = Facts(scene.things, tuple((event, int(event.start_seconds)) for event in scene.events))
    pool = question_pool(facts, np.random.default_rng([scene.seed, 23]))
    kinds = ("what", "count", "when any", "when", "motion", "shape", "colour")
    return {
        "seed": scene.seed,
        "duration_seconds": scene.duration_seconds,
        "objects": [
            {"colour": thing.colour, "shape": thing.shape, "motion": thing.motion} for thing in scene.things
        ],
        "events": [
            {
                "colour": event.colour,
                "shape": event.shape,
                "second": round(event.start_seconds, 2),
                "end_second": round(event.end_seconds, 2),
            }
            for event in scene.events
        ],
        "caption": caption(facts),
        "questions": [
            {"kind": kind, "question": question, "answer": answer}
            for kind in kinds
            for question, answer in _first_wordings(pool[kind])
        ],
    }


def _first_wordings(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """One question per answer subject: the plainest wording."""
    plain = ("what flashes ?", "how many things", "when does", "which way", "what shape", "what colour is")
    return [pair for pair in pairs if pair[0].startswith(plain)]
