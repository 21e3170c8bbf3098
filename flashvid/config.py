"""Every setting of the token compression, checked once, on construction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["Budget", "FlashVidConfig", "SelectionMethod", "TreeMean"]

SelectionMethod = Literal["attn_div", "attn_div_v2", "attn", "div"]
TreeMean = Literal["members", "reference"]
Budget = Literal["exact", "reference"]


@dataclass(frozen=True, kw_only=True)
class FlashVidConfig:
    """Settings of FlashVID (ICLR 2026, arXiv 2602.08024), under the names its reference code uses.

    retention_ratio: share R in (0, 1] of the visual tokens the language model sees, averaged over its layers;
        1 switches compression off, bit for bit.
    do_segment, segment_threshold, min_segment_num, complementary_segment: scene cuts. A cut where the cosine
        of neighbouring units falls below the threshold; if that gives too few segments and filling is on,
        more cuts at the lowest cosines.
    token_selection_method: `attn_div` (Qwen), `attn_div_v2` (LLaVA), `attn`, `div`.
    alpha: share in [0, 1] of a unit's places for selected tokens; the others are for merged ones.
    temporal_threshold: cosine in [-1, inf) above which a token joins its best match one unit earlier.
    expansion: factor x >= 1 by which R is exceeded before the language model; pruning inside it pays it back.
    pruning_layer: decoder layer K (0-based) from which pruned tokens are gone; None derives it.
    llm_retention_ratio: share in (0, 1] of them kept from layer K on; None derives it; 1 prunes none.
    tree_mean: `members` averages all tokens of a tree; `reference` divides by 1 + the root's direct children.
    budget: `exact` keeps at most T*ceil(N*R*x) tokens; `reference` rounds up once more per unit, may exceed
        it, and treats equal cosines, densities and scores as the reference code does.
    max_visual_tokens: ceiling on the tokens of one video that enter the language model; `exact` only.
    adaptive: a unit that repeats the one before uses fewer places than its budget, never more (see
        `flashvid.compression.adaptive`); `exact` only, and without effect at retention_ratio=1.

    Raises ValueError naming the value and the rule.
    """

    retention_ratio: float = 0.1
    do_segment: bool = True
    segment_threshold: float = 0.9
    min_segment_num: int = 4
    complementary_segment: bool = True
    token_selection_method: SelectionMethod = "attn_div"
    alpha: float = 0.7
    temporal_threshold: float = 0.8
    expansion: float = 1.25
    pruning_layer: int | None = None
    llm_retention_ratio: float | None = None
    tree_mean: TreeMean = "members"
    budget: Budget = "exact"
    max_visual_tokens: int | None = None
    adaptive: bool = False

    def __post_init__(self) -> None:
        self._check_ratios()
        self._check_integers()
        self._check_choices()

    @property
    def is_bypass(self) -> bool:
        """True where every token is kept unchanged."""
        return self.retention_ratio == 1

    def _check_ratios(self) -> None:
        _check_range(
            "retention_ratio", self.retention_ratio, 0, 1, "in (0, 1]; 0.1 keeps a tenth of the tokens"
        )
        _require(
            self.retention_ratio > 0, "retention_ratio", self.retention_ratio, "in (0, 1]; 0 keeps nothing"
        )
        _check_range(
            "segment_threshold", self.segment_threshold, -math.inf, math.inf, "a cosine, usually 0.9"
        )
        _check_range("alpha", self.alpha, 0, 1, "in [0, 1]; 0.7 selects 7 of 10 kept tokens and merges 3")
        _check_range(
            "temporal_threshold", self.temporal_threshold, -1, math.inf, "at least -1; 1 merges nothing"
        )
        _check_range(
            "expansion", self.expansion, 1, math.inf, "at least 1; 1 means no pruning inside the model"
        )
        if self.llm_retention_ratio is not None:
            rule = "in (0, 1], or None to derive it; 1 prunes nothing inside the model"
            _check_range("llm_retention_ratio", self.llm_retention_ratio, 0, 1, rule)
            _require(self.llm_retention_ratio > 0, "llm_retention_ratio", self.llm_retention_ratio, rule)

    def _check_integers(self) -> None:
        _check_int("min_segment_num", self.min_segment_num, 1)
        if self.pruning_layer is not None:
            _check_int("pruning_layer", self.pruning_layer, 1)
        if self.max_visual_tokens is not None:
            _check_int("max_visual_tokens", self.max_visual_tokens, 1)
            _require(
                self.budget == "exact",
                "max_visual_tokens",
                self.max_visual_tokens,
                "None with budget='reference', which cannot hold a ceiling; use budget='exact'",
            )

    def _check_choices(self) -> None:
        _check_choice("token_selection_method", self.token_selection_method, get_args(SelectionMethod))
        _check_choice("tree_mean", self.tree_mean, get_args(TreeMean))
        _check_choice("budget", self.budget, get_args(Budget))
        for name in ("do_segment", "complementary_segment", "adaptive"):
            value = getattr(self, name)
            _require(isinstance(value, bool), name, value, "True or False")
        _require(
            not self.adaptive or self.budget == "exact",
            "adaptive",
            self.adaptive,
            "False with budget='reference', which fixes every unit's places; use budget='exact'",
        )


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r} must be {rule}")


def _check_range(name: str, value: object, least: float, most: float, rule: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _require(is_number and least <= value <= most, name, value, rule)  # type: ignore[operator]


def _check_int(name: str, value: object, least: int) -> None:
    is_int = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _require(is_int, name, value, f"an integer of at least {least}")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, name, value, "one of " + ", ".join(allowed))
