"""What a caller's ``generate`` arguments mean for a prompt that is shorter than the caller's.

Lengths that count the prompt are lowered. Whatever of the caller's is called with token ids (streamer,
processors, criteria) gets the caller's own prompt in front of the new tokens, and runs without the hooks of
the pass it is called from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from flashvid.inside import UnknownCallError, library_version, restore_prompt, without_hooks

__all__ = ["GREEDY", "Arguments", "check_arguments", "check_embedded"]

# Settings for which ``generate`` needs to have been given ids and no embeddings.
_READ_THE_PROMPT = ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size")

# Before, the samples of a prompt were numbered one by one; since, by their prompt, as its beams always were.
_NUMBERED_BY_PROMPT = Version("5.24.0.dev0")

# Made here from input_ids and the pixel values.
_OURS = ("inputs", "inputs_embeds", "position_ids", "cache", "past_key_values", "mm_encoder_outputs")
# What runs the model on other ids, or in other pieces, than the prompt that was prepared.
_REFUSED: Mapping[str, str] = {
    "assistant_model": "assisted decoding crops caches by one length for all layers; leave it out",
    "prompt_lookup_num_tokens": "it looks up text in a prompt that was shortened; leave it out",
    "assistant_early_exit": "assisted decoding crops caches by one length for all layers; leave it out",
    "prefill_chunk_size": "the prompt has to enter in one piece; leave it out, compressed prompts are short",
    "token_healing": "it changes the prompt after its positions were computed; leave it out",
    "synced_gpus": "each process encodes its own videos, so they cannot keep step; load the model unsharded",
    "guidance_scale": "it runs the model on a prompt without the video; leave it out",
}
_NEUTRAL = {"guidance_scale": 1}

# Plain greedy decoding from a cache, whatever a checkpoint's generation config or its user says: sampling
# settings would be warned about, the others change how or for how long is decoded, or what comes back.
GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "return_dict_in_generate": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "min_length": 0,  # counts padding
    **dict.fromkeys(("temperature", "top_p", "top_k", "max_time", "stop_strings", "cache_implementation")),
    **{name: None for name in _REFUSED if name not in ("assistant_model", "synced_gpus")},
}


@dataclass(frozen=True)
class Arguments:
    """The keywords of one call, looked up as ``generate`` does: given, in generation_config, the model's.

    given: keywords of the call. defaults: the model's generation config. Frozen; nothing of the caller's is
    changed.
    """

    given: Mapping[str, Any]
    defaults: Any

    def value(self, name: str) -> Any:
        """The setting in force, None where nobody sets it or where a keyword unsets it."""
        if name in self.given:
            return self.given[name]
        for found in (
            getattr(self.given.get("generation_config"), name, None),
            getattr(self.defaults, name, None),
        ):
            if found is not None:
                return found
        return None

    def fitted(self, input_ids: Tensor, prompt: Tensor) -> dict[str, Any]:
        """Keywords for the model; ``input_ids`` (B, S) int64: the caller's, ``prompt`` (B, S'): the model's.

        Raises ValueError for a max_length within the caller's prompt.
        """
        short = prompt.shape[1]
        lengths = self._lengths(input_ids.shape[1], short)
        kwargs = {**self.given, **lengths}
        if (config := kwargs.get("generation_config")) is not None and lengths:
            kwargs["generation_config"] = _changed(config, lengths)
            for name in lengths.keys() - {name for name in self.given if self.given[name] is not None}:
                del kwargs[name]  # both at once are deprecated
        whole = _Whole(input_ids, short)
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = _Streamer(kwargs["streamer"], whole)
        if kwargs.get("logits_processor") is not None:
            kwargs["logits_processor"] = [_Processor(one, whole) for one in kwargs["logits_processor"]]
        if kwargs.get("stopping_criteria") is not None:
            criteria = kwargs["stopping_criteria"]
            listed = criteria if isinstance(criteria, Sequence) else [criteria]
            kwargs["stopping_criteria"] = [_Criterion(one, whole) for one in listed]
        if (allowed := kwargs.get("prefix_allowed_tokens_fn")) is not None:
            kwargs["prefix_allowed_tokens_fn"] = _Prefix(allowed, whole, prompt, self._samples())
        return kwargs

    def _samples(self) -> int:
        """Sequences per prompt that ``generate`` numbers one by one; beams of a prompt share its number."""
        if library_version() >= _NUMBERED_BY_PROMPT:
            return 1
        return 1 if (self.value("num_beams") or 1) > 1 else self.value("num_return_sequences") or 1

    def _lengths(self, prompt: int, short: int) -> dict[str, int]:
        lengths: dict[str, int] = {}
        most, least = self.value("max_length"), self.value("min_length")
        if most is not None and self.value("max_new_tokens") is None:
            if most <= prompt:
                raise ValueError(
                    f"max_length={most} must be more than the {prompt} tokens of input_ids, which it counts; "
                    "raise it or use max_new_tokens"
                )
            lengths["max_length"] = most - prompt + short
        if least and self.value("min_new_tokens") is None:
            lengths["min_length"] = max(0, least - prompt + short)
        return lengths


def check_arguments(arguments: Arguments, *, pruned: bool) -> None:
    """Raises ValueError for what cannot be given; ``pruned``: tokens are dropped inside the model."""
    for name in _OURS:
        if arguments.given.get(name) is not None:
            raise ValueError(f"{name} cannot be given: it is made here from input_ids and the pixel values")
    for name, reason in _REFUSED.items():
        value = arguments.value(name)
        if value is not None and value is not False and value != _NEUTRAL.get(name):
            shown = value if isinstance(value, int | float) else type(value).__name__
            raise ValueError(f"{name}={shown} is not supported: {reason}")
    kind = arguments.value("cache_implementation")
    if kind == "paged":
        raise ValueError("cache_implementation='paged' runs the prompt without its videos; leave it out")
    if pruned and kind not in (None, "dynamic"):
        rule = "'dynamic' while tokens are pruned inside the model; or set llm_retention_ratio=1"
        raise ValueError(f"cache_implementation={kind!r} must be {rule}")


def check_embedded(arguments: Arguments) -> None:
    """Raises ValueError for what transformers before 5.18 cannot do with features among the embeddings."""
    for name in (*_READ_THE_PROMPT, "use_cache"):
        value = arguments.value(name)
        if (value is False) if name == "use_cache" else (value is not None):
            raise ValueError(
                f"{name}={value} cannot be given with transformers {library_version()}, in which "
                "prompts with videos enter as embeddings; install transformers>=5.18 or leave it out"
            )


def _changed(config: Any, values: Mapping[str, Any]) -> Any:
    config = copy.deepcopy(config)
    for name, value in values.items():
        setattr(config, name, value)
    return config


@dataclass(frozen=True)
class _Whole:
    """Puts the caller's prompt in place of the shortened one."""

    input_ids: Tensor
    short: int

    def __call__(self, ids: Tensor) -> Tensor:
        restored: Tensor = restore_prompt(ids, self.input_ids, self.short)
        return restored

    def row(self, index: int, ids: Tensor) -> Tensor:
        """``ids`` (S,) of one sequence of prompt ``index``."""
        restored: Tensor = restore_prompt(ids[None], self.input_ids[index : index + 1], self.short)
        return restored[0]


