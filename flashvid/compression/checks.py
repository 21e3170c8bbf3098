"""What compress() accepts: errors that name the value, the rule and the way out."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvid.config import FlashVidConfig

__all__ = ["check_config", "check_inputs", "check_norms"]

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_config(config: object) -> None:
    """Raises TypeError for anything but a FlashVidConfig, such as the name of a profile."""
    if not isinstance(config, FlashVidConfig):
        raise TypeError(
            f"config={config!r} must be a FlashVidConfig: FlashVidConfig(retention_ratio=0.1), or a profile, "
            'profile("action")'
        )


def check_inputs(features: Tensor, saliency: Tensor | None, config: FlashVidConfig) -> None:
    """features must be (T, N, D) bfloat16, float16 or float32, saliency (T, N) on the same device and finite.

    Raises TypeError for what is no such tensor or dtype, ValueError for shapes, devices and values.
    """
    if not isinstance(features, Tensor) or features.dtype not in _DTYPES:
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"features are {got}; they must be a tensor of bfloat16, float16 or float32")
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(f"features of shape {tuple(features.shape)} must be (T, N, D), none of them 0")
    if saliency is not None:
        _check_saliency(saliency, features)
    elif config.token_selection_method != "div":
        raise ValueError(
            f"saliency=None needs token_selection_method='div', not {config.token_selection_method!r}; "
            "otherwise pass the (T, N) attention each token receives"
        )


def _check_saliency(saliency: Tensor, features: Tensor) -> None:
    if not isinstance(saliency, Tensor) or saliency.dtype not in _DTYPES:
        got = saliency.dtype if isinstance(saliency, Tensor) else type(saliency).__name__
        raise TypeError(f"saliency is {got}; it must be a tensor of float32")
    if saliency.shape != features.shape[:2]:
        raise ValueError(
            f"saliency of shape {tuple(saliency.shape)} must be (T, N) = {tuple(features.shape[:2])}"
        )
    if saliency.device != features.device:
        raise ValueError(f"saliency is on {saliency.device}, features on {features.device}; move one of them")
    if not bool(saliency.isfinite().all()):
        raise ValueError("saliency must be finite; there is NaN or infinity in it")


def check_norms(norms: Tensor) -> None:
    """norms: (T, N) float32, the tokens' lengths. Raises ValueError where one is not below 9e18.

    Squared distances, up to four times a square, overflow beyond.
    """
    if not bool((norms < 9e18).all()):
        raise ValueError(
            "features must be finite and their tokens shorter than 9e18; there is NaN, infinity or a larger "
            "one in them: look at the vision tower's output"
        )
