"""What a vision tower made of a video, ready to be compressed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashvid.compression import CompressedVideo, CompressionPlan, compress, plan_compression
from flashvid.config import FlashVidConfig

__all__ = ["EncodedVideo", "needs_saliency"]


@dataclass(frozen=True)
class EncodedVideo:
    """What the vision tower made of a video.

    features: (T, N, D) in the model's dtype, raster order, as the language model would see them.
    saliency: (T, N) float32, mean attention each token receives in the last block; None when not asked for.
    """

    features: Tensor
    saliency: Tensor | None

    def compress(self, config: FlashVidConfig) -> CompressedVideo:
        """Compress; without saliency only where :func:`needs_saliency` says that it is not read.

        Raises as :func:`flashvid.compression.plan.compress`. Sections 3.2-3.4.
        """
        return compress(self.features, self._saliency(config), config)

    def plan(self, config: FlashVidConfig) -> CompressionPlan:
        """What :meth:`compress` decides, for pictures; ValueError at retention_ratio=1: nothing to plan."""
        return plan_compression(self.features, self._saliency(config), config)

    def _saliency(self, config: FlashVidConfig) -> Tensor | None:
        if self.saliency is None and not needs_saliency(config):
            return torch.zeros(self.features.shape[:2], dtype=torch.float32, device=self.features.device)
        return self.saliency


def needs_saliency(config: FlashVidConfig) -> bool:
    """Whether a compression with these settings looks at saliency at all."""
    return not config.is_bypass and config.token_selection_method != "div"
