"""TSTM against the literal implementation, and its algebra."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashvid.compression.merging import Forest, tree_weights
from tests.oracles import literal
from tests.property.clips import Clip, axis_clips, clips, joined, lengths_of
from tests.property.stages import link

usual = settings(max_examples=60)
thresholds = st.sampled_from([-1.0, 0.0, 0.2, 0.8, 1.0, 1.5])  # 0 and 1 are cosines that occur on the axes


def draw_choice(data: st.DataObject, clip: Clip) -> Tensor:
    """(T, N) bool, the same number in each unit."""
    num_units, num_tokens, _ = clip.features.shape
    count = data.draw(st.integers(0, num_tokens))
    picks = (clip.saliency + torch.arange(num_tokens) / 1e3).argsort(dim=1)[:, :count]
    return torch.zeros(num_units, num_tokens, dtype=torch.bool).scatter_(1, picks, True)


def draw_budget(data: st.DataObject, chosen: Tensor) -> int:
    return data.draw(st.integers(max(1, int(chosen[0].sum())), chosen.shape[1]))


@usual
@given(clips() | axis_clips(), thresholds, st.data())
def test_same_as_literal(clip: Clip, threshold: float, data: st.DataObject) -> None:
    chosen, lengths = draw_choice(data, clip), data.draw(lengths_of(clip))
    budget = draw_budget(data, chosen)
    forest = link(clip.features, chosen, lengths, unit_budget=budget, threshold=threshold)
    picks = [row.nonzero().squeeze(1).tolist() for row in chosen]
    parent = literal.parents(clip.features.double().numpy(), picks, lengths, budget, threshold)
    assert forest.parent.tolist() == parent
    assert forest.root.tolist() == literal.roots_of(parent)


@settings(max_examples=100)
@given(axis_clips(), st.integers(2, 12), st.sampled_from([-1.0, 0.0, 0.2, 0.8]), st.data())
def test_same_as_literal_where_a_clip_repeats_itself(
    clip: Clip, times: int, threshold: float, data: st.DataObject
) -> None:
    features = clip.features.repeat(times, 1, 1)
    num_units, num_tokens, _ = features.shape
    lengths = data.draw(lengths_of(Clip(features, clip.saliency)))
    count = data.draw(st.integers(0, num_tokens - 1))
    budget = data.draw(st.integers(max(1, count), num_tokens))
    picks = [list(range(count)) for _ in range(num_units)]
    chosen = torch.zeros(num_units, num_tokens, dtype=torch.bool)
    chosen[:, :count] = True
    forest = link(features, chosen, lengths, unit_budget=budget, threshold=threshold)
    assert forest.parent.tolist() == literal.parents(
        features.double().numpy(), picks, lengths, budget, threshold
    )


@usual
@given(clips(min_units=3, min_tokens=4, max_tokens=9), st.sampled_from([-1.0, 0.0, 0.4]), st.data())
def test_the_floor_raises_the_threshold(clip: Clip, threshold: float, data: st.DataObject) -> None:
    """Only clips of which more would link than may: the k-th best link and all below it are not made."""
    num_units, num_tokens, _ = clip.features.shape
    first = data.draw(st.integers(0, num_units - 3))
    lengths = [first, num_units - first] if first else [num_units]
    budget = data.draw(st.integers(num_tokens - 3, num_tokens))
    features = clip.features.double().numpy()
    nobody: list[list[int]] = [[] for _ in range(num_units)]
    free = literal.parents(features, nobody, lengths, 0, threshold)
    would_link = [token // num_tokens >= first and above != token for token, above in enumerate(free)]
    most = lengths[-1] * (num_tokens - budget)
    assume(sum(would_link) > most)
    assume(_is_told_apart(features, nobody, range(first, num_units), most))
    nothing = torch.zeros(num_units, num_tokens, dtype=torch.bool)
    forest = link(clip.features, nothing, lengths, unit_budget=budget, threshold=threshold)
    assert forest.parent.tolist() == literal.parents(features, nobody, lengths, budget, threshold)
    links = forest.parent.view(nothing.shape) != torch.arange(nothing.numel()).view(nothing.shape)
    assert int(links[first:].sum()) == max(0, most - 1)


def _is_told_apart(features: literal.Array, nobody: list[list[int]], units: range, most: int) -> bool:
    """Whether float32 ranks the last link above the floor and the one on it as float64 does."""
    ranked = sorted((cosine for cosine, _ in literal.best_matches(features, nobody, units)), reverse=True)
    return most < 2 or ranked[most - 2] - ranked[most - 1] > 1e-6


@usual
@given(clips(max_units=9) | axis_clips(), thresholds, st.data())
def test_the_floor_holds_in_every_segment(clip: Clip, threshold: float, data: st.DataObject) -> None:
    chosen, lengths = draw_choice(data, clip), data.draw(lengths_of(clip))
    budget = draw_budget(data, chosen)
    forest = link(clip.features, chosen, lengths, unit_budget=budget, threshold=threshold)
    own = torch.arange(chosen.numel())
    unlinked = (forest.parent == own).view_as(chosen).sum(dim=1)
    for part, length in zip(torch.split(unlinked, lengths), lengths, strict=True):
        assert int(part.sum()) >= budget * length


@usual
@given(clips(max_units=9) | axis_clips(), st.sampled_from([-1.0, 0.2, 0.8]), st.data())
def test_links_go_one_unit_back_within_the_segment(clip: Clip, threshold: float, data: st.DataObject) -> None:
    chosen, lengths = draw_choice(data, clip), data.draw(lengths_of(clip))
    budget = draw_budget(data, chosen)
    forest = link(clip.features, chosen, lengths, unit_budget=budget, threshold=threshold)
    own = torch.arange(chosen.numel())
    num_tokens = chosen.shape[1]
    linked = forest.parent != own
    assert torch.equal(forest.parent[linked] // num_tokens, own[linked] // num_tokens - 1)
    assert not bool(chosen.view(-1)[own[linked]].any())
    assert not bool(chosen.view(-1)[forest.parent[linked]].any())
    segment = torch.repeat_interleave(torch.tensor(lengths)).repeat_interleave(num_tokens)
    assert torch.equal(segment[forest.root], segment)
    assert torch.equal(forest.root[forest.root], forest.root)
    assert torch.equal(forest.root[forest.parent], forest.root)


@usual
@given(clips(), st.sampled_from([0.2, 0.8]), st.data())
def test_reordered_tokens_give_the_reordered_trees(clip: Clip, threshold: float, data: st.DataObject) -> None:
    """Each unit in an order of its own: a match is found wherever it has gone."""
    num_units, num_tokens, _ = clip.features.shape
    orders = torch.tensor([data.draw(st.permutations(range(num_tokens))) for _ in range(num_units)])
    moved = clip.features.gather(1, orders.unsqueeze(-1).expand_as(clip.features))
    chosen = draw_choice(data, clip)
    budget = draw_budget(data, chosen)
    plain, mixed = (
        link(features, mask, [num_units], unit_budget=budget, threshold=threshold)
        for features, mask in ((clip.features, chosen), (moved, chosen.gather(1, orders)))
    )
    old = (orders + torch.arange(num_units).unsqueeze(1) * num_tokens).view(-1)  # old index of each new one
    assert torch.equal(old[mixed.parent], plain.parent[old])
    assert torch.equal(old[mixed.root], plain.root[old])


@usual
@given(clips(max_tokens=8), clips(max_tokens=8), st.sampled_from([-1.0, 0.2, 0.8]), st.data())
def test_segments_do_not_see_each_other(
    first: Clip, second: Clip, threshold: float, data: st.DataObject
) -> None:
    num_tokens = min(first.features.shape[1], second.features.shape[1])
    parts = [Clip(c.features[:, :num_tokens], c.saliency[:, :num_tokens]) for c in (first, second)]
    both = joined(*parts)
    chosen = draw_choice(data, both)
    budget = draw_budget(data, chosen)
    lengths = [len(part.features) for part in parts]
    together = link(both.features, chosen, lengths, unit_budget=budget, threshold=threshold)
    start = 0
    for part, length in zip(parts, lengths, strict=True):
        mask = chosen[start : start + length]
        alone = link(part.features, mask, [length], unit_budget=budget, threshold=threshold)
        rows = slice(start * num_tokens, (start + length) * num_tokens)
        assert torch.equal(together.root[rows] - start * num_tokens, alone.root)
        start += length


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    """Any forest, deeper and bushier than random features give: a parent is an earlier token or itself."""
    parent = [draw(st.integers(0, token)) for token in range(draw(st.integers(1, 24)))]
    return Forest(torch.tensor(literal.roots_of(parent)), torch.tensor(parent))


@usual
@given(forests())
def test_weights_of_members_and_of_direct_children(forest: Forest) -> None:
    root, parent = forest.root.tolist(), forest.parent.tolist()
    sizes = [root.count(r) for r in root]
    children = [sum(p == r for i, p in enumerate(parent) if i != r) for r in root]
    torch.testing.assert_close(tree_weights(forest, "members"), torch.tensor([1 / s for s in sizes]))
    torch.testing.assert_close(
        tree_weights(forest, "reference"), torch.tensor([1 / (1 + c) for c in children])
    )


@usual
@given(forests(), st.integers(0, 2**31))
def test_a_tree_is_the_mean_of_its_members(forest: Forest, seed: int) -> None:
    rows = torch.randn(len(forest.root), 5, generator=torch.Generator().manual_seed(seed))
    weighted = rows * tree_weights(forest, "members").unsqueeze(1)
    values = torch.zeros_like(rows).index_add_(0, forest.root, weighted)
    for root in set(forest.root.tolist()):
        torch.testing.assert_close(values[root], rows[forest.root == root].mean(dim=0))
