"""A corpus of the synthetic world: mp4 files, and beside them what is true about each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from demo.language import truth_of
from demo.render import write_video
from demo.world import FRAME_RATE, Scene, random_scene

__all__ = ["corpus_scenes", "write_corpus"]


def corpus_scenes(num_videos: int, seed: int) -> list[Scene]:
    """Scenes of a demo corpus: 24 to 80 s, every third one 60 to 80 s, a flash in five of six videos."""
    rng = np.random.default_rng([seed, 11])
    scenes = []
    for index in range(num_videos):
        low, high = (60, 80) if index % 3 == 1 else (24, 80)
        duration = round(float(rng.uniform(low, high)) * FRAME_RATE) / FRAME_RATE
        num_events = 0 if index % 6 == 5 else 1 + int(index % 3 != 1 and rng.random() < 0.4)
        length = (1.0, 2.0) if index % 3 == 1 else (1.0, 3.0)
        scene_seed = int(rng.integers(2**40, 2**41))  # training seeds are all below 2**40
        scenes.append(random_scene(scene_seed, duration, num_events, event_seconds=length))
    return scenes


def write_corpus(folder: str | Path, num_videos: int, seed: int) -> list[Path]:
    """Write h264 mp4 files and `truth.json` (file name -> truth) into a folder; returns the video paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {}
    paths = []
    for index, scene in enumerate(corpus_scenes(num_videos, seed)):
        path = folder / f"video_{index:03d}.mp4"
        write_video(path, scene)
        truth[path.name] = truth_of(scene)
        paths.append(path)
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    return paths


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a corpus of synthetic videos with the truth beside them."
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=14)
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    paths = write_corpus(arguments.out, arguments.videos, arguments.seed)
    size = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} videos, {size / 1e6:.1f} MB, truth in {arguments.out / 'truth.json'}")


if __name__ == "__main__":
    _main()
