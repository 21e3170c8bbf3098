"""Qwen2.5-VL with random weights, made on its device in its dtype; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

__all__ = ["SIZES", "ModelSize", "random_model"]


@dataclass(frozen=True)
class ModelSize:
    """The numbers that give a model its size; `inner` is the width of a feed-forward layer."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    inner: int
    vocabulary: int
    rope_sections: tuple[int, int, int]
    tower_depth: int
    tower_hidden: int
    tower_heads: int
    tower_inner: int
    full_attention: tuple[int, ...]
    window: int = 112


# Each ends its vocabulary with 8 ids of its own for special tokens.
SIZES: dict[str, ModelSize] = {
    # that of Qwen2.5-VL-7B-Instruct
    "7b": ModelSize(28, 3584, 28, 4, 18944, 152064, (16, 24, 24), 32, 1280, 16, 3420, (7, 15, 23, 31)),
    # small enough for a CPU: the script runs, the times mean nothing
    "tiny": ModelSize(4, 128, 4, 2, 256, 512, (8, 4, 4), 4, 64, 2, 128, (1, 3)),
}


def random_model(size: ModelSize, *, device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """The real class with random weights of `size`, in evaluation mode.

    Parameters are born on `device` in `dtype`, so a 7B model needs neither host memory nor a copy.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(_config(size), dtype=dtype)
    model.generation_config.eos_token_id = None  # a random model would stop anywhere
    model.generation_config.pad_token_id = size.vocabulary - 1
    return model.eval()


def _config(size: ModelSize) -> Qwen2_5_VLConfig:
    special = size.vocabulary - 8
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": size.tower_depth,
            "hidden_size": size.tower_hidden,
            "num_heads": size.tower_heads,
            "intermediate_size": size.tower_inner,
            "out_hidden_size": size.hidden,
            "window_size": size.window,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "fullatt_block_indexes": list(size.full_attention),
            "tokens_per_second": 2,
        },
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.key_value_heads,
            "max_position_embeddings": 128000,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": list(size.rope_sections),
            },
            "bos_token_id": size.vocabulary - 2,
            "eos_token_id": size.vocabulary - 3,
            "pad_token_id": size.vocabulary - 1,
        },
        image_token_id=special,
        video_token_id=special + 1,
        vision_start_token_id=special + 2,
        vision_end_token_id=special + 3,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
