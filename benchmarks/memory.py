"""How much the process grows during one compress(): run in a process of its own."""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.clips import Kind, make_features, make_saliency
from flashvid import FlashVidConfig, compress

__all__ = ["forget_peak", "resident_growth_bytes", "status_bytes"]

_ROOT = Path(__file__).resolve().parent.parent


def resident_growth_bytes(
    kind: Kind, units: int, tokens: int, width: int, *, retention: float, dtype: str, threads: int
) -> int:
    """Most resident bytes of a fresh process during compress(), less those just before: CPU, Linux only.

    Sees what torch's operations hide: workspaces inside kernels and what the allocator does not give back.
    """
    clip = {"kind": kind, "units": units, "tokens": tokens, "width": width, "dtype": dtype}
    arguments = json.dumps({"clip": clip, "retention": retention, "threads": threads})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", arguments],
        cwd=_ROOT,
        stdout=subprocess.PIPE,  # its errors go where ours go
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def _measure(clip: dict[str, Any], retention: float, threads: int) -> int:
    torch.set_num_threads(threads)
    config = FlashVidConfig(retention_ratio=retention)
    features = make_features(**clip | {"dtype": getattr(torch, clip["dtype"])})
    saliency = make_saliency(*features.shape[:2])
    warm = min(len(features), 2)
    compress(features[:warm], saliency[:warm], config)  # loads the libraries
    ctypes.CDLL(None).malloc_trim(0)
    forget_peak()
    before = status_bytes("VmRSS")
    compress(features, saliency, config)
    return max(status_bytes("VmHWM"), status_bytes("VmRSS")) - before


def forget_peak() -> None:
    """Sets the kernel's high-water mark to the present size; the mark must not predate the call."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if peak > status_bytes("VmRSS") * 1.02:
            raise RuntimeError(
                "the high-water mark cannot be reset here, and it is above the present size"
            ) from None


def status_bytes(field: str) -> int:
    """A size in this process's status, e.g. VmRSS or VmHWM. Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(_measure(**json.loads(sys.argv[1])))
