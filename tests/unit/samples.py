"""Plain valid values for tests; each field can be set."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from pipeline.errors import Reason, Stage
from pipeline.records import Answer, Failure, Segment, VideoRef, VideoRow

FINGERPRINT = "0123456789abcdef"


def make_ref(number: int = 0, **changes: Any) -> VideoRef:
    ref = VideoRef(f"video-{number}", f"file:///videos/{number}.mp4", f"v{number}", size_bytes=1000 + number)
    return replace(ref, **changes)


def make_row(number: int = 0, **changes: Any) -> VideoRow:
    ref = make_ref(number)
    answer = Answer("q1", "What colour?", "Red.", "stop", 3)
    row = VideoRow(
        video_id=ref.video_id,
        uri=ref.uri,
        version=ref.version,
        caption="A red square moves left.",
        caption_finish_reason="stop",
        answers=(answer,),
        segments=(Segment(0.0, 2.5, "It moves.", (answer,)),),
        duration_seconds=12.5,
        width=640,
        height=360,
        fps=25.0,
        codec="h264",
        decoder="decord",
        num_frames=160,
        baseline_frames=16,
        baseline_visual_tokens=288,
        visual_tokens_before=2880,
        visual_tokens_budget=360,
        visual_tokens_after=360,
        visual_tokens_mean=287.5,
        retention_ratio=0.1,
        output_tokens=12,
        degraded=None,
        decode_seconds=0.1,
        encode_seconds=0.2,
        compress_seconds=0.3,
        prefill_seconds=0.4,
        text_decode_seconds=0.5,
        model="demo/model",
        model_revision="abc",
        fingerprint=FINGERPRINT,
        run_id="run-1",
        attempt=1,
        indexed_at_us=int(time.time() * 1e6),
    )
    return replace(row, **changes)


def make_failure(number: int = 0, **changes: Any) -> Failure:
    ref = make_ref(number)
    failure = Failure(
        video_id=ref.video_id,
        uri=ref.uri,
        version=ref.version,
        stage=Stage.DECODING,
        reason=Reason.CORRUPT,
        message="no frames could be read",
        attempt=1,
        is_final=True,
        fingerprint=FINGERPRINT,
        run_id="run-1",
        failed_at_us=int(time.time() * 1e6),
        worker_id="worker-0",
        details={"decoder": "decord"},
    )
    return replace(failure, **changes)
