"""The endpoint says what happened, and nothing that grows without bound."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator

import pytest

from pipeline.cluster.backlog import Counts
from pipeline.cluster.metrics import Metrics
from pipeline.config.sections import MetricsConfig
from pipeline.errors import Reason, UserError
from tests.unit.samples import make_failure, make_row

FIRST_TEN = {
    "flashvid_videos_total",
    "flashvid_failures_total",
    "flashvid_frames_decoded_total",
    "flashvid_visual_tokens_total",
    "flashvid_output_tokens_total",
    "flashvid_stage_duration_seconds_count",
    "flashvid_queue_videos",
    "flashvid_workers",
    "flashvid_gpu_wait_seconds_total",
    "flashvid_gpu_busy_seconds_total",
}


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.close()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_endpoint_shows_what_was_counted(metrics: Metrics) -> None:
    port = metrics.serve("127.0.0.1", 0)
    metrics.rows([make_row(1)])
    metrics.failure(make_failure(2, reason=Reason.CORRUPT))
    metrics.failure(make_failure(3, reason=Reason.READ_ERROR, is_final=False))
    metrics.observe(Counts(listed=9, pending=4, leased=2, suspect=1, waiting=3), {"ready": 2}, 1.5, True)
    text = scrape(port)
    for line in (
        'flashvid_videos_total{status="indexed"} 1.0',
        'flashvid_videos_total{status="failed"} 1.0',
        'flashvid_failures_total{reason="corrupt"} 1.0',
        'flashvid_failures_total{reason="read_error"} 1.0',
        "flashvid_frames_decoded_total 160.0",
        'flashvid_visual_tokens_total{stage="before"} 2880.0',
        'flashvid_visual_tokens_total{stage="after"} 360.0',
        "flashvid_output_tokens_total 12.0",
        'flashvid_stage_duration_seconds_count{stage="prefill"} 1.0',
        'flashvid_retries_total{reason="read_error"} 1.0',
        'flashvid_retries_total{reason="corrupt"} 0.0',
        'flashvid_queue_videos{state="suspect"} 1.0',
        'flashvid_queue_videos{state="waiting"} 3.0',
        'flashvid_queue_videos{state="pending"} 1.0',
        "flashvid_listing_done 1.0",
        'flashvid_workers{state="ready"} 2.0',
        "flashvid_lease_age_seconds 1.5",
    ):
        assert line in text.splitlines()


def test_rows_at_once_count_as_one_by_one() -> None:
    at_once, one_by_one = Metrics(), Metrics()
    rows = [make_row(number, num_frames=number, prefill_seconds=0.02 * 3**number) for number in range(8)]
    at_once.rows(rows)
    at_once.rows([])
    for row in rows:
        one_by_one.rows([row])

    def samples(metrics: Metrics) -> list[tuple[str, str, float]]:
        found = [sample for metric in metrics.registry.collect() for sample in metric.samples]
        return [(each.name, str(each.labels), each.value) for each in found if "_created" not in each.name]

    assert samples(at_once) == samples(one_by_one)


def test_address_is_none_where_the_endpoint_is_switched_off(metrics: Metrics) -> None:
    assert metrics.open({"run_id": "r"}, MetricsConfig(port=None)) is None
    url = metrics.open({"run_id": "r"}, MetricsConfig(port=0))
    assert url is not None
    assert 'flashvid_info{run_id="r"} 1.0' in urllib.request.urlopen(url, timeout=10).read().decode()


def test_first_ten_metrics_exist_from_the_start(metrics: Metrics) -> None:
    metrics.observe(Counts(), {}, 0.0)
    names = {sample.name for metric in metrics.registry.collect() for sample in metric.samples}
    assert names >= FIRST_TEN


def test_labels_come_from_closed_sets(metrics: Metrics) -> None:
    """A thousand different videos, workers and messages add no series."""

    def series() -> set[tuple[str, ...]]:
        samples = [sample for metric in metrics.registry.collect() for sample in metric.samples]
        return {(sample.name, *map(str, sample.labels.items())) for sample in samples}

    metrics.observe(Counts(), {}, 0.0)
    before = series()
    for number in range(100):
        metrics.rows([make_row(number)])
        metrics.failure(make_failure(number, worker_id=f"worker-{number}", message=f"message {number}"))
    metrics.observe(Counts(), {"ready": 1, "made up": 3}, 0.0)
    assert series() == before


def test_taken_port_is_the_users_mistake(metrics: Metrics) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"metrics\.port=0"):
            metrics.serve("127.0.0.1", taken.getsockname()[1])
