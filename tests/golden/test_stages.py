"""Each stage alone against what the reference code computed, density noise off, in float32."""

from __future__ import annotations

import torch

from flashvid.budget import unit_budget
from flashvid.clustering import cluster_units
from flashvid.compression import compress
from flashvid.merging import add_rows, grow_trees, tree_weights
from flashvid.segments import segment_lengths, unit_means
from flashvid.selection import event_relevance, select_tokens
from tests.golden.cases import Case


def test_segment_lengths(case: Case) -> None:
    config = case.config
    lengths = segment_lengths(
        unit_means(case["features"]), threshold=config.segment_threshold, min_segments=config.min_segment_num
    )
    assert list(lengths) == case["segment_lengths"].tolist()


def test_select_attn_div(case: Case) -> None:
    golden = case["select_attn_div"]
    picks = select_tokens(case["features"], case["attention"], golden.shape[1], "attn_div")
    assert torch.equal(picks, golden)


def test_select_attn_div_v2(case: Case) -> None:
    golden, features = case["select_attn_div_v2"], case["features"]
    whole_clip = torch.zeros(len(features), dtype=torch.int64)
    relevance = event_relevance(features, unit_means(features), whole_clip, 1)
    picks = select_tokens(features, case["attention"], golden.shape[1], "attn_div_v2", relevance)
    assert torch.equal(picks, golden)


def test_select_attn(case: Case) -> None:
    golden = case["select_attn"]
    assert torch.equal(select_tokens(case["features"], case["attention"], golden.shape[1], "attn"), golden)


def test_select_div(case: Case) -> None:
    golden = case["select_div"]
    assert torch.equal(select_tokens(case["features"], None, golden.shape[1], "div"), golden)


def test_trees(case: Case) -> None:
    features = case["features"]
    num_units, num_tokens, width = features.shape
    chosen = torch.zeros(num_units, num_tokens, dtype=torch.bool).scatter_(1, case["select_attn_div"], True)
    forest = grow_trees(
        features,
        chosen,
        [num_units],
        unit_budget=unit_budget(case.config, num_units, num_tokens).kept,
        threshold=case.config.temporal_threshold,
    )
    is_root = (forest.root == torch.arange(num_units * num_tokens)) & ~chosen.view(-1)
    assert torch.equal(is_root.nonzero().squeeze(1), case["tstm_indices"])
    sums = add_rows(
        features.view(-1, width), forest.root, tree_weights(forest, "reference"), num_units * num_tokens
    )
    torch.testing.assert_close(sums[is_root], case["tstm_tokens"], rtol=1e-5, atol=1e-6)


def test_clusters(case: Case) -> None:
    unit = case["features"][len(case["features"]) // 2 :][:1]
    golden = case["dpc_centers"]
    clusters = cluster_units(unit, torch.ones(unit.shape[:2], dtype=torch.bool), torch.tensor([len(golden)]))
    assert torch.equal(clusters.centers[0], golden)
    assert torch.equal(clusters.assignment[0], case["dpc_assignment"])


def test_end_to_end(case: Case) -> None:
    video = compress(case["features"], case["attention"], case.config)
    assert torch.equal(video.kept, case["indices"])
    torch.testing.assert_close(video.tokens, case["tokens"], rtol=1e-5, atol=1e-6)


def test_budget_matches_the_selected_counts(case: Case) -> None:
    num_units, num_tokens, _ = case["features"].shape
    assert unit_budget(case.config, num_units, num_tokens).selected == case["select_attn"].shape[1]
