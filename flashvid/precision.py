"""Real float32 products, whatever the caller has switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["full_precision"]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside the ``with`` neither autocast nor TF32 may decide which tokens are kept."""
    backends = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    switches: list[Any] = [backend for backend in backends if hasattr(backend, "fp32_precision")]
    before = [(switch, switch.fp32_precision) for switch in switches]
    with torch.autocast(device.type, enabled=False):
        legacy = _legacy_precision()
        torch.set_float32_matmul_precision("highest")  # sets the newer switches as well
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(legacy)
            for switch, value in before:
                switch.fp32_precision = value


def _legacy_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # raised where a caller has used the newer switches, so the old one is untouched
        return "highest"
