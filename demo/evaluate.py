"""`python -m demo.evaluate`: measures the checkpoint on videos it has never seen, through FlashVID's engine.

Sampled frames, with sensor noise, are described by `flashvid.engine.Engine`: nothing is shared with the
training code but the world. Their seeds are above 2**40, training seeds below. (`flashvid demo` goes through
h264 files.)
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demo.language import truth_of
from demo.render import render
from demo.truth import Score, answer_is_right, score_caption, total
from demo.views import frame_times
from demo.world import Scene, random_scene
from flashvid.config import FlashVidConfig
from flashvid.generation import Engine, VideoAnswers, VideoInput

__all__ = ["evaluate"]

_SEED = 3 * 2**40
_CAPTION = "describe this video ."
_WHAT = "what flashes ?"
_TENTH = FlashVidConfig(retention_ratio=0.1, expansion=1.0, llm_retention_ratio=1.0)
_SETTINGS: dict[str, tuple[int, FlashVidConfig, int | None]] = {
    "16 frames, all tokens": (16, FlashVidConfig(retention_ratio=1.0), None),
    "160 frames, a tenth": (160, _TENTH, 288),
    "160 frames, a tenth, pruned inside": (160, FlashVidConfig(retention_ratio=0.1), 288),
}


def _main_scenes(count: int, held_out: bool = False) -> list[Scene]:
    """24 to 80 s, evenly spread."""
    base = _SEED + (10**6 if held_out else 0)
    return [
        random_scene(base + i, 24.0 + 56.0 * i / max(1, count - 1), held_out=held_out) for i in range(count)
    ]


def _needle_scenes(count: int) -> list[Scene]:
    """One flash of 1 to 2 s in 60 to 80 s."""
    return [
        random_scene(_SEED + 2 * 10**6 + i, 60.0 + 20.0 * i / max(1, count - 1), 1, event_seconds=(1.0, 2.0))
        for i in range(count)
    ]


def _ask(
    engine: Engine, scene: Scene, prompts: list[str], *, num_frames: int, most: int | None
) -> VideoAnswers:
    frames = render(scene, frame_times(scene.duration_seconds, num_frames), noise=2.0)
    video = VideoInput(frames, scene.duration_seconds / num_frames)
    return engine.answer(video, prompts, max_new_tokens=48, baseline_tokens=most)


class _Tally:
    """Sums over videos for one setting."""

    def __init__(self) -> None:
        self.scores: list[Score] = []
        self.answers: dict[str, list[bool]] = defaultdict(list)
        self.tokens: list[int] = []
        self.exact: list[bool] = []

    def add(self, texts: list[str], truth: dict[str, Any], tokens: int) -> None:
        self.tokens.append(tokens)
        self.scores.append(score_caption(texts[0], truth))
        for text, question in zip(texts[1:], truth["questions"], strict=True):
            self.answers[question["kind"]].append(answer_is_right(question["kind"], text, question["answer"]))

    def result(self) -> dict[str, Any]:
        caption = {aspect: round(share, 3) for aspect, share in total(self.scores).shares().items()}
        answers = {kind: round(float(np.mean(right)), 3) for kind, right in self.answers.items()}
        return {
            "visual_tokens": round(float(np.mean(self.tokens)), 1),
            "caption": caption,
            "answers": answers,
        }


def _measure(engine: Engine, scenes: list[Scene], num_frames: int, most: int | None) -> dict[str, Any]:
    tally = _Tally()
    for scene in scenes:
        truth = truth_of(scene)
        prompts = [_CAPTION, *(question["question"] for question in truth["questions"])]
        reply = _ask(engine, scene, prompts, num_frames=num_frames, most=most)
        tally.add([generation.text for generation in reply.generations], truth, reply.visual_tokens_after)
    return {"videos": len(scenes), **tally.result()}


def _needle(engine: Engine, scenes: list[Scene], num_frames: int, most: int | None) -> dict[str, Any]:
    right, in_sample = [], []
    for scene in scenes:
        truth = truth_of(scene)
        reply = _ask(engine, scene, [_WHAT], num_frames=num_frames, most=most)
        wanted = next(q["answer"] for q in truth["questions"] if q["kind"] == "what")
        right.append(answer_is_right("what", reply.generations[0].text, wanted))
        times = frame_times(scene.duration_seconds, num_frames)
        in_sample.append(any(scene.events[0].visible(float(instant)) for instant in times))
    return {
        "videos": len(scenes),
        "found": round(float(np.mean(right)), 3),
        "in_a_sampled_frame": round(float(np.mean(in_sample)), 3),
    }


def evaluate(model: Path, name: str, counts: tuple[int, int, int], dtype: str) -> dict[str, Any]:
    """Accuracies in one setting: held-out videos, needles, and videos with pairs never trained on."""
    num_frames, config, most = _SETTINGS[name]
    num_videos, num_needles, num_unseen = counts
    engine = Engine.from_pretrained(str(model), config=config, dtype=dtype)
    row: dict[str, Any] = {}
    if num_needles:
        row["needle"] = _needle(engine, _needle_scenes(num_needles), num_frames, most)
    if num_videos:
        row["held_out_videos"] = _measure(engine, _main_scenes(num_videos), num_frames, most)
    if num_unseen:
        row["unseen_pairs"] = _measure(engine, _main_scenes(num_unseen, held_out=True), num_frames, most)
    return row


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("demo/model"))
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--needles", type=int, default=40)
    parser.add_argument("--unseen", type=int, default=20)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--setting", choices=list(_SETTINGS), action="append", help="all, unless named")
    parser.add_argument("--out", type=Path, default=None, help="write the results here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    counts = (arguments.videos, arguments.needles, arguments.unseen)
    results: dict[str, Any] = {"dtype": arguments.dtype, "seed": _SEED}
    for name in arguments.setting or _SETTINGS:
        results[name] = evaluate(arguments.model, name, counts, arguments.dtype)
        print(name, json.dumps(results[name]), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    _main()
