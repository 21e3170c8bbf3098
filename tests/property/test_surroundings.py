"""What a caller has set up around compress() changes nothing in its result, and comes back unchanged."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flashvid import FlashVidConfig, compress
from flashvid.compression.merging import Groups
from flashvid.compression.precision import full_precision
from tests.property.test_adaptive_compress import assert_same

CONFIGS = [
    FlashVidConfig(retention_ratio=0.3, alpha=0.5),
    FlashVidConfig(retention_ratio=0.3, alpha=0.5, adaptive=True),
    FlashVidConfig(retention_ratio=0.3, token_selection_method="attn_div_v2", tree_mean="reference"),
    FlashVidConfig(retention_ratio=0.3, alpha=0.5, budget="reference", tree_mean="reference"),
]


def drifting(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    steps = 0.3 * torch.randn(9, 20, 8, generator=generator, dtype=torch.float32)
    features = torch.randn(20, 8, generator=generator, dtype=torch.float32) + steps.cumsum(0)
    return features.to(dtype), torch.rand(9, 20, generator=generator, dtype=torch.float32)


@pytest.fixture
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def default_device() -> Iterator[None]:
    yield
    torch.set_default_device(None)


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_does_not_matter(default: torch.dtype, dtype: torch.dtype) -> None:
    """Loading code leaves half precision behind; decisions are taken in float32 all the same."""
    features, saliency = drifting(dtype)
    expected = [compress(features, saliency, config) for config in CONFIGS]
    torch.set_default_dtype(default)
    for config, video in zip(CONFIGS, expected, strict=True):
        assert_same(compress(features, saliency, config), video)


@pytest.mark.usefixtures("default_device")
def test_the_default_device_does_not_matter() -> None:
    features, saliency = drifting(torch.bfloat16)
    expected = [compress(features, saliency, config) for config in CONFIGS]
    torch.set_default_device("meta")
    for config, video in zip(CONFIGS, expected, strict=True):
        assert_same(compress(features, saliency, config), video)


@pytest.mark.usefixtures("matmul_precision")
def test_tf32_stays_off_until_the_last_thread_leaves_and_then_comes_back() -> None:
    torch.set_float32_matmul_precision("high")
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with full_precision(torch.device("cpu")):
            inside.set()
            leave.wait(timeout=60)

    other = threading.Thread(target=hold)
    with full_precision(torch.device("cpu")):
        other.start()
        assert inside.wait(timeout=60)
    assert torch.get_float32_matmul_precision() == "highest"  # the other thread still needs it
    leave.set()
    other.join(timeout=60)
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, torch.ones(6)])
def test_groups_without_any_member_are_zero(weights: Tensor | None, dtype: torch.dtype) -> None:
    groups = Groups(torch.full((6,), -1), torch.zeros(3, dtype=torch.int64), 0)
    assert torch.equal(groups.mean(torch.ones(6, 4, dtype=dtype), weights), torch.zeros(3, 4))


@pytest.mark.parametrize("length", [9.3e18, 1.5e19, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_too_long_to_be_compared_are_refused(dtype: torch.dtype, length: float) -> None:
    features, saliency = drifting(dtype)
    features[2, 3] = 0
    features[2, 3, 0] = length
    with pytest.raises(ValueError, match="shorter than 9e18"):
        compress(features, saliency, CONFIGS[0])