class _Streamer:
    """The first thing ``generate`` puts in is the prompt; it becomes the caller's."""

    def __init__(self, inner: Any, whole: _Whole) -> None:
        self._inner = inner
        self._whole: _Whole | None = whole

    def put(self, value: Tensor) -> None:
        if self._whole is not None:
            value, self._whole = self._whole(value), None
        with without_hooks():
            self._inner.put(value)

    def end(self) -> None:
        with without_hooks():
            self._inner.end()


class _Processor:
    """A caller's logits processor: called with the caller's ids, (rows, S) int64."""

    def __init__(self, inner: Callable[[Tensor, Tensor], Tensor], whole: _Whole) -> None:
        self._inner = inner
        self._whole = whole

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        with without_hooks():
            return self._inner(self._whole(input_ids), scores)


class _Prefix:
    """A caller's ``prefix_allowed_tokens_fn``: called with the caller's ids, (S,) int64, of one sequence."""

    def __init__(
        self, inner: Callable[[int, Tensor], list[int]], whole: _Whole, prompt: Tensor, samples: int
    ) -> None:
        self._inner = inner
        self._whole = whole
        self._prompt = prompt
        self._samples = samples

    def __call__(self, index: int, input_ids: Tensor) -> list[int]:
        row = index // self._samples
        short = self._prompt.shape[1]
        if row >= len(self._prompt) or not torch.equal(input_ids[:short].cpu(), self._prompt[row].cpu()):
            raise UnknownCallError(
                f"transformers {library_version()} numbers the sequences that it gives to "
                f"prefix_allowed_tokens_fn in a way that is not known here: {index} is not prompt {row}; "
                "install a version that this package's requirements allow"
            )
        with without_hooks():
            return self._inner(index, self._whole.row(row, input_ids))


class _Criterion:
    """A caller's stopping criterion: called with the caller's ids, (rows, S) int64."""

    def __init__(self, inner: Callable[..., Tensor], whole: _Whole) -> None:
        self._inner = inner
        self._whole = whole

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        with without_hooks():
            return self._inner(self._whole(input_ids), scores, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """``generate`` pads finished rows where a criterion has ``eos_token_id``."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)
