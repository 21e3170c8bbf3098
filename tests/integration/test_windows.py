"""A worker with real decode children over long and broken videos; only the model is a stand-in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline.cluster.protocol import Run
from pipeline.cluster.worker import Worker
from pipeline.config.job import JobConfig
from pipeline.config.sections import DecodingConfig
from pipeline.decoding.pool import DecodePool
from pipeline.indexing.indexer import VideoIndexer
from pipeline.output.store import OutputStore
from pipeline.records import VideoRef
from tests import media
from tests.unit.cluster.test_coordination import failures_in, open_run, rows_in
from tests.unit.engines import PlainEngine
from tests.unit.samples import FINGERPRINT


def config() -> JobConfig:
    return JobConfig.model_validate(
        {
            "corpus": {"uri": "videos"},
            "output": {"uri": "index"},
            "model": {"name": "any", "engine": "tests.unit.engines:made"},
            "frames": {"baseline": 4, "multiplier": 1, "min_pixels": 784, "max_pixels": 784},
            "windows": {"length_seconds": 2, "overlap_seconds": 0.5},
            "prompts": {"caption": "red ?", "questions": ["when ?"]},
        }
    )


def ref_of(path: Path, **more: Any) -> VideoRef:
    return VideoRef(path.stem, path.as_uri(), "v1", path.stat().st_size, **more)


def work(output: Path, refs: list[VideoRef], engine: PlainEngine) -> DecodePool:
    """Index the videos, and give the pool as the worker left it."""
    job = config()
    indexer = VideoIndexer(engine, job, model_revision="engine", run_id="run-1")
    run = open_run(output)
    run.register("w")
    run.ready("w")
    run.list_corpus(refs)
    names = Run("run-1", FINGERPRINT, "engine", os.getpid())
    with DecodePool(DecodingConfig(processes=2), indexer.frame_request, job.windows) as pool:
        Worker("w", names, run, indexer, pool, lease_videos=4, decode_ahead=3).work()
        held = (pool.pending, pool.bytes_in_flight)
    assert run.finish().exit_status == 0
    assert held == (0, 0), "nothing is left in the pool"
    return pool


def test_each_window_sees_its_own_part_of_the_video(tmp_path: Path) -> None:
    """Red rises from 16 to 240 over the video, and the engine says how red a window begins."""
    paths = [tmp_path / f"video{number}.mp4" for number in range(3)]
    for path in paths:
        media.write_video(path, num_frames=64)  # 8 seconds
    refs = [*map(ref_of, paths[:2]), ref_of(paths[2], start_seconds=2.0, end_seconds=5.0)]
    work(tmp_path / "out", refs, PlainEngine())
    rows = {
        row["video_id"]: row for row in OutputStore(str(tmp_path / "out")).iter_rows(["video_id", "segments"])
    }
    assert sorted(rows) == ["video0", "video1", "video2"]
    times = {
        name: [(s["start_seconds"], s["end_seconds"]) for s in row["segments"]] for name, row in rows.items()
    }
    whole = [(0, 2), (1.5, 3.5), (3, 5), (4.5, 6.5), (6, 8)]
    assert times == {"video0": whole, "video1": whole, "video2": [(2, 4), (3.5, 5)]}
    for name, row in rows.items():
        for segment in row["segments"]:
            red = int(segment["caption"].split()[-1])
            first = (red - 16) / 224 * 8
            assert segment["start_seconds"] - 0.2 < first < segment["start_seconds"] + 0.6, name
    assert all(len(segment["answers"]) == 1 for row in rows.values() for segment in row["segments"])


def test_a_video_that_fails_half_way_is_one_failure_and_leaves_nothing_behind(tmp_path: Path) -> None:
    class Fussy(PlainEngine):
        def answer(self, video: Any, prompts: Any, **more: Any) -> Any:
            if len(self.calls) == 2:
                self.calls.append((0, None))
                raise ValueError("no more of this")
            return super().answer(video, prompts, **more)

    paths = [tmp_path / f"video{number}.mp4" for number in range(3)]
    for path in paths:
        media.write_video(path, num_frames=64)  # 8 seconds, 5 windows
    work(tmp_path / "out", list(map(ref_of, paths)), Fussy())
    failures = failures_in(tmp_path / "out")
    assert [(reason, final) for _, reason, final in failures] == [("generation_failed", True)]
    assert len(rows_in(tmp_path / "out")) == 2
    assert {*rows_in(tmp_path / "out"), failures[0][0]} == {"video0", "video1", "video2"}


def test_broken_files_are_failures_with_windows_too(tmp_path: Path) -> None:
    good, broken = tmp_path / "good.mp4", tmp_path / "text.mp4"
    media.write_video(good)
    broken.write_text("this is no video\n" * 20)
    cut = media.truncated_video(tmp_path / "cut.mp4", share=0.5, index_first=False)
    work(tmp_path / "out", list(map(ref_of, (good, broken, cut))), PlainEngine())
    assert rows_in(tmp_path / "out") == ["good"]
    assert sorted((name, final) for name, _, final in failures_in(tmp_path / "out")) == [
        ("cut", True),
        ("text", True),
    ]


def test_a_file_that_ends_early_says_so_once_in_its_row(tmp_path: Path) -> None:
    cut = media.truncated_video(tmp_path / "cut.mp4", share=0.6, index_first=True)
    work(tmp_path / "out", [ref_of(cut)], PlainEngine())
    (row,) = OutputStore(str(tmp_path / "out")).iter_rows(["degraded", "segments", "duration_seconds"])
    assert row["degraded"].count("ends at") == 1
    assert len(row["segments"]) > 5
    assert row["segments"][-1]["end_seconds"] < 25, "windows end where the video does"
