"""A whole worker over a video of hours, in a process of its own: peak memory beyond the loaded model.

``python -m benchmarks.long_worker -o out/bench/long_video.json``. Worker, DecodePool and VideoIndexer are the
real ones, and so are the decode children; the coordinator is a stand-in that leases one video. ``demo`` is
the shipped model; ``large`` are frames as many and as large as a released checkpoint wants them, with an
engine that only reads them, over the first 20 minutes: weights and activations of 7 billion parameters do
not fit here, pixels do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.long_video import make_long_video, peak_resident_bytes
from benchmarks.machine import machine_facts
from benchmarks.memory import forget_peak, status_bytes
from benchmarks.tables import markdown, save
from flashvid.frames import VisionSettings
from flashvid.generation import Generation, VideoAnswers, VideoInput
from pipeline.cluster import Lease, LeasedVideo, LeaseReply, Message, Reply, Run, Worker
from pipeline.config import JobConfig, load_config
from pipeline.decoding import DecodePool
from pipeline.indexing import AnswersVideos, load_indexer
from pipeline.records import Failure, VideoRef, VideoRow

__all__ = ["LastVideo", "PixelReader", "main", "measure", "pixel_reader"]

_ROOT = Path(__file__).resolve().parent.parent
_SAMPLE_SECONDS = 0.2
_LARGE_SECONDS = 1200.0  # more windows than fit into bytes_in_flight: from there on memory stays as it is
_SLOW_CALLS, _SLOW_SECONDS = 8, 10.0
_MB = 10**6


class PixelReader(AnswersVideos):
    """An engine that looks at every pixel and says nothing; slow at first, so that decoding gets ahead."""

    vision = VisionSettings()

    def __init__(self) -> None:
        self._slow_calls = _SLOW_CALLS

    def answer(
        self,
        video: VideoInput,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | Sequence[int],
        baseline_tokens: int | None = None,
        prompts_per_batch: int | None = None,
    ) -> VideoAnswers:
        """An answer per prompt: the mean of all pixels."""
        if self._slow_calls:
            self._slow_calls -= 1
            time.sleep(_SLOW_SECONDS)
        frames = video.as_tensor()
        mean = sum(float(frame.float().mean()) for frame in frames) / len(frames)
        said = tuple(Generation(f"{mean:.1f}", "stop", 1, 1) for _ in prompts)
        grid = self.vision.grid(*frames.shape[:3])
        return VideoAnswers(said, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, torch.zeros(0), grid, 0)

    def write(self, prompt: str, *, max_new_tokens: int) -> Generation:
        """Nothing."""
        return Generation("", "stop", 1, 1)

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())


def pixel_reader(config: JobConfig, device: str) -> PixelReader:
    """For ``model.engine``."""
    return PixelReader()


@dataclass
class LastVideo:
    """A coordinator with one video to lease; keeps what comes of it."""

    ref: VideoRef
    rows: list[VideoRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    leases: int = 0

    def register(self, worker_id: str) -> None: ...

    def ready(self, worker_id: str) -> None: ...

    def exchange(self, worker_id: str, message: Message) -> Reply:
        self.rows += message.rows
        self.failures += message.failures
        if message.wanted is None:
            return Reply(True)
        self.leases += 1
        lease = Lease("1", worker_id, (LeasedVideo(self.ref, 1),)) if self.leases == 1 else None
        return Reply(True, (), LeaseReply(lease, done=lease is None))

    def leave(self, worker_id: str) -> None: ...


@contextmanager
def _watching(pool: DecodePool) -> Iterator[dict[str, int]]:
    """The most that a decode child ever held, and pixels in flight, looked at now and then."""
    seen = {"child_peak_bytes": 0, "in_flight_peak_bytes": 0}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            peaks = map(peak_resident_bytes, pool.child_pids)
            seen["child_peak_bytes"] = max([seen["child_peak_bytes"], *peaks])
            seen["in_flight_peak_bytes"] = max(seen["in_flight_peak_bytes"], pool.bytes_in_flight)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _work(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What the process of a worker does, and what it took; run in a process of its own."""
    config = load_config(None, overrides)
    torch.set_num_threads(config.workers.threads or 1)
    indexer = load_indexer(config, run_id="bench")
    end = _LARGE_SECONDS if config.model.engine else None
    coordinator = LastVideo(VideoRef("long", path, "1", os.path.getsize(path), end_seconds=end))
    run = Run("bench", "0" * 16, "bench", os.getpid())
    forget_peak()
    loaded = status_bytes("VmRSS")
    began = time.monotonic()
    with DecodePool(config.decoding, indexer.frame_request, config.windows) as pool, _watching(pool) as seen:
        Worker("w", run, coordinator, indexer, pool, lease_videos=1, decode_ahead=2).work()
    peak = max(status_bytes("VmHWM"), status_bytes("VmRSS"))
    if coordinator.failures or len(coordinator.rows) != 1:
        raise RuntimeError(f"the video has no row: {coordinator.failures}")
    row = coordinator.rows[0]
    return {
        "windows": len(row.segments),
        "frames": row.num_frames,
        "frame_bytes": indexer.frame_request.max_bytes,
        "duration_seconds": row.duration_seconds,
        "decoder": row.decoder,
        "seconds": time.monotonic() - began,
        "row_bytes": len(json.dumps(asdict(row))),
        "loaded_bytes": loaded,
        "worker_peak_bytes": peak,
        "worker_growth_bytes": peak - loaded,
        **seen,
        "bytes_in_flight_limit": config.decoding.bytes_in_flight,
    }


