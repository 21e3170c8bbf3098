"""CPU seconds of decoding ten kinds of sound files: PyAV, decord, and another checkout of this project.

    python -m benchmarks.decoding -o out/bench/decoding.json
    python -m benchmarks.decoding --against ../before   # ratios to the code in that folder, in the same run

Each is read as a decode child reads it, in a process of its own that takes turns with the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch

from benchmarks.machine import machine_facts

__all__ = ["KINDS", "How", "Kind", "main", "make_file", "measure", "table"]

_ROOT = Path(__file__).resolve().parent.parent
# Reads files in a process of its own; works with checkouts that had other rooms' insides.
_READER = """
import json, sys, time, zlib
from pipeline.decoding.containers import Limits
from pipeline.decoding.decoders import open_video
from pipeline.decoding.sampling import FrameRequest, Span
for line in sys.stdin:
    path, decoder, frames, pixels, spans, threads = json.loads(line)
    began = time.process_time()
    request = FrameRequest("uniform", frames, 2.0, 784, pixels)
    video = open_video(path, decoder, request, Limits(2**26, 10**7, threads))
    reads = [video.read(Span(*span)) for span in spans]
    used = time.process_time() - began
    said = {"cpu_seconds": used, "frames": sum(len(read.pts_seconds) for read in reads),
            "damage": reads[-1].damage, "seconds": [round(float(t), 3) for r in reads for t in r.pts_seconds],
            "mean": [float(picture.mean()) for read in reads for picture in read.data]}
    print(json.dumps(said), flush=True)
