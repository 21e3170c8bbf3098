"""The vision tower as one batch of equal units: the stock module's own weights, many times faster on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CELLS", "TOKENS_PER_UNIT", "Tower", "initialise_vision"]

CELLS = 6  # merged tokens per side at 168 pixels
TOKENS_PER_UNIT = CELLS * CELLS
_PATCH, _MERGE, _WINDOW = 14, 2, 2  # pixels, patches, merged tokens
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).repeat_interleave(2 * _PATCH * _PATCH)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).repeat_interleave(2 * _PATCH * _PATCH)


def _window_order() -> Tensor:
    """(36,) raster index of each merged token, window by window."""
    grid = torch.arange(TOKENS_PER_UNIT).view(CELLS // _WINDOW, _WINDOW, CELLS // _WINDOW, _WINDOW)
    return grid.permute(0, 2, 1, 3).reshape(-1)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def _block(
    x: Tensor, weights: list[Tensor], cos: Tensor, sin: Tensor, *, heads: int, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One vision block on (U, P, C), attention inside runs of `length` patches; returns x, queries, keys."""
    norm1, norm2, w_qkv, b_qkv, w_out, b_out, w_gate, b_gate, w_up, b_up, w_down, b_down = weights
    units, patches, width = x.shape
    qkv = F.linear(_norm(x, norm1), w_qkv, b_qkv).view(units, patches, 3, heads, width // heads)
    q, k, v = qkv.unbind(2)
    q = q * cos + _rotate_half(q) * sin
    k = k * cos + _rotate_half(k) * sin
    q, k, v = (t.reshape(-1, length, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(units, patches, width)
    x = x + F.linear(out, w_out, b_out)
    y = _norm(x, norm2)
    x = x + F.linear(F.silu(F.linear(y, w_gate, b_gate)) * F.linear(y, w_up, b_up), w_down, b_down)
    return x, q, k


class Tower:
    """Runs the stock vision module on (U, 2, S, S, 3) frame pairs of 168 pixels."""

    def __init__(self, visual: Any, compiled: bool = False) -> None:
        self.visual = visual
        self.config = visual.config
        self.order = _window_order()
        self.raster = torch.argsort(self.order)
        self.cos, self.sin = self._rotary()
        self.block: Callable[..., tuple[Tensor, Tensor, Tensor]] = (
            torch.compile(_block) if compiled else _block
        )

    def _rotary(self) -> tuple[Tensor, Tensor]:
        """(144, 1, head width) tables in window order."""
        rows, columns = torch.meshgrid(torch.arange(2 * CELLS), torch.arange(2 * CELLS), indexing="ij")
        places = torch.stack(
            [self._arrange(rows[None, ..., None])[0, :, 0], self._arrange(columns[None, ..., None])[0, :, 0]]
        )
        angles = places[..., None].float() * self.visual.rotary_pos_emb.inv_freq  # (2, 144, head width / 4)
        table = torch.cat([angles[0], angles[1]], -1).repeat(1, 2)[:, None]
        return table.cos(), table.sin()

    def _arrange(self, grid: Tensor) -> Tensor:
        """(U, 12, 12, X) patches in space to (U, 144, X): windows, merged tokens, then patches of a token."""
        units, _, _, width = grid.shape
        merged = grid.view(units, CELLS, _MERGE, CELLS, _MERGE, width).permute(0, 1, 3, 2, 4, 5)
        return merged.reshape(units, TOKENS_PER_UNIT, 4, width)[:, self.order].reshape(units, -1, width)

    def patches(self, frames: Tensor) -> Tensor:
        """uint8 frames (U, 2, S, S, 3) to normalised patch vectors (U, 144, 3*2*14*14) in window order."""
        units = frames.shape[0]
        grid = frames.view(units, 2, 2 * CELLS, _PATCH, 2 * CELLS, _PATCH, 3).permute(0, 2, 4, 6, 1, 3, 5)
        patches = self._arrange(grid.reshape(units, 2 * CELLS, 2 * CELLS, -1))
        return (patches.float() * (1 / 255) - _MEAN) / _STD

    def __call__(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """From `patches`: features (U, 36, D) and the attention received (U, 36); both in raster order."""
        visual, heads = self.visual, self.config.num_heads
        proj = visual.patch_embed.proj.weight
        x = F.linear(patches, proj.view(proj.shape[0], -1))
        q = k = x
        for index, block in enumerate(visual.blocks):
            length = 144 if index in self.config.fullatt_block_indexes else 16
            x, q, k = self.block(x, _weights(block), self.cos, self.sin, heads=heads, length=length)
        merger = visual.merger
        y = _norm(x, merger.ln_q.weight).reshape(x.shape[0], TOKENS_PER_UNIT, -1)
        y = merger.mlp(y)[:, self.raster]
        with torch.no_grad():
            attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
            received = attention.mean((1, 2)).view(-1, TOKENS_PER_UNIT, 4).mean(-1)[:, self.raster]
        return y, received

    @torch.no_grad()
    def encode(self, frames: Tensor, units_at_once: int = 64) -> tuple[Tensor, Tensor]:
        """Features and saliency of uint8 frames (U, 2, S, S, 3), without gradients, in chunks."""
        parts = [self(self.patches(chunk)) for chunk in torch.split(frames, units_at_once)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _weights(block: Any) -> list[Tensor]:
    attn, mlp = block.attn, block.mlp
    layers = (attn.qkv, attn.proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return [
        block.norm1.weight,
        block.norm2.weight,
        *(t for layer in layers for t in (layer.weight, layer.bias)),
    ]


def _dct_patches(count: int) -> Tensor:
    """(count, 3, 2, 14, 14): low spatial frequencies of opponent colours, of sum and difference of frames."""
    axis = (np.arange(_PATCH) + 0.5) * np.pi / _PATCH
    waves = np.stack([np.cos(k * axis) for k in range(_PATCH)])
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    colours = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]], float)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    times = np.array([[1, 1], [1, -1]], float) / math.sqrt(2)
    wanted = [
        (u + v + 2 * c + t, u, v, c, t)
        for u in range(8)
        for v in range(8)
        for c in range(3)
        for t in range(2)
    ]
    chosen = sorted(wanted)[:count]
    filters = [
        np.einsum("c,t,y,x->ctyx", colours[c], times[t], waves[u], waves[v]) for _, u, v, c, t in chosen
    ]
    return torch.tensor(np.stack(filters), dtype=torch.float32)


def initialise_vision(visual: Any) -> None:
    """Start values for this width: fan-in scaling, DCT patch filters, heads that look at neighbours."""
    depth = len(visual.blocks)
    with torch.no_grad():
        for name, weight in visual.named_parameters():
            if weight.dim() == 2:
                scale = 1 / math.sqrt(weight.shape[1])
                residual = name.endswith(("attn.proj.weight", "down_proj.weight"))
                weight.normal_(0, scale / (math.sqrt(2 * depth) if residual else 1))
            elif name.endswith("bias"):
                weight.zero_()
        proj = visual.patch_embed.proj.weight
        proj.copy_(_dct_patches(proj.shape[0]) * 0.35)
        for block in visual.blocks:
            _look_at_neighbours(block.attn, visual.rotary_pos_emb.inv_freq)


def _look_at_neighbours(attn: Any, inv_freq: Tensor) -> None:
    """Constant query and key biases whose rotary product peaks one patch away, per head elsewhere."""
    heads, width = attn.num_heads, attn.head_dim
    quarter = width // 4
    qkv = attn.qkv.bias.view(3, heads, width)
    for head, (dy, dx) in enumerate([(1, 0), (-1, 0), (0, 1), (0, -1)][:heads]):
        angles = torch.cat([dy * inv_freq, dx * inv_freq])  # (width / 2,)
        qkv[0, head, : 2 * quarter], qkv[0, head, 2 * quarter :] = 0.9, 0.0
        qkv[1, head, : 2 * quarter], qkv[1, head, 2 * quarter :] = 0.9 * angles.cos(), -0.9 * angles.sin()
