"""The small model of random weights, and what reads its prompts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny_model import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()
