"""What is there to index?

In: corpus.uri, a folder, prefix, glob, manifest or tar shards. Out: a stream of VideoRef, one per video, with
stable ids and content versions; no video is opened. Start with listing.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from pipeline.corpus.entries import PassedOver
    from pipeline.corpus.listing import list_videos
    from pipeline.corpus.shard_index import IndexCache
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "entries": ["PassedOver"],
            "listing": ["list_videos"],
            "shard_index": ["IndexCache"],
        },
    )

__all__ = ["IndexCache", "PassedOver", "list_videos"]
