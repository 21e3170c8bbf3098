"""Real float32 products, whatever the caller has switched on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["full_precision"]

# torch keeps these switches for the whole process. So the first thread to come sets them and the last to go
# puts them back; a product of somebody else's meanwhile is at most more precise than asked for.
_LOCK = threading.Lock()
_INSIDE = 0
_BEFORE: list[tuple[Any, str]] = []
_BEFORE_LEGACY = "highest"


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside the ``with`` neither autocast nor TF32 may decide which tokens are kept; for any thread."""
    with torch.autocast(device.type, enabled=False):
        _enter()
        try:
            yield
        finally:
            _leave()


def _enter() -> None:
    global _INSIDE, _BEFORE, _BEFORE_LEGACY
    with _LOCK:
        _INSIDE += 1
        if _INSIDE > 1:
            return
        _BEFORE = [(switch, switch.fp32_precision) for switch in _switches()]
        _BEFORE_LEGACY = _legacy_precision()
        torch.set_float32_matmul_precision("highest")  # sets the newer switches as well


def _leave() -> None:
    global _INSIDE
    with _LOCK:
        _INSIDE -= 1
        if _INSIDE > 0:
            return
        torch.set_float32_matmul_precision(_BEFORE_LEGACY)
        for switch, value in _BEFORE:
            switch.fp32_precision = value


def _switches() -> list[Any]:
    backends = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    return [backend for backend in backends if hasattr(backend, "fp32_precision")]


def _legacy_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # raised where a caller has used the newer switches, so the old one is untouched
        return "highest"