def measure(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Index one video in a fresh process. Raises CalledProcessError where that fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.long_worker", "--child", json.dumps([str(path), list(overrides)])],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _cases(window_seconds: float, threads: int) -> dict[str, list[str]]:
    common = ["corpus.uri=x", "output.uri=x", "workers.num_gpus=0", f"workers.threads={threads}"]
    windows = [f"windows.length_seconds={window_seconds:g}"]
    demo = [
        *common,
        "model.name=demo/model",
        "model.dtype=float32",
        "compression.expansion=1.0",
        "compression.llm_retention_ratio=1.0",
        "frames.baseline=8",
        "frames.min_pixels=28224",
        "frames.max_pixels=28224",
        "prompts.caption=describe this video .",
        "prompts.caption_max_new_tokens=64",
        "prompts.questions=['what flashes ?']",
        "prompts.answer_max_new_tokens=24",
    ]
    large = [*common, "model.name=none", "model.engine=benchmarks.long_worker:pixel_reader"]
    return {
        "demo, windows": demo + windows,
        "demo, whole": demo,
        "large, windows": large + windows,
        "large, whole": large,
    }


def _table(cases: Sequence[dict[str, Any]]) -> str:
    rows = [
        {
            "case": case["case"],
            "windows": case["windows"],
            "frames": case["frames"],
            "seconds": round(case["seconds"]),
            "worker beyond model MB": round(case["worker_growth_bytes"] / _MB),
            "decode child MB": round(case["child_peak_bytes"] / _MB),
            "in flight MB": round(case["in_flight_peak_bytes"] / _MB),
        }
        for case in cases
    ]
    return markdown(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the video, measure every case in a process of its own, write JSON and a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_worker", description=__doc__)
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--window-seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--video", type=Path, help="a file of your own instead of one that is made")
    parser.add_argument(
        "--cases", nargs="+", default=["demo, windows", "demo, whole", "large, windows", "large, whole"]
    )
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_work(*json.loads(options.child))))
        return
    known = _cases(options.window_seconds, options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.video or make_long_video(Path(folder) / "long.mp4", options.minutes)
        size = path.stat().st_size
        cases = [{"case": name, **measure(path.absolute(), known[name])} for name in options.cases]
    machine = machine_facts(torch.device("cpu"))
    result = {"benchmark": "long_video", "machine": machine, "video_bytes": size, "cases": cases}
    save(result, _table(cases), options.output)


if __name__ == "__main__":
    main()
