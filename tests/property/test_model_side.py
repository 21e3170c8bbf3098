"""Saliency, positions and the choice inside the language model against their literal implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from flashvid.inside.positions import VisionSpan, mrope_positions
from flashvid.inside.pruning import plan_cut, select_tokens
from flashvid.inside.saliency import last_query_attention, pool_patches, received_attention
from tests.oracles import literal_model

Part = int | tuple[tuple[int, int, int], float]

usual = settings(max_examples=60)


def assert_close(found: Tensor, expected: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


seeds = st.integers(0, 2**31)


@usual
@given(seeds, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 400))
def test_received_attention(seed: int, lengths: list[int], heads: int, most: int) -> None:
    query, key = normal(seed, 2, sum(lengths), heads, 4)
    found = received_attention(query, key, lengths, scaling=0.5, max_weights=most)
    expected = literal_model.received(query.double().numpy(), key.double().numpy(), lengths, 0.5)
    assert found.dtype == torch.float32
    assert_close(found, expected)
    for run in torch.split(found, lengths):
        assert float(run.sum()) == pytest.approx(1, rel=1e-5)  # a query hands out one unit of attention


@usual
@given(seeds, st.permutations(range(6)), st.integers(1, 4))
def test_pooled_patches(seed: int, order: list[int], per_token: int) -> None:
    patches = normal(seed, 6 * per_token)
    found = pool_patches(patches, per_token, torch.tensor(order))
    assert_close(found, literal_model.pooled(patches.double().numpy(), per_token, order))


@usual
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 20))
def test_attention_of_the_last_query(seed: int, kv_heads: int, share: int, length: int) -> None:
    query, key = normal(seed, kv_heads * share, 4), normal(seed + 1, length, kv_heads, 4)
    found = last_query_attention(query, key, scaling=0.5)
    expected = literal_model.attention_of_last(query.double().numpy(), key.double().numpy(), 0.5)
    assert_close(found, expected)


@st.composite
def prompts(draw: st.DrawFn) -> list[Part]:
    """Text, and videos with it or without any between them."""
    grids = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
    seconds = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 1.1, 2.0, 7.3])
    return draw(st.lists(st.integers(0, 5) | st.tuples(grids, seconds), min_size=1, max_size=6))


def spans_of(parts: list[Part]) -> tuple[int, list[VisionSpan]]:
    spans, done = [], 0
    for part in parts:
        if isinstance(part, int):
            done += part
        else:
            spans.append(VisionSpan("video", done, *part))
            done = spans[-1].stop
    return done, spans


@usual
@given(prompts(), st.sampled_from([1.0, 2.0, 2.5]))
def test_positions(parts: list[Part], tokens_per_second: float) -> None:
    num_tokens, spans = spans_of(parts)
    found = mrope_positions(num_tokens, spans, tokens_per_second=tokens_per_second)
    assert found.tolist() == literal_model.positions(parts, tokens_per_second)


@usual
@given(prompts())
def test_text_never_starts_inside_a_video(parts: list[Part]) -> None:
    num_tokens, spans = spans_of([3, *parts, 2])
    found = mrope_positions(num_tokens, spans, tokens_per_second=2)
    for span in spans:
        before, after = found[:, : span.stop], found[:, span.stop :]
        assert int(after.min()) == int(before.max()) + 1
    assert int(found[:, -1].min()) == int(found.max())  # so generation goes on after everything


@st.composite
def prompt_rows(draw: st.DrawFn) -> tuple[list[list[int]], list[list[bool]]]:
    """Scores and marks of visual tokens; few different scores, so that ties decide often."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    scores = st.lists(st.integers(0, 3), min_size=length, max_size=length)
    marks = st.lists(st.booleans(), min_size=length, max_size=length)
    return [draw(scores) for _ in range(rows)], [draw(marks) for _ in range(rows)]


@usual
@given(prompt_rows(), st.integers(1, 100))
def test_survivors_inside_the_model(case: tuple[list[list[int]], list[list[bool]]], percent: int) -> None:
    attention, visual = case
    keep = select_tokens(torch.tensor(attention) / 4, torch.tensor(visual), percent / 100)
    for row, scores, marks in zip(keep, attention, visual, strict=True):
        assert row.nonzero().squeeze(1).tolist() == literal_model.survivors(scores, marks, percent / 100)
    cut = plan_cut(keep)
    for row, index, padding in zip(keep, cut.index, cut.padding.tolist(), strict=True):
        assert index[padding:].tolist() == row.nonzero().squeeze(1).tolist()
    assert int(cut.padding.min()) == 0  # no wider than the longest row
