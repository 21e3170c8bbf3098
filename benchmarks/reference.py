"""The published reference code, loaded from a checkout without its models' imports."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from flashvid import FlashVidConfig

__all__ = ["Reference"]

_PACKAGE = "flashvid_published"
_FILES = ("utils.py", "token_selection.py", "configuration_flashvid.py")
_SHARED = (
    "retention_ratio",
    "do_segment",
    "segment_threshold",
    "min_segment_num",
    "complementary_segment",
    "token_selection_method",
    "alpha",
    "temporal_threshold",
    "expansion",
)


class Reference:
    """The compression of a checkout of the reference repository.

    Its package's `__init__` patches model classes and needs libraries that are not wanted here, so the
    compression's own files are loaded below an empty package of another name. They import torch only.
    Raises FileNotFoundError where `checkout` is not one.
    """

    def __init__(self, checkout: Path) -> None:
        folder = checkout / "flashvid"
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{checkout} has no flashvid/{missing[0]}; --reference takes a checkout of the reference code"
            )
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[_PACKAGE] = package
        self._compress = importlib.import_module(f"{_PACKAGE}.utils").flashvid_compression
        self._config = importlib.import_module(f"{_PACKAGE}.configuration_flashvid").FlashVidConfig
        texts = b"".join((folder / name).read_bytes() for name in _FILES)
        self.sha256 = hashlib.sha256(texts).hexdigest()

    def prepare(
        self, features: Tensor, saliency: Tensor, config: FlashVidConfig
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        """A call that compresses and returns (tokens, kept).

        Copies the features first: the reference writes into what it is given.
        """
        own: Any = self._config(**{name: getattr(config, name) for name in _SHARED})
        copy = features.clone()

        def call() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                tokens, kept = self._compress(copy, saliency, own)
            return tokens, kept

        return call

    @contextmanager
    def without_noise(self) -> Iterator[None]:
        """Inside the `with` the reference adds no random noise to densities, so results can be compared."""
        with mock.patch.object(torch, "rand_like", lambda tensor, **_: torch.zeros_like(tensor)):
            yield
