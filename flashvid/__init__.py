"""FlashVID: keeps a tenth of a video's visual tokens without training (ICLR 2026, arXiv 2602.08024)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flashvid.config import FlashVidConfig
from flashvid.profiles import profile

if TYPE_CHECKING:
    from flashvid.compression import CompressedVideo, CompressionPlan, compress, plan_compression
    from flashvid.wrapper import FlashVidModel, flashvid

__all__ = [
    "CompressedVideo",
    "CompressionPlan",
    "FlashVidConfig",
    "FlashVidModel",
    "compress",
    "flashvid",
    "plan_compression",
    "profile",
]

# torch and transformers take seconds to import; whoever only reads a configuration need not wait for them
_MODULE_OF = {
    "CompressedVideo": "flashvid.compression",
    "CompressionPlan": "flashvid.compression",
    "FlashVidModel": "flashvid.wrapper",
    "compress": "flashvid.compression",
    "flashvid": "flashvid.wrapper",
    "plan_compression": "flashvid.compression",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
