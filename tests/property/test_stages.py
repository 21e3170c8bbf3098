"""Each stage against the literal implementation, on random clips."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvid.budget import share_places
from flashvid.clustering import cluster_units
from flashvid.merging import grow_trees, tree_weights
from flashvid.segments import segment_ids, segment_lengths, unit_means
from flashvid.selection import event_relevance, select_tokens
from tests.oracles import literal
from tests.property.clips import Clip, clips

quick = settings(max_examples=40, deadline=None)


@quick
@given(clips(max_units=9, max_tokens=4), st.sampled_from([-0.5, 0.5, 0.9]), st.integers(1, 12), st.booleans())
def test_segments(clip: Clip, threshold: float, least: int, fill: bool) -> None:
    means = unit_means(clip.features)
    lengths = segment_lengths(means, threshold=threshold, min_segments=least, fill=fill)
    assert list(lengths) == literal.segments(clip.features.double().numpy(), threshold, least, fill)


@quick
@given(clips(), st.sampled_from(["attn_div", "attn_div_v2", "attn", "div"]), st.data())
def test_selection(clip: Clip, method: str, data: st.DataObject) -> None:
    num_units, num_tokens, _ = clip.features.shape
    count = data.draw(st.integers(0, num_tokens))
    half = num_units // 2
    lengths = [half, num_units - half] if half else [num_units]
    relevance = event_relevance(
        clip.features, unit_means(clip.features), segment_ids(lengths, clip.features.device), len(lengths)
    )
    picks = select_tokens(clip.features, clip.saliency, count, method, relevance)  # type: ignore[arg-type]
    expected = literal.select(
        clip.features.double().numpy(), clip.saliency.double().numpy(), count, method, lengths
    )
    assert picks.tolist() == expected


@quick
@given(clips(), st.sampled_from([-1.0, 0.2, 0.8]), st.data())
def test_trees(clip: Clip, threshold: float, data: st.DataObject) -> None:
    num_units, num_tokens, _ = clip.features.shape
    count = data.draw(st.integers(0, num_tokens))
    budget = data.draw(st.integers(max(1, count), num_tokens))
    first = data.draw(st.integers(1, num_units))
    lengths = [first, num_units - first] if first < num_units else [num_units]
    picks = clip.saliency.argsort(dim=1)[:, :count]
    chosen = torch.zeros(num_units, num_tokens, dtype=torch.bool).scatter_(1, picks, True)
    forest = grow_trees(clip.features, chosen, lengths, unit_budget=budget, threshold=threshold)
    parent = literal.parents(clip.features.double().numpy(), picks.tolist(), lengths, budget, threshold)
    assert forest.parent.tolist() == parent
    root = torch.tensor(parent)
    for _ in range(num_units):
        root = torch.tensor(parent)[root]
    assert torch.equal(forest.root, root)
    assert int((forest.root == torch.arange(len(parent))).sum()) >= budget * num_units


@quick
@given(clips(max_units=5))
def test_tree_weights(clip: Clip) -> None:
    num_units, num_tokens, _ = clip.features.shape
    nothing = torch.zeros(num_units, num_tokens, dtype=torch.bool)
    forest = grow_trees(clip.features, nothing, [num_units], unit_budget=1, threshold=0.2)
    root, parent = forest.root.tolist(), forest.parent.tolist()
    sizes = [root.count(r) for r in root]
    children = [sum(p == r for i, p in enumerate(parent) if i != r) for r in root]
    torch.testing.assert_close(tree_weights(forest, "members"), torch.tensor([1 / s for s in sizes]))
    torch.testing.assert_close(
        tree_weights(forest, "reference"), torch.tensor([1 / (1 + c) for c in children])
    )


@quick
@given(clips(max_units=4, max_tokens=18), st.data())
def test_clusters(clip: Clip, data: st.DataObject) -> None:
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


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(0, 300))
def test_places_are_shared_out(roots: list[int], places: int) -> None:
    with_roots = sum(n > 0 for n in roots)
    places = max(places, with_roots)
    shares = share_places(roots, places)
    assert sum(shares) == min(places, sum(roots))
    assert all(min(1, n) <= share <= n for n, share in zip(roots, shares, strict=True))
    if places < sum(roots) and all(places * n >= sum(roots) for n in roots if n):
        assert shares == _largest_remainder(roots, places)


def _largest_remainder(roots: list[int], places: int) -> list[int]:
    quotas = [divmod(places * n, sum(roots)) for n in roots]
    left = places - sum(whole for whole, _ in quotas)
    lucky = sorted(range(len(roots)), key=lambda t: (-quotas[t][1], t))[:left]
    return [whole + (t in lucky) for t, (whole, _) in enumerate(quotas)]
