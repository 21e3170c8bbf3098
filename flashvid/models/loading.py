"""Loading a checkpoint: the model, its tokenizer and how it wants its frames.

No code of a checkpoint's own is run, or asked for.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig, Qwen2_5_VLForConditionalGeneration
from transformers.utils import cached_file

from flashvid.frames import VisionSettings
from flashvid.models.checkpoint import (
    ADAPTER,
    FAMILIES,
    CheckpointError,
    check_files,
    check_tensors,
    refuse_adapter,
    weight_files,
)

__all__ = ["LoadedModel", "load_model"]

_CLASSES: dict[str, Any] = dict(zip(FAMILIES, (Qwen2_5_VLForConditionalGeneration,), strict=True))
_TEMPLATES = ("chat_template.json", "processor_config.json")  # where processors have kept it
# The machine's, not the checkpoint's: memory, a lost device, a disk or a hub that does not answer, a package
# that is not installed.
_NOT_ITS_FAULT: tuple[type[Exception], ...] = (
    OSError,
    ImportError,
    MemoryError,
    torch.OutOfMemoryError,
    *((torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()),
)
_logger = logging.getLogger(__name__)


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

    The weights are the process's own: files that are replaced later change nothing. Raises TypeError for
    another family, CheckpointError (a ValueError) for files that are broken and for tensors that are missing
    or of another shape, OSError where nothing is found.
    """
    if os.path.isdir(name_or_path):
        check_files(Path(name_or_path))
    where: dict[str, Any] = {"trust_remote_code": False}
    where |= {} if revision is None else {"revision": revision}
    with _reading(name_or_path, "config.json", where):
        model_class = _class_of(name_or_path, where)
        if (adapter := _cached(name_or_path, ADAPTER, where)) is not None:
            refuse_adapter(Path(adapter))
    with _reading(name_or_path, _weights_text(name_or_path), where):
        model = _model(model_class, name_or_path, dtype, attn_implementation, where)
    with _reading(name_or_path, "its tokenizer", where):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **where)
        _check_vocabulary(name_or_path, tokenizer, model)
        tokenizer.chat_template = tokenizer.chat_template or _template(name_or_path, where)
    with _reading(name_or_path, "how it wants its frames", where):
        vision = _load_vision(name_or_path, where)
    return LoadedModel(_own(model.to(device).eval()), tokenizer, vision)


def _class_of(name_or_path: str, where: Mapping[str, Any]) -> Any:
    """By the family that config.json names, which is all that is looked at before."""
    config, _ = PretrainedConfig.get_config_dict(name_or_path, **where)
    family = config.get("model_type")
    if family not in _CLASSES:
        raise TypeError(f"{name_or_path!r} holds a {family} model; supported: {', '.join(FAMILIES)}")
    return _CLASSES[family]


def _weights_text(name_or_path: str) -> str:
    if not os.path.isdir(name_or_path):
        return "its weights"
    first, *others = (path.name for path in weight_files(Path(name_or_path)))
    return f"its weights ({first}{f' and {len(others)} more' if others else ''})"


def _model(
    model_class: Any,
    name_or_path: str,
    dtype: str,
    attn_implementation: str | None,
    where: Mapping[str, Any],
) -> Any:
    with _without_its_table():
        model, found = model_class.from_pretrained(
            name_or_path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else they are refused without their names
            **where,
        )
    left_out = check_tensors(
        name_or_path,
        missing=found["missing_keys"],
        mismatched=found["mismatched_keys"],
        unexpected=found["unexpected_keys"],
        takes_part=_takes_part(model),
    )
    if left_out is not None:
        _logger.warning(left_out)
    return model


def _takes_part(model: nn.Module) -> Callable[[str], bool]:
    """Whether a tensor of that name belongs to one of the model's layers, or to one more of their kind."""
    weighted = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}

    def takes_part(key: str) -> bool:
        parts = key.split(".")
        heads = {".".join(parts[:end]): parts[end] for end in range(1, len(parts))}
        return any(head in weighted or (head in lists and heads[head].isdigit()) for head in heads)

    return takes_part


@contextmanager
def _without_its_table() -> Iterator[None]:
    """transformers logs a table of all tensors that do not fit; here the first few are named."""

    def is_other(record: logging.LogRecord) -> bool:
        return record.module != "loading_report"

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@contextmanager
def _reading(name_or_path: str, what: str, where: Mapping[str, Any]) -> Iterator[None]:
    """Whatever the libraries raise for a file that they cannot read becomes a CheckpointError."""
    try:
        yield
    except Exception as error:  # tokenizers raises the bare class
        if isinstance(error, (CheckpointError, TypeError, *_NOT_ITS_FAULT)):
            raise
        _check_snapshot(name_or_path, where)
        sentence = str(error).strip().partition("\n")[0].partition(". ")[0]
        reason = f"{type(error).__name__}: {sentence}"
        raise CheckpointError(f"{name_or_path!r}: {what} cannot be read ({reason})") from error


def _check_snapshot(name_or_path: str, where: Mapping[str, Any]) -> None:
    """The files of a hub model once they have failed: which of the copies in the cache is broken."""
    path = _cached(name_or_path, "config.json", where)
    if path is not None and not os.path.isdir(name_or_path):
        check_files(Path(path).parent)


def _check_vocabulary(name_or_path: str, tokenizer: Any, model: Any) -> None:
    """Without added tokens: of those a model need not know all, and texts hold none."""
    words, rows = tokenizer.vocab_size, model.get_input_embeddings().num_embeddings
    if words > rows:
        raise CheckpointError(
            f"{name_or_path!r}: its tokenizer has {words} tokens and its model {rows}: it is of another model"
        )


@torch.no_grad()
def _own(model: Any) -> Any:
    """On the CPU tensors lie in the mapped file: who writes over it would change the model."""
    if model.device.type == "cpu":
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return model


def _template(name_or_path: str, where: Mapping[str, Any]) -> Any:
    """The chat template that older processors wrote beside the tokenizer; None where there is none."""
    for name in _TEMPLATES:
        found = _read_json(name_or_path, name, where).get("chat_template")
        if not found:
            continue
        if isinstance(found, list) and all(isinstance(one, dict) for one in found):
            found = {one.get("name"): one.get("template") for one in found}
        texts = [*found, *found.values()] if isinstance(found, dict) else [found]
        if not all(isinstance(text, str) for text in texts):
            raise CheckpointError(f"{name_or_path!r}: chat_template in {name} is no text, nor texts by name")
        return found
    return None


def _load_vision(name_or_path: str, where: Mapping[str, Any]) -> VisionSettings:
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


def _read_json(name_or_path: str, filename: str, where: Mapping[str, Any]) -> dict[str, Any]:
    path = _cached(name_or_path, filename, where)
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        return dict(json.load(file))


def _cached(name_or_path: str, filename: str, where: Mapping[str, Any]) -> str | None:
    path: str | None = cached_file(
        name_or_path,
        filename,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        revision=where.get("revision"),
    )
    return path
