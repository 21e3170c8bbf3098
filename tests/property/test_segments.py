"""DySeg against the literal implementation, and its algebra."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvid.compression.segments import segment_ids, segment_lengths
from tests.oracles import literal
from tests.property.clips import Clip, axis_clips, clips
from tests.property.stages import unit_means

usual = settings(max_examples=60)
thresholds = st.sampled_from([-0.5, 0.0, 0.5, 0.9, 1.0])


def lengths_of(clip: Clip, threshold: float, least: int, fill: bool) -> list[int]:
    means = unit_means(clip.features)
    return list(segment_lengths(means, threshold=threshold, min_segments=least, fill=fill))


@usual
@given(clips(max_units=9, max_tokens=4), thresholds, st.integers(1, 12), st.booleans())
def test_same_as_literal(clip: Clip, threshold: float, least: int, fill: bool) -> None:
    expected = literal.segments(clip.features.double().numpy(), threshold, least, fill)
    assert lengths_of(clip, threshold, least, fill) == expected


@usual
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), thresholds, st.integers(1, 12), st.booleans())
def test_ties_go_to_the_earliest_cut(axes: list[int], threshold: float, least: int, fill: bool) -> None:
    """Means along few axes: neighbouring cosines are 0 or 1 (or 0 with a zero mean), and equal to the
    threshold at times."""
    means = torch.cat((torch.eye(5), torch.zeros(1, 5)))[axes]
    lengths = segment_lengths(means, threshold=threshold, min_segments=least, fill=fill)
    expected = literal.segments(means.double().unsqueeze(1).numpy(), threshold, least, fill)
    assert list(lengths) == expected


@usual
@given(clips(max_units=9, max_tokens=3) | axis_clips(), thresholds, st.integers(1, 12), st.booleans())
def test_lengths_add_up(clip: Clip, threshold: float, least: int, fill: bool) -> None:
    lengths = lengths_of(clip, threshold, least, fill)
    assert min(lengths) >= 1
    assert sum(lengths) == len(clip.features)
    if fill:
        assert len(lengths) >= min(least, len(clip.features))


@usual
@given(clips(max_units=9, max_tokens=3), thresholds, st.integers(1, 11))
def test_asking_for_more_segments_only_adds_cuts(clip: Clip, threshold: float, least: int) -> None:
    few = torch.tensor(lengths_of(clip, threshold, least, True)).cumsum(0).tolist()
    more = torch.tensor(lengths_of(clip, threshold, least + 1, True)).cumsum(0).tolist()
    assert set(few) <= set(more)
    assert len(more) <= max(len(few), least + 1)


@usual
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_numbers_of_segments(lengths: list[int]) -> None:
    ids = segment_ids(lengths, torch.device("cpu"))
    assert ids.dtype == torch.int64
    assert ids.tolist() == [number for number, length in enumerate(lengths) for _ in range(length)]
