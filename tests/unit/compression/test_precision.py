"""The process-wide precision switches, when several threads compress at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from flashvid.compression.precision import full_precision

CPU = torch.device("cpu")


@pytest.fixture
def medium() -> Iterator[None]:
    """A caller who has asked for less than full precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("medium")
def test_the_first_to_leave_does_not_lower_the_precision_of_the_other() -> None:
    first_left, seen = threading.Event(), []

    def second() -> None:
        with full_precision(CPU):
            entered.set()
            first_left.wait(10)
            seen.append(torch.get_float32_matmul_precision())

    entered = threading.Event()
    thread = threading.Thread(target=second)
    with full_precision(CPU):
        thread.start()
        assert entered.wait(10)
    first_left.set()
    thread.join(10)
    assert seen == ["highest"]
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.usefixtures("medium")
def test_given_back_after_an_error() -> None:
    def fail() -> None:
        with full_precision(CPU):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert torch.get_float32_matmul_precision() == "medium"


def test_autocast_does_not_reach_inside() -> None:
    ones = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (ones @ ones).dtype == torch.bfloat16
        with full_precision(CPU):
            assert (ones @ ones).dtype == torch.float32
