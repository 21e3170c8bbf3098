"""How do one video's frames become one row?

In: Frames of a video, window by window. Out: a VideoRow with its caption and answers, or a VideoError. Knows
neither Ray nor files. Start with indexer.py; engine_interface.py says what an engine has to offer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from pipeline.indexing.engine_interface import AnswersVideos
    from pipeline.indexing.indexer import VideoIndexer, has_gpu, load_indexer
    from pipeline.indexing.model_revision import check_model, resolve_revision, unknown_revision
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "engine_interface": ["AnswersVideos"],
            "indexer": ["VideoIndexer", "has_gpu", "load_indexer"],
            "model_revision": ["check_model", "resolve_revision", "unknown_revision"],
        },
    )

__all__ = [
    "AnswersVideos",
    "VideoIndexer",
    "check_model",
    "has_gpu",
    "load_indexer",
    "resolve_revision",
    "unknown_revision",
]
