"""Whole runs on a real Ray: every file accounted for, exactly once, whatever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from pipeline.cluster.job import run_job
from pipeline.cluster.report import Progress, RunReport
from pipeline.cluster.session import ray_session as open_ray
from pipeline.config.job import JobConfig
from pipeline.errors import UserError
from pipeline.output.store import OutputStore
from tests import ROOT
from tests.chaos.jobs import end_tree
from tests.chaos.stub_engine import write_model
from tests.integration.conftest import NUM_GOOD, has_mapped, make_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

GOOD = [f"good{number}.mp4" for number in range(NUM_GOOD)]
BAD = {"empty.mp4": "empty_file", "text.mp4": "corrupt", "truncated.mp4": "corrupt"}

DRIVER = """
import sys
from pathlib import Path
from pipeline.cluster import run_job
from tests.integration.conftest import make_config
run_job(make_config(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]), on_progress=lambda progress: None)
"""


@pytest.fixture(scope="module")
def ray_session(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for the module; the driver starts it as it does for a user."""
    with open_ray(make_config(corpus, tmp_path_factory.mktemp("session"), "ray.num_cpus=2")):
        yield


@pytest.fixture(scope="module")
def indexed(ray_session: None, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    """A job that has run to its end, undisturbed."""
    config = make_config(corpus, tmp_path_factory.mktemp("indexed"))
    scrapes: list[str] = []

    def scrape(progress: Progress) -> None:
        if progress.metrics_url:
            scrapes.append(urlopen(progress.metrics_url, timeout=10).read().decode())

    report = run_job(config, on_progress=scrape)
    assert_complete(report, config)
    counts = [value(text, 'flashvid_videos_total{status="indexed"}') for text in scrapes]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] > 0, "the counter moves while the run goes on"
    return config


def value(text: str, series: str) -> float:
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(series))


def names_in(config: JobConfig) -> Counter[str]:
    store = OutputStore(config.output.uri)
    return Counter(os.path.basename(row["uri"]) for row in store.iter_rows(["uri"]))


def final_failures_in(config: JobConfig) -> dict[str, str]:
    rows = OutputStore(config.output.uri).iter_failures(["uri", "reason", "is_final"])
    return {os.path.basename(row["uri"]): row["reason"] for row in rows if row["is_final"]}


def assert_complete(report: RunReport, config: JobConfig) -> None:
    assert (report.exit_status, report.error) == (0, None)
    assert report.closes
    assert names_in(config) == Counter(GOOD), "no video twice, none missing"
    assert final_failures_in(config) == BAD


def wait_for_rows(config: JobConfig, num_rows: int, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while sum(names_in(config).values()) < num_rows:
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.1)


