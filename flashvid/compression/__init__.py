"""Which visual tokens stay?

In: one video's tokens (T, N, D) and their saliency. Out: a CompressionPlan, which is indices only, and,
applied to the tokens, a CompressedVideo. Stages in the order of the paper: segments, selection (ADTS),
merging (TSTM), filling (DPC-kNN). Start with plan.py, which puts the stages together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from flashvid.compression.checks import check_config
    from flashvid.compression.plan import CompressedVideo, CompressionPlan, compress, plan_compression
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "checks": ["check_config"],
            "plan": ["CompressedVideo", "CompressionPlan", "compress", "plan_compression"],
        },
    )

__all__ = ["CompressedVideo", "CompressionPlan", "check_config", "compress", "plan_compression"]
