"""How does a video become text?

In: frames and prompts, or the arguments of a model's own `generate`. Out: texts with counts of tokens and
seconds. Start with engine.py (one video, many prompts) or wrapper.py (`generate` of a wrapped model).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from flashvid.generation.answers import PROMPTS_PER_BATCH, Generation, VideoAnswers, VideoInput
    from flashvid.generation.engine import Engine
    from flashvid.generation.reports import GenerationReport, VideoReport
    from flashvid.generation.wrapper import FlashVidModel, flashvid
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "answers": ["Generation", "PROMPTS_PER_BATCH", "VideoAnswers", "VideoInput"],
            "engine": ["Engine"],
            "reports": ["GenerationReport", "VideoReport"],
            "wrapper": ["FlashVidModel", "flashvid"],
        },
    )

__all__ = [
    "PROMPTS_PER_BATCH",
    "Engine",
    "FlashVidModel",
    "Generation",
    "GenerationReport",
    "VideoAnswers",
    "VideoInput",
    "VideoReport",
    "flashvid",
]
