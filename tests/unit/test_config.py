from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from flashvid import FlashVidConfig


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FlashVidConfig().alpha = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention_ratio", 0),
        ("retention_ratio", 1.01),
        ("retention_ratio", float("nan")),
        ("retention_ratio", "0.1"),
        ("retention_ratio", True),
        ("alpha", -0.1),
        ("alpha", 1.1),
        ("temporal_threshold", -1.5),
        ("temporal_threshold", float("inf")),
        ("segment_threshold", float("nan")),
        ("expansion", 0.9),
        ("min_segment_num", 0),
        ("min_segment_num", 2.0),
        ("pruning_layer", 0),
        ("llm_retention_ratio", 0.0),
        ("llm_retention_ratio", 1.5),
        ("max_visual_tokens", 0),
        ("token_selection_method", "attention"),
        ("tree_mean", "mean"),
        ("budget", "strict"),
        ("do_segment", 1),
        ("complementary_segment", None),
        ("adaptive", 1),
    ],
)
def test_refuses_and_names_the_value(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r} must be"):
        FlashVidConfig(**{name: value})  # type: ignore[arg-type]


def test_a_ceiling_needs_the_exact_budget() -> None:
    with pytest.raises(ValueError, match="use budget='exact'"):
        FlashVidConfig(max_visual_tokens=100, budget="reference")


def test_adaptive_needs_the_exact_budget() -> None:
    with pytest.raises(ValueError, match=r"adaptive=True must be False .* use budget='exact'"):
        FlashVidConfig(adaptive=True, budget="reference")
    assert FlashVidConfig(adaptive=True).adaptive
    assert not FlashVidConfig().adaptive


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention_ratio", 1),
        ("alpha", 0),
        ("alpha", 1),
        ("temporal_threshold", 1.0),
        ("llm_retention_ratio", 1.0),
    ],
)
def test_limits_are_allowed(name: str, value: float) -> None:
    assert getattr(FlashVidConfig(**{name: value}), name) == value  # type: ignore[arg-type]


def test_compressing_does_not_import_transformers() -> None:
    code = "import sys; from flashvid import FlashVidConfig, compress; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
