"""Qwen2.5-VL: the only file that knows transformers' classes of this family.

Nothing is ever assigned on the model. Hooks exist only inside a ``with``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_vision,
)
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import get_vision_window_index

from flashvid.inside import (
    MaskStyle,
    cache_name,
    check_layer,
    check_module,
    forward_parameters,
    hidden_of,
    keyword,
    last_query_attention,
    own_pre_hooks,
    pool_patches,
    received_attention,
)
from flashvid.models.encoded import EncodedVideo

__all__ = ["EncodedVideo", "Qwen25VLAdapter"]

# Patches that go through the vision tower at once: about 2 GB of activations in bfloat16 at 7B size.
_PATCHES_PER_CHUNK = 32768

# What the queries and keys that are recomputed here are made of.
_ATTENTION_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")
_TOWER_ATTENTION_PARTS = ("qkv", "proj")
# From transformers 5.18 on; before, features are put among the embeddings of the text.
_TAKES_FEATURES = "mm_encoder_outputs"

_MASK_STYLES: dict[str, MaskStyle] = {"sdpa": "bool", "eager": "additive"}


class Qwen25VLAdapter:
    """Reads a ``Qwen2_5_VLForConditionalGeneration``; never changes it.

    Raises UnknownCallError where the model's modules have other arguments or parts than are known.
    """

    def __init__(self, model: Any) -> None:
        _check_modules(model.model)
        self.model = model
        self._cache_name = cache_name(model)
        config = model.config
        self.image_token_id: int = config.image_token_id
        self.video_token_id: int = config.video_token_id
        self.merge_size: int = config.vision_config.spatial_merge_size
        self.patch_size: int = config.vision_config.patch_size
        self.temporal_patch_size: int = config.vision_config.temporal_patch_size
        self.tokens_per_second: float = config.vision_config.tokens_per_second
        self.num_layers: int = config.text_config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        """Where prompts and patches have to be."""
        return self.model.model.visual.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the vision tower computes in."""
        return self.model.model.visual.dtype  # type: ignore[no-any-return]

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The language model's layers, first to last."""
        return self.model.model.language_model.layers  # type: ignore[no-any-return]

    @property
    def takes_features(self) -> bool:
        """Whether ``generate`` takes visual features beside the ids; else they go among the embeddings."""
        return _TAKES_FEATURES in forward_parameters(self.model)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, from the generation config."""
        eos = self.model.generation_config.eos_token_id
        return tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (int(eos),)

    @property
    def pad_token_id(self) -> int:
        """What fills finished rows of a batch."""
        pad = self.model.generation_config.pad_token_id
        return int(pad) if pad is not None else (self.eos_token_ids or (0,))[0]

    def default_units_per_chunk(self, rows: int, columns: int) -> int:
        """Temporal units, of rows x columns patches, that the tower takes at once."""
        return max(1, _PATCHES_PER_CHUNK // (rows * columns))

    @torch.no_grad()
    def encode_units(
        self, chunks: Iterable[Tensor], rows: int, columns: int, *, with_saliency: bool
    ) -> EncodedVideo:
        """Run the vision tower over chunks of whole temporal units and put the results together.

        Exact, because the tower's attention never leaves a unit. ``chunks``: (units*rows*columns, C*tp*p*p)
        each, float; the result is in the model's dtype. Peak memory is that of one chunk plus the features.
        """
        features: list[Tensor] = []
        saliency: list[Tensor] = []
        for pixels in chunks:
            units = pixels.shape[0] // (rows * columns)
            grid = torch.tensor([[units, rows, columns]], device=pixels.device)
            with self.watch_saliency(grid, with_saliency) as watched:
                output = self.model.model.get_video_features(pixels, grid, return_dict=True)
            features.append(output.pooler_output[0].unflatten(0, (units, -1)))
            saliency.extend(piece.view(units, -1) for piece in watched)
        return EncodedVideo(torch.cat(features), torch.cat(saliency) if saliency else None)

    def encode_video(
        self,
        pixel_values: Tensor,
        grid: tuple[int, int, int],
        *,
        with_saliency: bool = True,
        units_per_chunk: int | None = None,
    ) -> EncodedVideo:
        """Encode one video from its patches (P, C*tp*p*p) float; ``grid``: (units, rows, columns) of them.

        The result is in the model's dtype. Raises ValueError where the patches do not fill the grid.
        """
        units, rows, columns = grid
        if pixel_values.shape[0] != units * rows * columns:
            raise ValueError(
                f"{pixel_values.shape[0]} patches do not fill the grid {grid}; need {units * rows * columns}"
            )
        step = (units_per_chunk or self.default_units_per_chunk(rows, columns)) * rows * columns
        starts = range(0, len(pixel_values), step)
        chunks = (pixel_values[start : start + step].to(self.device) for start in starts)
        return self.encode_units(chunks, rows, columns, with_saliency=with_saliency)

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor, image_grid_thw: Tensor) -> list[Tensor]:
        """Encode images, uncompressed: one (N, D) tensor per image, in the model's dtype.

        ``pixel_values`` (patches, C*tp*p*p) float, ``image_grid_thw`` (images, 3) int64, in patches.
        """
        grid = image_grid_thw.to(self.device)
        output = self.model.model.get_image_features(pixel_values.to(self.device), grid, return_dict=True)
        return list(output.pooler_output)

    @contextmanager
    def watch_saliency(self, grid: Tensor, enabled: bool = True) -> Iterator[list[Tensor]]:
        """Inside the ``with``, each pass of the tower by this thread appends its saliency, (T*N,) float32.

        ``grid`` (1, 3) int64, (units, rows, columns) in patches, is that of every pass. Section 3.3.
        """
        found: list[Tensor] = []
        if not enabled:
            yield found
            return
        visual = self.model.model.visual
        order, _ = get_vision_window_index(
            grid,
            spatial_merge_size=self.merge_size,
            window_size=visual.window_size,
            patch_size=self.patch_size,
        )

        def watch(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            received = _vision_saliency(
                attention,
                hidden_of(attention, args, kwargs),
                keyword(attention, kwargs, "cu_seqlens"),
                keyword(attention, kwargs, "position_embeddings"),
            )
            found.append(pool_patches(received, self.merge_size**2, order))

        with own_pre_hooks([(visual.blocks[-1].attn, watch)]):
            yield found

    @property
    def mask_style(self) -> MaskStyle:
        """What the language model's attention takes as mask; raises ValueError where it cannot be pruned."""
        config = self.model.model.language_model.config
        implementation = str(config._attn_implementation)
        if others := set(config.layer_types) - {"full_attention"}:
            raise ValueError(
                f"layers of {', '.join(sorted(others))} (as use_sliding_window=True makes some) cannot be "
                "pruned inside; use llm_retention_ratio=1"
            )
        if implementation not in _MASK_STYLES and not is_flash_attention_requested(config):
            raise ValueError(
                f"attn_implementation={implementation!r} cannot be pruned inside; load the model with sdpa, "
                "eager or flash_attention_2, or use llm_retention_ratio=1"
            )
        return _MASK_STYLES.get(implementation, "padding")

    def attention_of(
        self, attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], valid: Tensor
    ) -> Tensor:
        """Attention (B, S) float32 that the last token of each row pays, mean over heads (section 3.5).

        ``hidden`` (B, S, D), the input of the layer's ``attention`` module; ``rotary`` (B, S, head_dim)
        twice; ``valid`` (B, S) bool, False at padding. Recomputed from the layer's own projections, so it
        holds for every attention implementation.
        """
        cos, sin = rotary
        q = attention.q_proj(hidden[:, -1:]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        k = attention.k_proj(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        q, _ = apply_rotary_pos_emb(q, q, cos[:, -1:], sin[:, -1:])
        k, _ = apply_rotary_pos_emb(k, k, cos, sin)
        return last_query_attention(q[:, :, 0], k.transpose(1, 2), scaling=attention.scaling, valid=valid)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        *,
        videos: Sequence[Tensor] = (),
        images: Sequence[Tensor] = (),
        cache: DynamicCache | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """The untouched ``model.generate`` with visual features and positions handed in.

        ``input_ids``, ``attention_mask`` (B, S), ``position_ids`` (4, B, S) int64; ``videos``, ``images``:
        (K, D) each in the model's dtype, in the order of their placeholders. ``cache``: of what comes before.
        """
        if cache is not None:
            generate_kwargs[self._cache_name] = cache
        return self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **self._features(input_ids, videos, images),
            **generate_kwargs,
        )

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, position_ids: Tensor, *, videos: Sequence[Tensor]) -> DynamicCache:
        """Run a prompt's beginning, without padding, and return its key-value cache.

        ``input_ids`` (1, S), ``position_ids`` (4, 1, S) int64; ``videos``: (K, D) each in the model's dtype.
        """
        cache = DynamicCache(config=self.model.config)
        features = self._features(input_ids, videos, ())
        self.model(
            input_ids=None if "inputs_embeds" in features else input_ids,
            position_ids=position_ids,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: cache},
            **features,
        )
        return cache

    def _features(
        self, input_ids: Tensor, videos: Sequence[Tensor], images: Sequence[Tensor]
    ) -> dict[str, Any]:
        """The keyword under which the model takes visual features: none without any."""
        if not len(videos) and not len(images):
            return {}
        if self.takes_features:
            return {_TAKES_FEATURES: _encoder_outputs(videos, images)}
        embeddings = self.model.get_input_embeddings()(input_ids)
        for token, parts in ((self.image_token_id, images), (self.video_token_id, videos)):
            if len(parts):
                there = (input_ids == token).unsqueeze(-1)
                embeddings = embeddings.masked_scatter(there, torch.cat(list(parts)).to(embeddings))
        return {"inputs_embeds": embeddings}

    @staticmethod
    def fork_cache(cache: DynamicCache, copies: int) -> DynamicCache:
        """``copies`` rows that start from one row's cache; the original stays as it is.

        Shares memory where ``copies`` is 1: cache layers replace their tensors, they do not write into them.
        """
        fork = copy.copy(cache)
        fork.layers = [copy.copy(layer) for layer in cache.layers]
        fork.batch_repeat_interleave(copies)
        return fork


def _check_modules(model: Any) -> None:
    """Before anything is hooked or recomputed. Raises UnknownCallError."""
    for layer in model.language_model.layers:
        check_layer(layer)
        check_layer(layer.self_attn, known=(), parts=_ATTENTION_PARTS)
    tower = ("hidden_states", "cu_seqlens", "position_embeddings")
    check_module(model.visual.blocks[-1].attn, tower, ("max_seqlen",), parts=_TOWER_ATTENTION_PARTS)


def _encoder_outputs(videos: Sequence[Tensor], images: Sequence[Tensor]) -> dict[str, Any]:
    named = {"video": videos, "image": images}
    return {
        name: BaseModelOutputWithPooling(pooler_output=list(parts))
        for name, parts in named.items()
        if len(parts)
    }


def _vision_saliency(
    attention: Any,
    hidden: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
) -> Tensor:
    """Received attention (patches,) of the last vision block, in the tower's window order."""
    qkv = attention.qkv(hidden).view(hidden.shape[0], 3, attention.num_heads, -1)
    query, key = apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], *position_embeddings)
    return received_attention(query, key, cu_seqlens.diff().tolist(), scaling=attention.scaling)
