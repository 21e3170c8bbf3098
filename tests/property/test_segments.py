"""DySeg against the literal implementation, and its algebra."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashvid.compression.segments import segment_ids, segment_lengths
from tests.oracles import literal
from tests.property.clips import Clip, axis_clips, clips
from tests.property.stages import unit_means

usual = settings(max_examples=60)
thresholds = st.sampled_from([-0.5, 0.0, 0.5, 0.9, 1.0])


axes = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def means_along(axes: list[int]) -> Tensor:
    """Means of which neighbours have cosine 0 or 1 (or 0 with a zero mean), exactly."""
    return torch.cat((torch.eye(5), torch.zeros(1, 5)))[axes]


def lengths_of(clip: Clip, threshold: float, least: int, fill: bool) -> list[int]:
    means = unit_means(clip.features)
    return list(segment_lengths(means, threshold=threshold, min_segments=least, fill=fill))


@usual
@given(clips(max_units=9, max_tokens=4), thresholds, st.integers(1, 12), st.booleans())
def test_same_as_literal(clip: Clip, threshold: float, least: int, fill: bool) -> None:
    expected = literal.segments(clip.features.double().numpy(), threshold, least, fill)
    assert lengths_of(clip, threshold, least, fill) == expected


@usual
@given(axes, thresholds, st.integers(1, 12), st.booleans(), st.booleans())
def test_ties_are_spread_and_in_the_reference_go_to_the_earliest(
    axes: list[int], threshold: float, least: int, fill: bool, earliest: bool
) -> None:
    """Cosines are equal to each other, and at times to the threshold."""
    means = means_along(axes)
    lengths = segment_lengths(
        means, threshold=threshold, min_segments=least, fill=fill, reference_ties=earliest
    )
    features = means.double().unsqueeze(1).numpy()
    assert list(lengths) == literal.segments(features, threshold, least, fill, earliest=earliest)


@usual
@given(st.integers(1, 200), st.integers(1, 12), st.integers(0, 2**31))
def test_a_still_is_cut_into_equal_parts(units: int, least: int, seed: int) -> None:
    mean = torch.randn(24, generator=torch.Generator().manual_seed(seed))
    lengths = segment_lengths(mean.expand(units, -1), min_segments=least)
    assert len(lengths) == min(least, units)
    assert max(lengths) - min(lengths) <= 1


@usual
@given(st.lists(st.integers(2, 30), min_size=1, max_size=5), st.integers(0, 2**31))
def test_rounding_does_not_choose_which_slide_is_cut(shown: list[int], seed: int) -> None:
    """The cosine of a picture with itself is 1, or misses it by a rounding that differs from picture to
    picture; one cut more than there are changes falls in the middle of all that is left."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(len(shown), 50, generator=generator).repeat_interleave(torch.tensor(shown), dim=0)
    changes = set(torch.tensor(shown).cumsum(0)[:-1].tolist())
    cuts = set(torch.tensor(segment_lengths(means, min_segments=len(shown) + 1)).cumsum(0)[:-1].tolist())
    inside = [t for t in range(1, sum(shown)) if t not in changes]
    assert cuts == changes | {inside[(len(inside) + 1) // 2 - 1]}


@usual
@given(clips(max_units=9, max_tokens=4), thresholds, st.integers(1, 12))
def test_without_ties_the_reference_cuts_alike(clip: Clip, threshold: float, least: int) -> None:
    means = unit_means(clip.features)
    ours, theirs = (
        segment_lengths(means, threshold=threshold, min_segments=least, reference_ties=reference)
        for reference in (False, True)
    )
    assert ours == theirs


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
