"""How a model calls its own modules: read from their signatures, refused where it is not as expected.

Hooks see a module's arguments by name, and transformers renames them now and then (``past_key_values``
became ``cache`` in 5.24). A hook that does not find a name must not take that for "there is none": a mask
made for no cache is wrong without an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any, NoReturn

from packaging.version import Version
from torch import Tensor, nn

__all__ = [
    "UnknownCallError",
    "cache_name",
    "check_layer",
    "check_module",
    "forward_parameters",
    "hidden_of",
    "keyword",
    "library_version",
    "only_known",
]

_CACHE_NAMES = ("cache", "past_key_values")  # from transformers 5.24 on, before

# What a decoder layer and its attention are given: the hidden states come first, the others by name.
_LAYER_NEEDS = ("hidden_states", "attention_mask", "position_ids", "position_embeddings")
_TENSORS = frozenset((*_LAYER_NEEDS, *_CACHE_NAMES))


class UnknownCallError(TypeError):
    """A module of the model takes or is given other arguments than this project knows."""


@cache
def library_version() -> Version:
    """Of the transformers that is installed."""
    return Version(version("transformers"))


def cache_name(module: nn.Module) -> str:
    """What ``module.forward`` calls its key-value cache. Raises UnknownCallError where that is unknown."""
    found = [name for name in _CACHE_NAMES if name in forward_parameters(module)]
    if len(found) != 1:
        _refuse(type(module), f"takes a key-value cache under none of the names {', '.join(_CACHE_NAMES)}")
    return found[0]


def check_layer(
    layer: nn.Module, known: Collection[str] = ("use_cache",), parts: Collection[str] | None = None
) -> None:
    """Raises UnknownCallError for a decoder layer that takes other arguments than pruning can follow.

    Or its attention, which takes the same but for ``known``; ``parts`` as in ``check_module``.
    """
    check_module(layer, (*_LAYER_NEEDS, cache_name(layer)), known, parts)
    if (first := forward_parameters(layer)[0]) != "hidden_states":
        _refuse(type(layer), f"takes {first} first and not hidden_states")


def check_module(
    module: nn.Module,
    needed: Collection[str],
    known: Collection[str] = (),
    parts: Collection[str] | None = None,
) -> None:
    """Raises UnknownCallError unless ``forward`` has all of ``needed`` and nothing beyond ``known``.

    ``parts``: the names that the module's children must have, no more and no fewer: what is recomputed from
    some of them would leave out a further one, such as a norm on queries.
    """
    kind = type(module)
    found = forward_parameters(module)
    if missing := [name for name in needed if name not in found]:
        _refuse(kind, f"does not take {', '.join(missing)}")
    if further := [name for name in found if name not in needed and name not in known]:
        _refuse(kind, f"takes {', '.join(further)}, of which nothing is known here")
    children = {name for name, _ in module.named_children()}
    if parts is not None and children != set(parts):
        _refuse(kind, f"consists of {', '.join(sorted(children))} and not of {', '.join(sorted(parts))}")


def keyword(module: nn.Module, kwargs: Mapping[str, Any], name: str) -> Any:
    """``kwargs[name]``, which may be None but must be there. Raises UnknownCallError."""
    if name not in kwargs:
        _refuse(type(module), f"was called without {name}, with {', '.join(kwargs) or 'no keywords'}")
    return kwargs[name]


def hidden_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states, which alone may be given without a name: (B, S, D), in a tower (S, D), float dtype.

    Raises UnknownCallError where more than one argument has no name.
    """
    if len(args) > 1:
        _refuse(type(module), f"was called with {len(args)} arguments without a name, need at most 1")
    hidden: Tensor = args[0] if args else keyword(module, kwargs, "hidden_states")
    return hidden


def only_known(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Raises UnknownCallError where a decoder layer is given tensors that would have to be cut as well."""
    for name, value in kwargs.items():
        if name not in _TENSORS and any(isinstance(one, Tensor) for one in _items(value)):
            _refuse(type(module), f"was given the tensor {name}, of which nothing is known here")


def _items(value: Any) -> Collection[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def forward_parameters(module: nn.Module) -> tuple[str, ...]:
    """The named parameters of ``forward``, as the module's class has it, without self."""
    kind: Any = type(module)
    return _parameters(kind)


@cache
def _parameters(kind: Any) -> tuple[str, ...]:
    named = list(inspect.signature(kind.forward).parameters.values())[1:]
    return tuple(one.name for one in named if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD))


def _refuse(kind: type[nn.Module], what: str) -> NoReturn:
    raise UnknownCallError(
        f"{kind.__name__} of transformers {library_version()} {what}; what is read from it or changed "
        "in it could be wrong without an error. Install a version that this package's requirements allow"
    )