"""


class Kind(NamedTuple):
    """A file that is made, and how it is read: ``windows`` of so many seconds, or whole for 0."""

    name: str
    codec: str
    width: int
    height: int
    num_frames: int
    gop: int
    sampled: int
    windows: int = 0
    options: Mapping[str, str] = {}


class How(NamedTuple):
    """How often each file is read, at how many pixels, with how many threads."""

    rounds: int
    pixels: int
    threads: int


_HEVC = {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=0:crf=30"}
_VPX = {"deadline": "realtime", "cpu-used": "8", "b": "2M"}
KINDS = (
    Kind("h264.mp4", "libx264", 1920, 1080, 1000, 250, 160, options={"preset": "ultrafast", "crf": "28"}),
    Kind("hevc.mp4", "libx265", 1920, 1080, 500, 250, 80, options=_HEVC),
    Kind("windows.mp4", "libx264", 960, 540, 1500, 50, 16, 5, {"preset": "veryfast"}),
    Kind("long_gop.mkv", "libx264", 640, 360, 1500, 1500, 32, options={"preset": "veryfast"}),
    Kind("vp9.webm", "libvpx-vp9", 640, 360, 500, 100, 64, options=_VPX),
    Kind("av1.mp4", "libsvtav1", 640, 360, 300, 100, 64, options={"preset": "12"}),
    Kind("mpeg4.avi", "mpeg4", 640, 360, 1000, 50, 64),
    Kind("mjpeg.avi", "mjpeg", 640, 360, 500, 1, 64),
    Kind("small.mp4", "libx264", 160, 120, 50, 25, 16),
    Kind("stream.ts", "libx264", 640, 360, 1000, 50, 64, options={"preset": "veryfast"}),
    Kind("short.gif", "gif", 320, 240, 40, 12, 16),
)
_FORMATS = {"mjpeg": "yuvj420p", "gif": "rgb8"}


def make_file(folder: Path, kind: Kind) -> Path:
    """Noise that moves: as hard to decode as a busy scene."""
    path = folder / kind.name
    noise = np.random.default_rng(0).integers(0, 64, (kind.height, kind.width, 3), dtype=np.uint8)
    noise[kind.height // 2 :] //= 4
    with av.open(str(path), "w") as container:
        stream = container.add_stream(kind.codec, rate=25, options=dict(kind.options))
        stream.width, stream.height, stream.gop_size = kind.width, kind.height, kind.gop
        stream.pix_fmt = _FORMATS.get(kind.codec, "yuv420p")
        for index in range(kind.num_frames):
            picture = np.roll(noise, (index % 7, 3 * index), axis=(0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # libsvtav1 makes root's a real-time process
    return path


class _Reader:
    """A process that reads files with the code of one checkout."""

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _READER],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def read(self, path: Path, decoder: str, kind: Kind, how: How) -> dict[str, Any] | None:
        """What came and the CPU seconds that it took; None where this decoder does not read the file."""
        seconds = kind.num_frames / 25
        starts = range(0, int(seconds), kind.windows) if kind.windows else ()
        spans: list[tuple[int, ...]] = [(start, start + kind.windows) for start in starts] or [()]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = [str(path), decoder, kind.sampled, how.pixels, spans, how.threads]
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(kinds: Sequence[Kind], before: Path | None, how: How) -> list[dict[str, Any]]:
    """One entry per kind: CPU seconds by reader (median of the rounds), whether all gave the same.

    before: another checkout, whose decoders take turns with ours.
    """
    contenders = {"pyav": (_ROOT, "pyav"), "decord": (_ROOT, "decord")}
    if before is not None:
        contenders |= {"before, pyav": (before, "pyav"), "before, decord": (before, "decord")}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            path = make_file(Path(folder), kind)
            results.append(_measure_kind(kind, path, contenders, how))
            path.unlink()
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return results


def _measure_kind(
    kind: Kind, path: Path, contenders: Mapping[str, tuple[Path, str]], how: How
) -> dict[str, Any]:
    readers = {name: (_Reader(root), decoder) for name, (root, decoder) in contenders.items()}
    took: dict[str, list[float]] = {name: [] for name in readers}
    last: dict[str, dict[str, Any]] = {}
    for number in range(how.rounds + 1):
        for name, (reader, decoder) in readers.items():
            said = reader.read(path, decoder, kind, how)
            if said is not None:
                last[name] = said
                took[name] += [said["cpu_seconds"]] if number else []  # the first loads libraries
    for reader, _ in readers.values():
        reader.close()
    medians = {name: statistics.median(values) for name, values in took.items() if values}
    own = last["pyav"]
    differences = [
        abs(a - b) for said in last.values() for a, b in zip(said["mean"], own["mean"], strict=False)
    ]
    return {
        "kind": kind.name,
        "bytes": path.stat().st_size,
        "frames": {name: said["frames"] for name, said in last.items()},
        "damage": {name: said["damage"] for name, said in last.items()},
        "cpu_seconds": medians,
        "ratio_to_pyav": {name: value / medians["pyav"] for name, value in medians.items()},
        "same_times": all(said["seconds"] == own["seconds"] for said in last.values()),
        "most_mean_difference": max(differences),
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--kinds", nargs="+", choices=[kind.name for kind in KINDS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-pixels", type=int, default=256 * 28 * 28)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the files, measure, print or write JSON and a table."""
    options = _parse(arguments)
    kinds = [kind for kind in KINDS if not options.kinds or kind.name in options.kinds]
    before = options.against and options.against.resolve()
    results = measure(kinds, before, How(options.rounds, options.max_pixels, options.threads))
    report = {"machine": machine_facts(torch.device("cpu")), "results": results}
    text = json.dumps(report, indent=1) + "\n"
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")
        options.output.with_suffix(".md").write_text(table(results), encoding="utf-8")
    print(table(results))


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    names = list(dict.fromkeys(name for result in results for name in result["cpu_seconds"]))
    head = ["file", *(f"{name} s" for name in names), *(f"{name} / pyav" for name in names if name != "pyav")]
    lines = [head, ["---"] * len(head)]
    for result in results:
        seconds = [result["cpu_seconds"].get(name) for name in names]
        ratios = [result["ratio_to_pyav"].get(name) for name in names if name != "pyav"]
        numbers = ["-" if number is None else f"{number:.3f}" for number in (*seconds, *ratios)]
        lines.append([result["kind"], *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
