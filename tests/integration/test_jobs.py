"""A real Ray head, and a job submitted to it from outside, as on a cluster."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest
import yaml

from pipeline.output.store import OutputStore
from tests import FLASHVID, ROOT
from tests.chaos import stub_engine
from tests.integration.conftest import OUR_NAMES, make_config, write_namesakes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RAY = Path(sys.executable).parent / "ray"
TOKEN = "0123456789abcdef" * 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with a token in it: the harder case, since the head, started there, asks for it."""
    home = tmp_path_factory.mktemp("home")
    write_namesakes(home, OUR_NAMES)  # with a queue.py Ray itself does not start
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    return home


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    return {
        **{key: text for key, text in os.environ.items() if not key.startswith("RAY_")},
        "HOME": str(home),
    }


@pytest.fixture(scope="module")
def address(environment: dict[str, str], home: Path) -> Iterator[str]:
    """The dashboard of a head started with ``ray start``, in a session of its own."""
    port = free_port()
    command = [str(RAY), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"]
    command += [f"--port={free_port()}", f"--dashboard-port={port}", f"--object-store-memory={2**28}"]
    with (home / "head.log").open("wb") as log:
        head = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=home, start_new_session=True
        )
    try:
        wait_for_dashboard(port, head)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(head)


def wait_for_dashboard(port: int, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/api/version", timeout=5).close()
            return
        except HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the Ray head did not start")


def stop(head: subprocess.Popen[bytes]) -> None:
    processes = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=20)
    for process in alive:
        process.kill()
    head.kill()
    head.wait()


def submit(
    config: Path, address: str, environment: dict[str, str], *more: str, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    command = [str(FLASHVID), "submit", str(config), "--address", address, *more]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def write_config(folder: Path, corpus: Path, *overrides: str) -> Path:
    path = folder / "job.yaml"
    settings = make_config(corpus, folder / "out", *overrides).model_dump(mode="json")
    path.write_text(yaml.safe_dump(settings))
    return path


def test_job_runs_and_its_output_is_there(
    address: str, environment: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    """From a folder with modules named as ours and Python's, on a head that was started in such a folder."""
    write_namesakes(tmp_path)
    config = write_config(tmp_path, corpus)
    few = ("corpus.include=['good*']", "corpus.limit=2")
    done = submit(config, address, environment, *few, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(OutputStore(str(tmp_path / "out")).iter_rows(["uri"]))) == 2
    assert "indexed" in done.stdout, "the job's log was followed"


def test_a_folder_with_an_engine_travels_where_that_is_asked_for(
    address: str, environment: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    """Relative output means a place beside the submitter, not in the job's temporary copy of the folder."""
    sent = tmp_path / "sent"
    sent.mkdir()
    shutil.copy(stub_engine.__file__, sent / "my_engine.py")
    stub_engine.write_model(tmp_path / "model", seconds_per_video=0.0)
    config = write_config(tmp_path, corpus)
    overrides = ["model.engine=my_engine:load", f"model.name={tmp_path / 'model'}", "output.uri=beside"]
    overrides += ["corpus.include=['good*']", "corpus.limit=1", "--working-dir", str(sent)]
    done = submit(config, address, environment, *overrides, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = OutputStore(str(tmp_path / "beside")).iter_rows(["caption"])
    assert "colour" in row["caption"]


def test_exit_status_is_that_of_the_job(
    address: str, environment: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus)
    done = submit(config, address, environment, "model.name=/no/such/model")
    assert done.returncode == 2
    assert "/no/such/model" in done.stdout


def test_wrong_configuration_is_refused_before_anything_is_sent(tmp_path: Path, corpus: Path) -> None:
    done = submit(write_config(tmp_path, corpus), "http://127.0.0.1:9", dict(os.environ), "workers.cuont=1")
    assert done.returncode == 2
    assert "workers.count" in done.stderr


def test_no_cluster_is_said_plainly(tmp_path: Path, corpus: Path) -> None:
    done = submit(write_config(tmp_path, corpus), f"http://127.0.0.1:{free_port()}", dict(os.environ))
    assert done.returncode == 2
    assert "ray start --head" in done.stderr
    assert "Traceback" not in done.stderr