# First, because it has a Ray of its own: never two at once.
@pytest.mark.chaos
def test_killed_with_its_driver_and_resumed(
    corpus: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # so that the run is not over before it can be killed
    slow = f"prompts.questions={[f'{number}: what flashes ?' for number in range(100)]}"
    config = make_config(corpus, tmp_path / "out", slow)
    command = [sys.executable, "-c", DRIVER, str(corpus), config.output.uri, slow]
    driver = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        wait_for_rows(config, 2, driver)
        processes = psutil.Process(driver.pid).children(recursive=True)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert end_tree(processes, 60.0) == [], "all of ours dies with the driver"
    done = sum(names_in(config).values())
    assert 2 <= done < len(GOOD)
    request.getfixturevalue("ray_session")
    report = run_job(config, on_progress=lambda _: None)
    assert_complete(report, config)
    assert report.counts.skipped_indexed == done


def test_every_file_is_a_row_or_a_failure(indexed: JobConfig) -> None:
    rows = list(OutputStore(indexed.output.uri).iter_rows())
    assert all(row["caption"] and row["num_frames"] == 4 for row in rows)
    assert all(row["visual_tokens_mean"] <= row["baseline_visual_tokens"] for row in rows)
    assert {row["fingerprint"] for row in rows} == {OutputStore(indexed.output.uri).binding()["fingerprint"]}  # type: ignore[index]


def test_second_run_starts_no_worker_and_says_so(indexed: JobConfig) -> None:
    seen: list[Progress] = []
    report = run_job(indexed, on_progress=seen.append)
    assert report.did_nothing
    assert (report.counts.skipped_indexed, report.counts.skipped_failed) == (len(GOOD), len(BAD))
    assert all(not progress.workers for progress in seen)
    assert names_in(indexed) == Counter(GOOD)


def test_killed_worker_is_replaced(ray_session: None, corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus, tmp_path / "out")
    killed: list[int] = []

    def kill_once(progress: Progress) -> None:
        if progress.counts.indexed and not killed:
            killed.append(kill_worker())

    report = run_job(config, on_progress=kill_once)
    assert killed
    assert_complete(report, config)
    crashes = [
        row for row in OutputStore(config.output.uri).iter_failures() if row["reason"] == "crashed_worker"
    ]
    assert crashes
    assert not any(row["is_final"] for row in crashes)


def kill_worker() -> int:
    """SIGKILL to the one worker there is; its pid."""
    (worker,) = [process for process in psutil.process_iter() if "ray::GpuWorker" in _title(process)]
    worker.send_signal(signal.SIGKILL)
    return worker.pid


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.chaos
def test_interrupted_run_commits_and_resumes(ray_session: None, corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus, tmp_path / "out", "output.part_rows=1000", "output.part_seconds=1000")

    def interrupt(progress: Progress) -> None:
        if progress.counts.indexed:
            raise KeyboardInterrupt

    report = run_job(config, on_progress=interrupt)
    assert report.exit_status == 130
    done = sum(names_in(config).values())
    assert done == report.counts.indexed > 0
    again = run_job(config, on_progress=lambda _: None)
    assert_complete(again, config)
    assert again.counts.skipped_indexed == done


def stub_config(corpus: Path, folder: Path, engine: str) -> JobConfig:
    model = write_model(folder / "model", 0.05)
    settings = (f"model.name={model}", f"model.engine=tests.chaos.stub_engine:{engine}", "workers.count=2")
    return make_config(corpus, folder / "out", *settings)


def test_a_machine_that_lacks_the_checkpoint_does_not_end_the_run_of_the_others(
    ray_session: None, corpus: Path, tmp_path: Path
) -> None:
    config = stub_config(corpus, tmp_path, "load_on_one")
    report = run_job(config, on_progress=lambda _: None)
    assert_complete(report, config)
    (why,) = report.worker_losses
    assert "UserError: there is no checkpoint on this machine" in why
    assert 1 <= report.worker_losses[why] <= 3, "replaced, but not for ever"


def test_a_checkpoint_that_no_worker_finds_ends_the_run_and_says_so(
    ray_session: None, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="there is no checkpoint on this machine"):
        run_job(stub_config(corpus, tmp_path, "load_nowhere"), on_progress=lambda _: None)


def demo_copy(folder: Path) -> Path:
    return Path(shutil.copytree(ROOT / "demo" / "model", folder))


def test_what_every_video_would_fail_for_ends_the_run_before_the_first(
    ray_session: None, corpus: Path, tmp_path: Path
) -> None:
    model = demo_copy(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    config = make_config(corpus, tmp_path / "out", f"model.name={model}", "corpus.limit=2")
    with pytest.raises(UserError, match=r"no video was tried: .*ValueError: .*no chat template"):
        run_job(config, on_progress=lambda _: None)
    assert not list(OutputStore(config.output.uri).iter_failures())
    (model / "chat_template.jinja").write_bytes((ROOT / "demo/model/chat_template.jinja").read_bytes())
    mended = run_job(config, on_progress=lambda _: None)
    assert (mended.counts.skipped_indexed, mended.counts.skipped_failed) == (0, 0), "no attempt was used up"
    assert mended.exit_status == 0


def test_a_worker_that_is_started_again_does_not_go_on_with_other_weights(
    ray_session: None, corpus: Path, tmp_path: Path
) -> None:
    model = demo_copy(tmp_path / "model")
    weights = model / "model.safetensors"
    config = make_config(corpus, tmp_path / "out", f"model.name={model}", "corpus.include=['good*']")
    killed: list[int] = []

    def replace_and_kill(progress: Progress) -> None:
        if progress.counts.indexed and not killed:
            weights.write_bytes(weights.read_bytes()[:-4] + b"\x01\x02\x03\x04")
            killed.append(kill_worker())

    report = run_job(config, on_progress=replace_and_kill)
    assert killed
    assert report.exit_status == 3
    assert "it was replaced, or copies differ" in str(report.error)
    assert 0 < report.counts.indexed < NUM_GOOD
    struck = [row["is_final"] for row in OutputStore(config.output.uri).iter_failures()]
    assert not any(struck), "who refuses to go on has touched nothing"
    assert len({row["model_revision"] for row in OutputStore(config.output.uri).iter_rows()}) == 1


def test_only_workers_load_torch(ray_session: None, corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus, tmp_path / "out", "corpus.limit=1", "corpus.include=['good*']")
    loaded: dict[str, bool] = {}

    def look(_: Progress) -> None:
        for process in psutil.process_iter(["cmdline"]):
            with suppress(psutil.Error, OSError):
                name = " ".join(process.info["cmdline"] or ())
                for actor in ("Coordinator", "GpuWorker"):
                    if name.startswith(f"ray::{actor}"):
                        loaded[actor] = loaded.get(actor, False) or has_mapped(process.pid, "libtorch")

    assert run_job(config, on_progress=look).exit_status == 0
    assert loaded == {"Coordinator": False, "GpuWorker": True}
