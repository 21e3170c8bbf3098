"""From a transformers configuration to the plain sizes that `flashvid.budget` reckons with."""

from __future__ import annotations

from typing import Any

import torch

from flashvid.budget import LanguageShape, ModelShape, VisionShape

__all__ = ["shape_of"]


def shape_of(config: Any, dtype: torch.dtype | None = None) -> ModelShape:
    """The sizes of a ``Qwen2_5_VLConfig``; ``dtype`` is what the model computes in, else the config's own.

    Without either it is float32, torch's default. Raises TypeError for other families, ValueError for a
    dtype of 1 or 8 bytes.
    """
    if getattr(config, "model_type", None) != "qwen2_5_vl":
        name = getattr(config, "model_type", type(config).__name__)
        raise TypeError(f"the configuration is of a {name} model; supported: qwen2_5_vl")
    text = config.text_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    language = LanguageShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=head_dim,
        intermediate=text.intermediate_size,
        vocab=text.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )
    computed = dtype or getattr(config, "dtype", None) or torch.float32
    return ModelShape(
        vision=_vision_shape(config.vision_config), language=language, bytes_per_value=computed.itemsize
    )


def _vision_shape(config: Any) -> VisionShape:
    return VisionShape(
        depth=config.depth,
        hidden=config.hidden_size,
        heads=config.num_heads,
        intermediate=config.intermediate_size,
        out=config.out_hidden_size,
        window=config.window_size,
        full_blocks=tuple(config.fullatt_block_indexes),
        patch_size=config.patch_size,
        merge_size=config.spatial_merge_size,
        temporal_patch_size=config.temporal_patch_size,
        channels=config.in_channels,
    )
