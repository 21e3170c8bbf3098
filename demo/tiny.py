"""The small model as files: configuration, word-level tokenizer, chat template, processor settings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from demo.world import COLOURS, SHAPES

__all__ = [
    "MAX_SECOND",
    "SPECIAL_TOKENS",
    "build_model",
    "build_tokenizer",
    "export",
    "save_weights",
    "tiny_config",
    "vocabulary",
]

MAX_SECOND = 99  # numbers in the vocabulary are 0 to 99
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<unk>",
)
_WORDS = """
system user assistant you are a helpful . , ? ! : ' an the and is it in this that of at to on there no not
video clip describe what which who when how many much does do did happens happen shown see thing things object
objects something anything nothing flash flashes flashing flashed event events move moves moving stay stays
still way direction where left right up down second seconds time times colour color shape kind one zero two
three yes first last brief briefly appear appears only short longer before after
"""
_VOCABULARY_MULTIPLE = 64
_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif -%}"
    "{%- for message in messages -%}<|im_start|>{{ message['role'] }}\n"
    "{%- if message['content'] is string -%}{{ '\n' + message['content'] }}"
    "{%- else -%}{{ '\n' }}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part['type'] == 'video' or 'video' in part -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def vocabulary() -> dict[str, int]:
    """Token -> id: special tokens, words, numbers, padded to a multiple of 64 with unused entries."""
    words = [*SPECIAL_TOKENS, *COLOURS, *SHAPES, *_WORDS.split()]
    entries = list(dict.fromkeys(words)) + [str(number) for number in range(MAX_SECOND + 1)]
    while len(entries) % _VOCABULARY_MULTIPLE:
        entries.append(f"<unused_{len(entries)}>")
    return {entry: index for index, entry in enumerate(entries)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer: lower case, punctuation apart, white space separates, unknown words are <unk>."""
    inner = Tokenizer(WordLevel(vocabulary(), unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]+|[^\sa-z0-9]"), "removed", invert=True)
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    extra = [token for token in SPECIAL_TOKENS if token not in ("<unk>", "<|endoftext|>", "<|im_end|>")]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=extra,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def tiny_config() -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's configuration at 3.2 million parameters; windows of 2 x 2 merged patches at 168 pixels."""
    ids = vocabulary()
    vision = {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 192,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1, 3],
    }
    text = {
        "vocab_size": len(ids),
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    return config


def build_model() -> Qwen2_5_VLForConditionalGeneration:
    """The stock class with random weights, float32, sdpa attention."""
    config = tiny_config()
    config._attn_implementation = "sdpa"
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    return model


def export(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Write the whole checkpoint folder in Hugging Face's format; weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = vocabulary()
    build_tokenizer().save_pretrained(folder)
    config = json.loads(tiny_config().to_json_string(use_diff=False))
    config["dtype"] = "bfloat16"
    _write_json(
        folder / "config.json", {key: value for key, value in config.items() if key != "_name_or_path"}
    )
    generation: dict[str, Any] = {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "do_sample": False,
        "max_new_tokens": 48,
    }
    _write_json(folder / "generation_config.json", generation)
    processor: dict[str, Any] = {
        "min_pixels": 3136,
        "max_pixels": 28224,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    _write_json(folder / "preprocessor_config.json", processor | names)
    names = {"video_processor_type": "Qwen2VLVideoProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    _write_json(folder / "video_preprocessor_config.json", processor | names)
    save_weights(model, folder)


def save_weights(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Replace `model.safetensors` in one step, so that a reader never sees half a file."""
    state = {
        name: value.detach().to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()
    }
    temporary = folder / ".model.safetensors.tmp"
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    os.replace(temporary, folder / "model.safetensors")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
