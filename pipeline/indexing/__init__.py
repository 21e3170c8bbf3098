"""How do one video's frames become one row?

In: Frames of a video, window by window. Out: a VideoRow with its caption and answers, or a VideoError. Knows
neither Ray nor files. Start with indexer.py; engines.py says what an engine has to offer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from pipeline.indexing.engines import AnswersVideos
    from pipeline.indexing.indexer import VideoIndexer, has_gpu, load_indexer
    from pipeline.indexing.revisions import resolve_revision
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "engines": ["AnswersVideos"],
            "indexer": ["VideoIndexer", "has_gpu", "load_indexer"],
            "revisions": ["resolve_revision"],
        },
    )

__all__ = ["AnswersVideos", "VideoIndexer", "has_gpu", "load_indexer", "resolve_revision"]
