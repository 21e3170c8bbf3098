"""One adapter per model family; everything transformers-specific is behind it."""

from __future__ import annotations

from typing import Any

from flashvid.models.encoded import EncodedVideo, needs_saliency
from flashvid.models.loading import LoadedModel, load_model
from flashvid.models.qwen2_5_vl import Qwen25VLAdapter

__all__ = ["EncodedVideo", "LoadedModel", "Qwen25VLAdapter", "adapter_for", "load_model", "needs_saliency"]


def adapter_for(model: Any) -> Qwen25VLAdapter:
    """The adapter of a model's family. Raises TypeError, naming what is supported, for any other model."""
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family != "qwen2_5_vl" or not hasattr(model, "lm_head"):
        raise TypeError(
            f"{type(model).__name__} ({family=}) is not supported; "
            "pass a transformers Qwen2_5_VLForConditionalGeneration"
        )
    return Qwen25VLAdapter(model)
