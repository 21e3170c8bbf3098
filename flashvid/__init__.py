"""FlashVID: keeps a tenth of a video's visual tokens without training (ICLR 2026, arXiv 2602.08024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from flashvid.compression import CompressedVideo, CompressionPlan, compress, plan_compression
    from flashvid.config import FlashVidConfig
    from flashvid.generation import FlashVidModel, flashvid
    from flashvid.profiles import profile
else:  # torch and transformers take seconds to import; whoever only reads a configuration need not wait
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submodules=["budget", "config", "engine", "frames", "models", "profiles"],
        submod_attrs={
            "compression": ["CompressedVideo", "CompressionPlan", "compress", "plan_compression"],
            "config": ["FlashVidConfig"],
            "generation": ["FlashVidModel", "flashvid"],
            "profiles": ["profile"],
        },
    )

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
