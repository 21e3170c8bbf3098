"""ADTS, all four methods, against the literal implementation, and its algebra."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashvid.config import SelectionMethod
from tests.oracles import literal
from tests.property import stages
from tests.property.clips import Clip, axis_clips, clips, joined, lengths_of

few = settings(max_examples=50)  # for each of the methods
METHODS: list[SelectionMethod] = ["attn_div", "attn_div_v2", "attn", "div"]


def select(clip: Clip, count: int, method: SelectionMethod, lengths: list[int]) -> Tensor:
    """(T, count), ascending in each unit."""
    return stages.select(clip.features, clip.saliency, count, method, lengths).sort(dim=1).values


def draw_count(data: st.DataObject, clip: Clip, least: int = 0) -> int:
    return data.draw(st.integers(least, clip.features.shape[1]))


@pytest.mark.parametrize("method", METHODS)
@few
@given(clip=clips(), data=st.data())
def test_same_as_literal(method: SelectionMethod, clip: Clip, data: st.DataObject) -> None:
    count, lengths = draw_count(data, clip), data.draw(lengths_of(clip))
    features, saliency = clip.features.double().numpy(), clip.saliency.double().numpy()
    expected = literal.select(features, saliency, count, method, lengths)
    assert select(clip, count, method, lengths).tolist() == expected


@pytest.mark.parametrize("method", METHODS)
@given(clip=axis_clips(), data=st.data())
def test_ties_go_to_the_lowest_index(method: SelectionMethod, clip: Clip, data: st.DataObject) -> None:
    count = draw_count(data, clip)
    features, saliency = clip.features.double().numpy(), clip.saliency.double().numpy()
    expected = literal.select(features, saliency, count, method, [len(features)])
    assert select(clip, count, method, [len(features)]).tolist() == expected


@pytest.mark.parametrize("method", METHODS)
@few
@given(clip=clips() | axis_clips(), data=st.data())
def test_each_unit_gets_that_many_rising_indices(
    method: SelectionMethod, clip: Clip, data: st.DataObject
) -> None:
    count = draw_count(data, clip)
    picks = select(clip, count, method, [len(clip.features)])
    assert picks.dtype == torch.int64
    assert picks.shape == (len(clip.features), count)
    assert bool((picks.diff(dim=1) > 0).all())
    assert bool(((picks >= 0) & (picks < clip.features.shape[1])).all())


@pytest.mark.parametrize("method", METHODS)
@few
@given(clip=clips(), data=st.data())
def test_a_larger_choice_holds_the_smaller(method: SelectionMethod, clip: Clip, data: st.DataObject) -> None:
    """Greedy: the next pick does not take back the ones before it."""
    count = draw_count(data, clip, least=1)
    few, more = (select(clip, n, method, [len(clip.features)]) for n in (count - 1, count))
    for some, all_of_them in zip(few.tolist(), more.tolist(), strict=True):
        assert set(some) < set(all_of_them)


@pytest.mark.parametrize("method", ["attn_div", "attn_div_v2", "attn"])  # two nearest neighbours tie in "div"
@few
@given(clip=clips(), data=st.data())
def test_reordered_tokens_give_the_reordered_choice(
    method: SelectionMethod, clip: Clip, data: st.DataObject
) -> None:
    num_tokens = clip.features.shape[1]
    assume(num_tokens > 2 or method != "attn_div_v2")  # two tokens tie where both go against their segment
    order = torch.tensor(data.draw(st.permutations(range(num_tokens))))
    count, lengths = draw_count(data, clip), [len(clip.features)]
    picks = select(clip, count, method, lengths)
    moved = select(Clip(clip.features[:, order], clip.saliency[:, order]), count, method, lengths)
    assert torch.equal(order[moved].sort(dim=1).values, picks)


@pytest.mark.parametrize("method", METHODS)
@few
@given(clip=clips(), data=st.data(), exponent=st.integers(-8, 8))
def test_only_relative_size_counts(
    method: SelectionMethod, clip: Clip, data: st.DataObject, exponent: int
) -> None:
    count, lengths = draw_count(data, clip), [len(clip.features)]
    scaled = Clip(clip.features * 2**exponent, clip.saliency * 2 ** (exponent // 2))
    assert torch.equal(select(scaled, count, method, lengths), select(clip, count, method, lengths))


@pytest.mark.parametrize("method", METHODS)
@few
@given(first=clips(max_tokens=8), second=clips(max_tokens=8), data=st.data())
def test_segments_do_not_see_each_other(
    method: SelectionMethod, first: Clip, second: Clip, data: st.DataObject
) -> None:
    num_tokens = min(first.features.shape[1], second.features.shape[1])
    parts = [Clip(c.features[:, :num_tokens], c.saliency[:, :num_tokens]) for c in (first, second)]
    count = draw_count(data, parts[0])
    apart = [select(part, count, method, [len(part.features)]) for part in parts]
    together = select(joined(*parts), count, method, [len(part.features) for part in parts])
    assert torch.equal(together, torch.cat(apart))
