"""The benchmarks measure what they say, at sizes where that takes no time; no clock is trusted here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import compression, decoding, oracle, saliency
from benchmarks.cases import Case
from benchmarks.clips import KINDS, Kind, make_features, make_saliency
from benchmarks.criteria import criteria, ops_growth
from benchmarks.generation import CASES, measure_generation
from benchmarks.measure import LiveBytes, Seconds, count_ops, interleave, peak_extra_bytes
from benchmarks.memory import resident_growth_bytes
from benchmarks.phases import COMPRESSION, timed_stages
from benchmarks.random_model import SIZES, random_model
from benchmarks.reference import Reference
from flashvid import FlashVidConfig, compress, plan_compression

CPU = torch.device("cpu")
KILOBYTE = 256  # float32 values in one


def _small(kind: Kind = "video", units: int = 20) -> tuple[Tensor, Tensor]:
    return make_features(kind, units, 64, 32), make_saliency(units, 64)


def test_clips_are_the_same_each_time_and_unlike_for_another_seed() -> None:
    assert torch.equal(make_features("video", 5, 9, 8), make_features("video", 5, 9, 8))
    assert not torch.equal(make_features("video", 5, 9, 8), make_features("video", 5, 9, 8, seed=3))
    half = make_features("noise", 5, 9, 8, dtype=torch.bfloat16)
    assert torch.equal(half, make_features("noise", 5, 9, 8).bfloat16())


def test_a_video_gives_every_stage_work_and_noise_links_nothing() -> None:
    features, received = _small(units=39)
    plan = plan_compression(features, received, FlashVidConfig(retention_ratio=0.2))
    assert len(plan.segment_lengths) >= 3
    assert bool((plan.group_sizes > 2).any())
    noise = make_features("noise", 8, 64, 512)
    normal = torch.nn.functional.normalize(noise, dim=-1)
    assert float((normal[1:] @ normal[:-1].transpose(1, 2)).max()) < 0.8


def test_live_bytes_counts_what_is_alive_and_neither_views_nor_inputs() -> None:
    known = torch.zeros(8 * KILOBYTE)

    def call() -> Tensor:
        view = known.view(8, KILOBYTE)[2:]  # nothing
        first = view + 1  # 6 kB
        second = first.view(-1) * 2  # 12 kB
        del first, view  # 6 kB
        return second[:KILOBYTE].clone()  # 7 kB

    assert peak_extra_bytes(call, (known,)) == 12 * 1024


def test_live_bytes_forgets_what_is_gone() -> None:
    with LiveBytes() as live:
        for _ in range(5):
            torch.ones(KILOBYTE)
    assert live.peak == 1024


def test_operations_are_counted_by_name() -> None:
    counter = count_ops(lambda: torch.ones(2, 3).add_(1).t())
    assert counter.by_name == {"aten.ones": 1, "aten.add_": 1, "aten.t": 1}
    assert counter.total == 3


def test_contestants_take_turns_and_warm_up() -> None:
    order: list[str] = []
    contestants = {name: (lambda name=name: lambda: order.append(name)) for name in "ab"}
    seconds = interleave(contestants, rounds=2, device=CPU)
    assert order == list("ababab")
    assert len(seconds["a"].rounds) == 2


def test_seconds_summarise() -> None:
    seconds = Seconds.of([4.0, 1.0, 2.0, 3.0, 10.0])
    assert (seconds.median, seconds.min, seconds.max, seconds.spread) == (3.0, 1.0, 10.0, 2.0)


def test_stages_cover_compress_and_leave_the_library_as_it_was() -> None:
    def functions() -> list[object]:
        return [getattr(holder, name) for stage in COMPRESSION.values() for holder, name in stage]

    before = functions()
    features, received = _small()
    seen = timed_stages(lambda: compress(features, received, FlashVidConfig()), COMPRESSION, CPU)
    assert set(seen) == {*COMPRESSION, "other", "total"}
    assert all(seen[stage] > 0 for stage in COMPRESSION)
    assert sum(seen[stage] for stage in (*COMPRESSION, "other")) == pytest.approx(seen["total"])
    assert functions() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_measured_and_agrees_with_the_oracle(kind: Kind) -> None:
    case = Case(kind, 4, 25, 16, 0.25, "float32")
    settings = compression.Settings(threads=1, rounds=1, oracle_units=(4,), with_memory=False)
    (result,) = compression.measure_together([case], settings)
    assert result["oracle"]["same_kept"]
    assert result["oracle"]["same_group_sizes"]
    assert result["oracle"]["largest_difference"] < 1e-4
    assert result["ops"] > 50
    json.dumps(result)


def test_criteria_are_checked_where_they_were_measured() -> None:
    def case(units: int, dtype: str, seconds: float, **more: object) -> dict[str, object]:
        fixed = {"kind": "video", "retention": 0.1, "ops": 100 + units}
        return {**fixed, "units": units, "dtype": dtype, "ours": {"median": seconds}, **more}

    cases = [
        case(80, "float32", 0.5, speedup={"of_medians": 2.5}),
        case(80, "bfloat16", 0.6),
        case(320, "bfloat16", 2.0, memory={"peak_extra_bytes": 9, "limit_bytes": 10}),
    ]
    reached = criteria(cases, "cpu")
    assert [(one["value"], one["holds"]) for one in reached] == [(2.5, True), (1.2, False), (9, True)]
    assert [one["holds"] for one in criteria(cases, "cuda:0")] == [False, False, False, True]


def test_the_oracle_notices_another_result() -> None:
    """Positive control: the kept tokens of another setting are not the oracle's."""
    case = Case("video", 3, 16, 8, 0.3, "float32")
    features, received = case.inputs()
    assert oracle.compare(compress(features, received, case.config), *case.inputs(), case.config)["same_kept"]
    other = compress(features, received, FlashVidConfig(retention_ratio=0.4))
    assert not oracle.compare(other, features, received, case.config)["same_kept"]


