"""Which adapter a model's family has."""

from __future__ import annotations

from typing import Any

from flashvid.models.qwen2_5_vl import Qwen25VLAdapter

__all__ = ["adapter_for"]


def adapter_for(model: Any) -> Qwen25VLAdapter:
    """The adapter of a model's family. Raises TypeError, naming what is supported, for any other model."""
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family != "qwen2_5_vl" or not hasattr(model, "lm_head"):
        raise TypeError(
            f"{type(model).__name__} ({family=}) is not supported; "
            "pass a transformers Qwen2_5_VLForConditionalGeneration"
        )
    return Qwen25VLAdapter(model)
