"""A video of hours through the decode pool in windows: seconds per window, and peak memory of each process.

``python -m benchmarks.long_video -o out/bench/long_video.json``. The video is made here: one minute is
encoded, and its packets written again and again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.config import DecodingConfig, WindowsConfig
from pipeline.decoding import Decoded, DecodePool, FrameRequest
from pipeline.records import VideoRef

__all__ = ["main", "make_long_video", "measure_pool", "peak_resident_bytes"]


def make_long_video(
    path: Path, minutes: int, *, width: int = 1280, height: int = 720, fps: int = 24, gop: int = 48
) -> Path:
    """An H.264 file of that many minutes, 60 x ``fps`` frames each, with B-frames; the minutes look alike.

    The container goes by the suffix. One minute of 1280x720 takes some 20 s of one core, another 0.02 s.
    """
    with tempfile.TemporaryDirectory() as folder:
        minute = Path(folder) / "minute.mp4"
        _encode_minute(minute, width, height, fps, gop)
        with av.open(str(minute)) as source:
            packets = [packet for packet in source.demux(video=0) if packet.size]
            _write_copies(path, source.streams.video[0], packets, minutes)
    return path


def _encode_minute(path: Path, width: int, height: int, fps: int, gop: int) -> None:
    """A bright square that crosses a slowly changing background."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "superfast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", gop
        for index in range(60 * fps):
            luma = ((across + down) // 8 + index // 4).astype(np.uint8)
            left = index * (width - 64) // (60 * fps)
            luma[height // 3 : height // 3 + 64, left : left + 64] = 235
            picture = np.full((height * 3 // 2, width), 128, np.uint8)
            picture[:height] = luma
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "yuv420p")))
        container.mux(stream.encode())


def _write_copies(path: Path, template: Any, packets: Sequence[Any], minutes: int) -> None:
    base = template.time_base
    minute = int(60 / base)
    data = [
        (bytes(packet), packet.pts, packet.dts, packet.duration, packet.is_keyframe) for packet in packets
    ]
    with av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(template)
        for number in range(minutes):
            for content, pts, dts, duration, is_key in data:
                packet = av.Packet(content)
                packet.pts, packet.dts = pts + number * minute, dts + number * minute
                packet.duration, packet.is_keyframe = duration, is_key
                packet.time_base, packet.stream = Fraction(base), stream
                container.mux(packet)


def peak_resident_bytes(pid: int | str = "self") -> int:
    """The most memory that a process has ever held at one moment; 0 where it is gone or not on Linux."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    lines = [line.split() for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else 0


def measure_pool(
    path: Path,
    config: DecodingConfig,
    request: FrameRequest,
    windows: WindowsConfig,
    *,
    most: int | None = None,
) -> dict[str, Any]:
    """Decode all windows, or the first ``most``, as fast as they are taken. Raises where a video fails."""
    before = peak_resident_bytes()
    seconds, frames, child_bytes = [], 0, 0
    with DecodePool(config, request, windows) as pool:
        while not pool.child_pids:
            time.sleep(0.01)
        last = time.monotonic()
        pool.submit(VideoRef("long", str(path), "1", 0))
        while True:
            part = _next(pool)
            now = time.monotonic()
            seconds.append(now - last)
            last = now
            assert part.frames is not None, "an error was raised"
            frames += len(part.frames.data)
            child_bytes = max([child_bytes, *map(peak_resident_bytes, pool.child_pids)])
            if part.is_last or len(seconds) == most:
                break
    return {
        "windows": len(seconds),
        "frames": frames,
        "decoder": part.frames.decoder,
        "duration_seconds": part.frames.duration_seconds,
        "seconds": sum(seconds),
        "first_window_seconds": seconds[0],
        "other_windows_seconds_mean": float(np.mean(seconds[1:])) if seconds[1:] else None,
        "other_windows_seconds_max": max(seconds[1:], default=None),
        "child_peak_bytes": child_bytes,
        "parent_peak_bytes": peak_resident_bytes(),
        "parent_growth_bytes": peak_resident_bytes() - before,
        "bytes_in_flight_limit": config.bytes_in_flight,
    }


def _next(pool: DecodePool) -> Decoded:
    part = pool.get(600.0)
    if part is None:
        raise TimeoutError("no window for ten minutes")
    if part.error is not None:
        raise part.error
    return part


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--window-seconds", type=float, default=60.0)
    parser.add_argument("--most-windows", type=int, help="stop after so many")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--max-pixels", type=int, default=256 * 28 * 28)
    parser.add_argument("--bytes-in-flight", type=int, default=DecodingConfig().bytes_in_flight)
    parser.add_argument("--decoders", nargs="+", default=["pyav", "decord"])
    parser.add_argument("--video", type=Path, help="a file of your own instead of one that is made")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the video, measure, print or write JSON."""
    options = _parse(arguments)
    request = FrameRequest("uniform", options.frames, 2.0, 28 * 28, options.max_pixels)
    config = DecodingConfig(decoders=tuple(options.decoders), bytes_in_flight=options.bytes_in_flight)
    windows = WindowsConfig(length_seconds=options.window_seconds)
    with tempfile.TemporaryDirectory() as folder:
        path = options.video or make_long_video(Path(folder) / "long.mp4", options.minutes)
        result = measure_pool(path, config, request, windows, most=options.most_windows)
        result = {"video_bytes": path.stat().st_size, **result}
    text = json.dumps(result, indent=2)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
