"""What is seen and cut inside a model?

In: a model that is borrowed within a `with`, and prompts. Out: saliency read from the vision tower, positions
as the model was trained with, shortened prompts, tokens pruned from layer K on. Nothing here knows a family
of models by name. Start with pruning.py; where text after a video gets its positions: positions.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from flashvid.inside.calls import (
        UnknownCallError,
        cache_name,
        check_layer,
        check_module,
        forward_parameters,
        hidden_of,
        keyword,
        library_version,
    )
    from flashvid.inside.hooks import own_pre_hooks, without_hooks
    from flashvid.inside.positions import Grid, PositionStyle, VisionSpan, find_spans
    from flashvid.inside.prompt import (
        PromptBatch,
        ShortPrompt,
        pad_prompts,
        restore_prompt,
        shared_prefix,
        shorten_prompt,
        token_types,
    )
    from flashvid.inside.pruning import MaskStyle, prune_inside
    from flashvid.inside.saliency import last_query_attention, pool_patches, received_attention
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "calls": [
                "UnknownCallError",
                "cache_name",
                "check_layer",
                "check_module",
                "forward_parameters",
                "hidden_of",
                "keyword",
                "library_version",
            ],
            "hooks": ["own_pre_hooks", "without_hooks"],
            "positions": ["Grid", "PositionStyle", "VisionSpan", "find_spans"],
            "prompt": [
                "PromptBatch",
                "ShortPrompt",
                "pad_prompts",
                "restore_prompt",
                "shared_prefix",
                "shorten_prompt",
                "token_types",
            ],
            "pruning": ["MaskStyle", "prune_inside"],
            "saliency": ["last_query_attention", "pool_patches", "received_attention"],
        },
    )

__all__ = [
    "Grid",
    "MaskStyle",
    "PositionStyle",
    "PromptBatch",
    "ShortPrompt",
    "UnknownCallError",
    "VisionSpan",
    "cache_name",
    "check_layer",
    "check_module",
    "find_spans",
    "forward_parameters",
    "hidden_of",
    "keyword",
    "last_query_attention",
    "library_version",
    "own_pre_hooks",
    "pad_prompts",
    "pool_patches",
    "prune_inside",
    "received_attention",
    "restore_prompt",
    "shared_prefix",
    "shorten_prompt",
    "token_types",
    "without_hooks",
]
