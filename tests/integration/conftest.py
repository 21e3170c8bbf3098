"""A small corpus of real files, and the cheapest job over it that goes through every part."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.config.job import JobConfig, load_config
from tests import ROOT

# So many that a run takes seconds: a kill "in the middle" has to find one.
NUM_GOOD = 48

SETTINGS = (
    "model.dtype=float32",
    "compression.retention_ratio=0.5",
    "frames.baseline=2",
    "frames.min_pixels=28224",
    "frames.max_pixels=28224",
    "prompts.caption=describe this video .",
    "prompts.caption_max_new_tokens=2",
    "workers.num_gpus=0",
    "workers.threads=1",
    "workers.lease_videos=1",
    "output.part_rows=1",
)


def write_video(path: Path, seed: int, num_frames: int = 12) -> None:
    """A square that moves, 168 x 168, h264."""
    colour = np.random.default_rng(seed).integers(0, 255, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=6)
        stream.width = stream.height = 168
        stream.pix_fmt = "yuv420p"
        for step in range(num_frames):
            image = np.full((168, 168, 3), 60, np.uint8)
            image[20 + step : 60 + step, 40:80] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def has_mapped(pid: int, library: str) -> bool:
    """Whether a process has loaded a shared library whose name contains the text."""
    return library in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")


OUR_NAMES = ("pipeline/__init__.py", "jobs/__init__.py", "flashvid.py")


def write_namesakes(folder: Path, names: Sequence[str] = (*OUR_NAMES, "queue.py")) -> None:
    """Modules named as ours and as one of Python's, such as people have in their folders."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise ImportError(f'{__file__} is the user's own')\n")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good videos, an empty file, a text file and a truncated one, all named .mp4; the model beside them.

    The model is a copy, so that a training which replaces the demo's does not change a run half way.
    """
    folder = tmp_path_factory.mktemp("world") / "videos"
    folder.mkdir()
    shutil.copytree(ROOT / "demo" / "model", folder.parent / "model")
    for number in range(NUM_GOOD):
        write_video(folder / f"good{number}.mp4", number)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 20)
    whole = (folder / "good0.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


def make_config(corpus: Path, output: Path, *overrides: str) -> JobConfig:
    places = (f"corpus.uri={corpus}", f"output.uri={output}", f"model.name={corpus.parent / 'model'}")
    return load_config(None, (*places, *SETTINGS, *overrides))
