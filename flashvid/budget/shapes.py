"""The sizes of a model that decide what it costs: plain numbers, read from a configuration or published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

__all__ = ["QWEN2_5_VL", "LanguageShape", "ModelShape", "VisionShape"]


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """Sizes of a Qwen2.5-VL vision tower: gated MLPs, every linear layer with a bias but the patch embedding.

    window: side of an attention window in pixels. full_blocks: 0-based blocks that attend over a whole unit.
    Raises ValueError for sizes below 1 and for blocks that are not there.
    """

    depth: int
    hidden: int
    heads: int
    intermediate: int
    out: int
    window: int
    full_blocks: tuple[int, ...]
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    channels: int = 3

    def __post_init__(self) -> None:
        _check_sizes(self)
        if any(not 0 <= block < self.depth for block in self.full_blocks):
            raise ValueError(f"full_blocks={self.full_blocks} must be in [0, depth={self.depth})")
        if self.window_tokens < 1:
            raise ValueError(f"window={self.window} pixels must hold at least one merged token")

    @property
    def head_dim(self) -> int:
        """Numbers of one head's query or key."""
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers in one patch."""
        return self.channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_tokens(self) -> int:
        """Side of an attention window in merged tokens."""
        return self.window // self.merge_size // self.patch_size

    @property
    def parameters(self) -> int:
        """Numbers in all weights of the tower, its patch embedding and merger included."""
        attention = 4 * self.hidden**2 + 4 * self.hidden
        mlp = 3 * self.hidden * self.intermediate + 2 * self.intermediate + self.hidden
        block = attention + mlp + 2 * self.hidden  # two norms
        wide = self.hidden * self.merge_size**2
        merger = self.hidden + wide**2 + wide + wide * self.out + self.out
        return self.patch_values * self.hidden + self.depth * block + merger


@dataclass(frozen=True, kw_only=True)
class LanguageShape:
    """Sizes of a Qwen2.5 decoder: grouped-query attention with biases on q, k, v; gated MLPs without.

    tied: the output head shares the embedding's weights. Raises ValueError for sizes below 1 and heads that
    do not divide.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")

    @property
    def query_width(self) -> int:
        """Numbers in one token's query, all heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Numbers in one token's key; as many in its value."""
        return self.kv_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Weights of one layer that a token is multiplied with."""
        attention = 2 * self.hidden * (self.query_width + self.kv_width)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Numbers in all weights, embedding and head included."""
        layer = self.layer_weights + self.query_width + 2 * self.kv_width + 2 * self.hidden
        tables = (1 if self.tied else 2) * self.vocab * self.hidden
        return tables + self.layers * layer + self.hidden


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A video language model: both halves, and the bytes of one number (2 for bfloat16 and float16).

    Raises ValueError for a size of numbers other than 2 and 4 bytes.
    """

    vision: VisionShape
    language: LanguageShape
    bytes_per_value: int = 2

    def __post_init__(self) -> None:
        if self.bytes_per_value not in (2, 4):
            raise ValueError(f"{self.bytes_per_value=} must be 2 (bfloat16, float16) or 4 (float32)")

    @property
    def parameters(self) -> int:
        """Numbers in all weights of both halves."""
        return self.vision.parameters + self.language.parameters

    @property
    def weights_bytes(self) -> int:
        """Memory of the weights."""
        return self.parameters * self.bytes_per_value

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's key and value in one layer."""
        return 2 * self.language.kv_width * self.bytes_per_value


def _check_sizes(shape: Any) -> None:
    for field in fields(shape):
        value = getattr(shape, field.name)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"{field.name}={value} must be at least 1")


def _published(
    *, layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, vocab: int, vision_mlp: int
) -> ModelShape:
    """A released Qwen2.5-VL: the towers differ only in their MLP's width and their output."""
    vision = VisionShape(
        depth=32,
        hidden=1280,
        heads=16,
        intermediate=vision_mlp,
        out=hidden,
        window=112,
        full_blocks=(7, 15, 23, 31),
    )
    language = LanguageShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128,
        intermediate=intermediate,
        vocab=vocab,
        tied=hidden == 2048,
    )
    return ModelShape(vision=vision, language=language)


# From the checkpoints' config.json.
QWEN2_5_VL: Mapping[str, ModelShape] = MappingProxyType(
    {
        "3B": _published(
            layers=36, hidden=2048, heads=16, kv_heads=2, intermediate=11008, vocab=151936, vision_mlp=3420
        ),
        "7B": _published(
            layers=28, hidden=3584, heads=28, kv_heads=4, intermediate=18944, vocab=152064, vision_mlp=3420
        ),
        "32B": _published(
            layers=64, hidden=5120, heads=40, kv_heads=8, intermediate=27648, vocab=152064, vision_mlp=3456
        ),
        "72B": _published(
            layers=80, hidden=8192, heads=64, kv_heads=8, intermediate=29568, vocab=152064, vision_mlp=3456
        ),
    }
)
