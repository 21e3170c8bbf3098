"""A Qwen2.5-VL small enough for unit tests: the real class, random weights, a real tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from packaging.version import Version
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import (
    Cache,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from flashvid.frames import VisionSettings
from flashvid.inside.calls import library_version

VISION = VisionSettings(min_pixels=28 * 28, max_pixels=168 * 168)
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = (
    "system",
    "user",
    "assistant",
    "what",
    "flashes",
    "when",
    "where",
    "a",
    "red",
    "circle",
    "moves",
    ".",
    "?",
)
WORDS += tuple(f"word{index}" for index in range(63 - len(SPECIAL) - len(WORDS)))
WORDS += ("abcdef",)  # with which the library tries tokenizers out when there are stop strings
VOCABULARY = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
IMAGE, VIDEO = VOCABULARY["<|image_pad|>"], VOCABULARY["<|video_pad|>"]
VISION_START, VISION_END = VOCABULARY["<|vision_start|>"], VOCABULARY["<|vision_end|>"]
END = VOCABULARY["<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def cache_among(named: Mapping[str, Any]) -> Any:
    """The key-value cache of an output or of a call's keywords, whatever its name; None for none."""
    found = [value for value in named.values() if isinstance(value, Cache)]
    assert len(found) <= 1
    return found[0] if found else None


def skip_where_refused(settings: Mapping[str, Any]) -> None:
    """Before transformers 5.18 features go among the embeddings of the text, which takes a cache."""
    if settings.get("use_cache") is False and library_version() < Version("5.18"):
        pytest.skip("use_cache=False is refused with this version, as test_arguments.py shows")


def tiny_model(
    attn_implementation: str = "sdpa", seed: int = 0, num_layers: int = 5
) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights, large enough that attention is far from uniform; a model of the caller's own."""
    torch.manual_seed(seed)
    return copy.deepcopy(_made(attn_implementation, seed, num_layers))


@cache
def _made(attn_implementation: str, seed: int, num_layers: int) -> Qwen2_5_VLForConditionalGeneration:
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "num_heads": 4,
            "intermediate_size": 256,
            "out_hidden_size": 192,
            "window_size": 56,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
        text_config={
            "vocab_size": len(VOCABULARY),
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]},
            "bos_token_id": 0,
            "eos_token_id": END,
            "pad_token_id": 0,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        attn_implementation=attn_implementation,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / fan_in**0.5)
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = 0
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words separated by white space; special tokens as in Qwen's chat format."""
    tokenizer = Tokenizer(WordLevel(dict(VOCABULARY), unk_token="."))
    tokenizer.pre_tokenizer = Split(Regex(r"\s+"), behavior="removed")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def random_frames(num_frames: int, height: int = 112, width: int = 84, seed: int = 0) -> Tensor:
    """Blocky colour noise that drifts slowly: (T, H, W, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 14, width // 14, generator=generator)
    steps = 0.15 * torch.randn(num_frames, 3, height // 14, width // 14, generator=generator)
    clip = (coarse + steps.cumsum(0)).clamp(0, 1)
    return (clip.repeat_interleave(14, 2).repeat_interleave(14, 3) * 255).byte().permute(0, 2, 3, 1)


def text_ids(length: int, seed: int = 0) -> list[int]:
    """Random plain words."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), len(VOCABULARY), (length,), generator=generator).tolist()


def prompt_of(*parts: int | tuple[str, int]) -> list[int]:
    """Ids of a prompt: an int is that many words, ("video", n) or ("image", n) n placeholders."""
    ids: list[int] = []
    for seed, part in enumerate(parts):
        if isinstance(part, int):
            ids += text_ids(part, seed)
        else:
            kind, count = part
            ids += [VISION_START, *[VIDEO if kind == "video" else IMAGE] * count, VISION_END]
    return ids


def hooks_of(model: torch.nn.Module) -> int:
    """Number of hooks anywhere on the model."""
    names = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, name)) for module in model.modules() for name in names)


def fingerprint(model: torch.nn.Module) -> dict[str, Any]:
    """Everything a careless wrapper could change: classes, attributes by identity, hooks, values."""
    state: dict[str, Any] = {"hooks": hooks_of(model)}
    for name, module in model.named_modules():
        state[f"{name}:class"] = type(module)
        state[f"{name}:methods"] = {key: id(value) for key, value in vars(type(module)).items()}
        state[f"{name}:attributes"] = {
            key: id(value) for key, value in vars(module).items() if not key.startswith("_")
        }
    for name, parameter in model.named_parameters():
        state[f"{name}:value"] = (
            id(parameter),
            float(parameter.detach().double().sum()),
            parameter.requires_grad,
        )
    return state
