"""Loading a checkpoint: the model, its tokenizer and how it wants its frames."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.utils import cached_file

from flashvid.frames import VisionSettings

__all__ = ["LoadedModel", "load_model"]

_CLASSES: dict[str, Any] = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}


@dataclass(frozen=True)
class LoadedModel:
    """A model, its tokenizer and how it wants its frames."""

    model: Any
    tokenizer: Any
    vision: VisionSettings


def load_model(
    name_or_path: str,
    *,
    device: str,
    dtype: str,
    revision: str | None,
    attn_implementation: str | None,
) -> LoadedModel:
    """Load model, tokenizer and vision settings from a folder or the hub.

    Raises TypeError for another family, OSError where nothing is found."""
    where = {} if revision is None else {"revision": revision}
    config = AutoConfig.from_pretrained(name_or_path, **where)
    if config.model_type not in _CLASSES:
        raise TypeError(f"{name_or_path} holds a {config.model_type} model; supported: {', '.join(_CLASSES)}")
    model = _CLASSES[config.model_type].from_pretrained(
        name_or_path, dtype=dtype, attn_implementation=attn_implementation, **where
    )
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, **where)
    return LoadedModel(model.to(device).eval(), tokenizer, _load_vision(name_or_path, where))


def _load_vision(name_or_path: str, where: Mapping[str, str]) -> VisionSettings:
    """Video settings if the checkpoint has them, else image settings, else the library's video defaults."""
    nested = _read_json(name_or_path, "processor_config.json", where)
    for found in (
        _read_json(name_or_path, "video_preprocessor_config.json", where),
        nested.get("video_processor"),
    ):
        if found:
            return VisionSettings.from_processor(found)
    found = nested.get("image_processor") or _read_json(name_or_path, "preprocessor_config.json", where)
    return VisionSettings.from_processor(found, for_images=True)


def _read_json(name_or_path: str, filename: str, where: Mapping[str, str]) -> dict[str, Any]:
    path = cached_file(
        name_or_path,
        filename,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        **where,
    )
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        return dict(json.load(file))
