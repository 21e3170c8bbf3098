"""Each stage alone against what the reference code computed, density noise off, in float32."""

from __future__ import annotations

import pytest
import torch

from flashvid.arithmetic import unit_budget
from flashvid.compression.clustering import cluster_units
from flashvid.compression.merging import tree_weights
from flashvid.compression.plan import compress
from flashvid.compression.segments import segment_lengths
from flashvid.config import SelectionMethod
from tests.golden.cases import FILES, Case, load
from tests.property.stages import link, select, unit_means


def test_segment_lengths(case: Case) -> None:
    lengths = segment_lengths(
        unit_means(case["features"]),
        threshold=case.config.segment_threshold,
        min_segments=case.config.min_segment_num,
    )
    assert list(lengths) == case["segment_lengths"].tolist()


@pytest.mark.parametrize("method", ["attn_div", "attn_div_v2", "attn", "div"])
def test_selection(case: Case, method: SelectionMethod) -> None:
    golden, features = case[f"select_{method}"], case["features"]
    picks = select(features, case["attention"], golden.shape[1], method, [len(features)])
    assert torch.equal(picks.sort(dim=1).values, golden)


def test_trees(case: Case) -> None:
    features = case["features"]
    num_units, num_tokens, width = features.shape
    chosen = torch.zeros(num_units, num_tokens, dtype=torch.bool).scatter_(1, case["select_attn_div"], True)
    budget = unit_budget(case.config, num_units, num_tokens).kept
    threshold = case.config.temporal_threshold
    forest = link(features, chosen, [num_units], unit_budget=budget, threshold=threshold)
    is_root = (forest.root == torch.arange(num_units * num_tokens)) & ~chosen.view(-1)
    assert torch.equal(is_root.nonzero().squeeze(1), case["tstm_indices"])
    weighted = features.view(-1, width) * tree_weights(forest, "reference").unsqueeze(1)
    sums = torch.zeros_like(weighted).index_add_(0, forest.root, weighted)
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


def test_nothing_in_the_golden_files_is_left_out() -> None:
    """What a file holds is an input above or is compared above."""
    assert len(FILES) == 6
    compared = {f"select_{method}" for method in ("attn_div", "attn_div_v2", "attn", "div")}
    compared |= {"segment_lengths", "tstm_indices", "tstm_tokens", "indices", "tokens"}
    compared |= {"dpc_centers", "dpc_assignment", "features", "attention"}
    for path in FILES:
        assert set(load(path).tensors) <= compared
