"""DPC-kNN against the literal implementation, and its algebra."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashvid.compression.clustering import Clusters, cluster_units
from tests.oracles import literal
from tests.property.clips import Clip, clips

usual = settings(max_examples=60)


def cluster(points: Tensor, count: int) -> Clusters:
    return cluster_units(
        points.unsqueeze(0), torch.ones(1, len(points), dtype=torch.bool), torch.tensor([count])
    )


@st.composite
def lines(draw: st.DrawFn) -> Tensor:
    """Points on a line at multiples of 1/2, some twice, as many as a power of two: every step is exact."""
    size = draw(st.sampled_from([1, 2, 4, 8, 16]))
    places = draw(st.lists(st.integers(0, 9), min_size=size, max_size=size))
    line = torch.zeros(size, draw(st.sampled_from([1, 4])))
    line[:, 0] = torch.tensor(places) / 2
    return line


@usual
@given(clips(max_units=4, max_tokens=18), st.data())
def test_same_as_literal_with_ragged_units(clip: Clip, data: st.DataObject) -> None:
    num_units, num_tokens, _ = clip.features.shape
    sizes = [data.draw(st.integers(1, num_tokens)) for _ in range(num_units)]
    counts = [data.draw(st.integers(1, size)) for size in sizes]
    valid = torch.arange(num_tokens) < torch.tensor(sizes).unsqueeze(1)
    padded = clip.features.masked_fill(~valid.unsqueeze(-1), 1e3)
    found = cluster_units(padded, valid, torch.tensor(counts))
    for t, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        centers, assignment = literal.clusters(clip.features[t, :size].double().numpy(), count)
        assert found.centers[t, :count].tolist() == centers
        assert found.assignment[t, :size].tolist() == assignment


@usual
@given(lines(), st.data())
def test_ties_go_to_the_earliest_point_and_the_best_center(points: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(points)))
    _, density, score = literal.cluster_scores(points.double().numpy(), count)
    for values in (density, score):  # true ties or clear differences, nothing that float32 might round away
        assume(all(b == a or b - a > 1e-5 * b for a, b in pairwise(sorted(values))))
    found = cluster(points, count)
    centers, assignment = literal.clusters(points.double().numpy(), count)
    assert found.centers[0].tolist() == centers
    assert found.assignment[0].tolist() == assignment


@usual
@given(lines(), st.data(), st.integers(-8, 8), st.booleans())
def test_moving_or_mirroring_all_points_changes_nothing(
    points: Tensor, data: st.DataObject, shift: int, mirror: bool
) -> None:
    count = data.draw(st.integers(1, len(points)))
    plain, moved = cluster(points, count), cluster((-points if mirror else points) + shift, count)
    assert torch.equal(plain.centers, moved.centers)
    assert torch.equal(plain.assignment, moved.assignment)


@usual
@given(clips(max_units=1, max_tokens=18), st.data())
def test_every_center_stands_for_itself_and_every_point_for_a_nearest_center(
    clip: Clip, data: st.DataObject
) -> None:
    points = clip.features[0]
    if data.draw(st.booleans()):
        points = points[torch.arange(len(points)) // 2]  # every point twice: centres may coincide
    count = data.draw(st.integers(1, len(points)))
    found = cluster(points, count)
    centers = found.centers[0]
    assert len(set(centers.tolist())) == count
    assert torch.equal(found.center_of_point()[0, centers], centers)
    distances = torch.cdist(points.double(), points[centers].double())
    mine = distances.gather(1, found.assignment[0].unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(mine, distances.amin(dim=1), rtol=1e-4, atol=2e-3)


@usual
@given(clips(max_units=1, max_tokens=18))
def test_as_many_centers_as_points_keep_every_point(clip: Clip) -> None:
    points = clip.features[0]
    assert sorted(cluster(points, len(points)).centers[0].tolist()) == list(range(len(points)))


@usual
@given(clips(max_units=3, max_tokens=10), st.data())
def test_padding_and_neighbours_change_nothing(clip: Clip, data: st.DataObject) -> None:
    """A unit clustered with others, its points spread over wider padding, is clustered as alone."""
    num_units, num_tokens, width = clip.features.shape
    counts = [data.draw(st.integers(1, num_tokens)) for _ in range(num_units)]
    places = torch.tensor(sorted(data.draw(st.permutations(range(num_tokens + 3)))[:num_tokens]))
    padded = torch.full((num_units, num_tokens + 3, width), -50.0)
    padded[:, places] = clip.features
    valid = torch.zeros(num_units, num_tokens + 3, dtype=torch.bool)
    valid[:, places] = True
    together = cluster_units(padded, valid, torch.tensor(counts))
    for t, count in enumerate(counts):
        alone = cluster(clip.features[t], count)
        assert torch.equal(together.centers[t, :count], places[alone.centers[0]])
        assert torch.equal(together.assignment[t, places], alone.assignment[0])