def test_growth_compares_the_most_units_with_the_fewest() -> None:
    cases = [
        {"kind": "video", "retention": 0.1, "dtype": "float32", "units": units, "ops": ops}
        for units, ops in ((80, 120), (16, 100), (320, 130))
    ]
    (growth,) = ops_growth(cases)
    assert (growth["units"], growth["ratio"]) == ([16, 320], 1.3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_fresh_process_grows_by_at_least_what_is_alive() -> None:
    features, received = make_features("video", 16, 256, 256), make_saliency(16, 256)
    config = FlashVidConfig()
    alive = peak_extra_bytes(lambda: compress(features, received, config), (features, received))
    grown = resident_growth_bytes("video", 16, 256, 256, retention=0.1, dtype="float32", threads=1)
    assert alive / 2 < grown < 20 * alive + 2**26


def test_saliency_and_the_whole_map_agree() -> None:
    case = saliency.measure_saliency(
        3, patches=24, heads=2, head_dim=8, dtype="float32", device="cpu", rounds=1, with_whole_map=True
    )
    assert case["largest_relative_difference"] < 1e-4
    assert case["whole_map"]["peak_extra_bytes"] >= 3 * 2 * 24 * 24 * 4


def test_generation_takes_its_stages_apart() -> None:
    model = random_model(SIZES["tiny"], device="cpu", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    cases = measure_generation(model, CASES[:1] + CASES[2:], side=56, rounds=1, warmups=0)
    assert [case["visual_tokens_before"] for case in cases] == [32, 320]
    assert cases[0]["visual_tokens_after"] == 32
    assert cases[1]["visual_tokens_after"] == 80  # ceil(4 * 0.1 * 1.25) of each of 80 units
    for case in cases:
        assert all(case["seconds"][stage] > 0 for stage in ("vision_tower", "compression", "language_model"))


def test_something_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkout of the reference"):
        Reference(tmp_path)


def test_results_are_written_beside_their_table(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "result.json"
    small = ["--units", "2", "4", "--tokens", "9", "--width", "8", "--retention", "0.3", "--dtype", "float32"]
    few = ["--threads", "1", "--rounds", "1", "--no-memory", "--kind", "noise", "--oracle-units"]
    threads = torch.get_num_threads()
    try:
        compression.main([*small, *few, "-o", str(output)])
    finally:
        torch.set_num_threads(threads)
    result = json.loads(output.read_text())
    assert [case["units"] for case in result["cases"]] == [2, 4]
    assert result["machine"]["torch"] == torch.__version__
    assert len(output.with_suffix(".md").read_text().splitlines()) == 4


def test_decoders_are_compared_on_the_same_pictures() -> None:
    kind = decoding.Kind("a.mp4", "libx264", 64, 64, 20, 10, 4)
    (result,) = decoding.measure([kind], Path(__file__).parents[2], decoding.How(1, 28 * 28, 1))
    assert set(result["frames"]) == {"pyav", "decord", "before, pyav", "before, decord"}
    assert set(result["frames"].values()) == {4}
    assert result["same_times"]
    assert result["most_mean_difference"] < 3
    assert decoding.table([result]).count("\n") == 3
