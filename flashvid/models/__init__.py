"""What is particular to one family of models?

In: a transformers model, or the name of a checkpoint. Out: an adapter that encodes frames to visual tokens
with their saliency and lays out features; the only files that import transformers. Start with
qwen2_5_vl.py; registry.py says which model gets which adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from flashvid.models.checkpoint import CheckpointError, check_files
    from flashvid.models.encoded import EncodedVideo, needs_saliency
    from flashvid.models.loading import LoadedModel, load_model
    from flashvid.models.qwen2_5_vl import Qwen25VLAdapter
    from flashvid.models.registry import adapter_for
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "checkpoint": ["CheckpointError", "check_files"],
            "encoded": ["EncodedVideo", "needs_saliency"],
            "loading": ["LoadedModel", "load_model"],
            "qwen2_5_vl": ["Qwen25VLAdapter"],
            "registry": ["adapter_for"],
        },
    )

__all__ = [
    "CheckpointError",
    "EncodedVideo",
    "LoadedModel",
    "Qwen25VLAdapter",
    "adapter_for",
    "check_files",
    "load_model",
    "needs_saliency",
]
