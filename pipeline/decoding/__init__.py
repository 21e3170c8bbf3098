"""Which pictures of a video, and when?

In: a VideoRef and a FrameRequest. Out: Frames of the video or of one window after the other, at model
resolution, with their timestamps. Foreign decoders run in child processes that can be killed. Start with
pool.py; child_main.py is the other side of the pipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from pipeline.decoding.pool import Decoded, DecodePool
    from pipeline.decoding.sampling import FrameRequest
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "pool": ["DecodePool", "Decoded"],
            "sampling": ["FrameRequest"],
        },
    )

__all__ = ["DecodePool", "Decoded", "FrameRequest"]
