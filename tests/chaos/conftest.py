"""Seeds that are printed, a short folder for Ray's sockets, and one corpus for all tests."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.corpus import Expected, write_corpus
from tests.chaos.jobs import clean_environment, is_foreign
from tests.chaos.s3_server import BUCKET, S3Server, credentials, s3_server

NUM_VIDEOS = 300
NUM_HOSTILE = 30


@pytest.fixture(scope="session", autouse=True)
def no_foreign_settings() -> Iterator[None]:
    """This process reads the stores too: no account, proxy or endpoint of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(is_foreign, list(os.environ)):
            patch.delenv(name)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, os.devnull)
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heeded() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and so would all that these tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def seed(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> int:
    """CHAOS_SEED, or a new one; printed either way."""
    value = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    with capsys.disabled():
        print(f"\n{request.node.name}: CHAOS_SEED={value}", flush=True)
    return value


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short name (Ray's sockets lie in it), removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fv-chaos-", dir="/tmp"))  # TMPDIR may be long
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment(scratch: Path) -> dict[str, str]:
    """What a driver's process gets."""
    return clean_environment(scratch)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A store of its own for each test, with an empty bucket; this process reads it without a proxy."""
    with s3_server() as running:
        for name, value in credentials(running.url).items():
            monkeypatch.setenv(name, value)
        running.create_bucket(BUCKET)
        yield running


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    """300 videos, a tenth of them hostile; read only."""
    root = tmp_path_factory.mktemp("chaos") / "videos"
    return root, write_corpus(root, NUM_VIDEOS, NUM_HOSTILE)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print at once, whatever pytest keeps for itself."""

    def print_now(text: str) -> None:
        with capsys.disabled():
            print(f"  {text}", flush=True)

    return print_now
