"""An output on an object store that fails: nothing lost, nothing twice, one winner, nothing half written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from pipeline.cluster.preflight import check_output
from pipeline.config.job import load_config
from pipeline.errors import Reason, UserError
from pipeline.output.compacting import compact
from pipeline.output.exporting import export, view_sql
from pipeline.output.lock import LockLostError, OutputLock
from pipeline.output.status import read_status
from pipeline.output.store import OutputStore
from pipeline.output.verify import verify_output
from pipeline.stores import filesystems
from pipeline.stores.retrying import StorageDownError, is_passing, retry
from pipeline.stores.storage import Storage, StorageWarning
from tests.unit.faulty_proxy import FAULTS, FaultyProxy, s3_server
from tests.unit.samples import FINGERPRINT, make_failure, make_ref, make_row

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyProxy]:
    with s3_server(seed=11) as proxy:
        yield proxy


@pytest.fixture
def proxy(server: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The server, without faults yet, as the environment tells it; pauses between tries are short."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipeline.stores.retrying._FIRST_SECONDS", 0.01)
    server.faults.clear()
    yield server
    server.rate, server.kinds, server.only = 0.0, FAULTS, ("GET", "PUT", "POST", "DELETE", "HEAD")
    server.plan.clear()


@pytest.fixture
def uri(proxy: FaultyProxy) -> str:
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    Storage(f"s3://{bucket}")._fs.mkdir(bucket)
    return f"s3://{bucket}/out"


@pytest.mark.parametrize("fault", FAULTS)
def test_each_operation_gets_over_each_fault(uri: str, proxy: FaultyProxy, fault: str) -> None:
    storage = Storage(uri)
    storage.write("a/one", b"1" * 1000)
    operations = {
        "write": lambda: storage.write("a/two", b"2"),
        "create": lambda: storage.create("a/three", b"3"),
        "files": lambda: [entry.name for entry in storage.files("a")],
        "read": lambda: storage.read("a/one"),
        "range": lambda: storage.read_range("a/one", 998, 1000),
        "delete": lambda: storage.delete("a/two"),
    }
    found = {}
    for name, operation in operations.items():
        proxy.plan = [fault, fault]
        found[name] = operation()
    assert sum(proxy.faults.values()) >= len(operations), "positive control: there were faults"
    assert found["create"] is True
    assert found["files"] == ["one", "three", "two"]
    assert (found["read"], found["range"]) == (b"1" * 1000, b"11")
    assert [entry.name for entry in storage.files("a")] == ["one", "three"]


def test_rows_committed_through_faults_are_there_once(uri: str, proxy: FaultyProxy) -> None:
    proxy.rate = 0.3
    store = OutputStore(uri)
    store.bind(FINGERPRINT, {"frames": 16})
    for number in range(5):
        store.write_rows([make_row(2 * number), make_row(2 * number + 1)])
    store.write_failures([make_failure(99, reason=Reason.CORRUPT)])
    committed = OutputStore(uri).committed(FINGERPRINT)
    assert all(make_ref(number).key in committed for number in range(10))
    assert len(list(store.iter_rows(["video_id"]))) == 10
    assert store.failures_of(FINGERPRINT, committed).num_final == 1
    assert verify_output(uri).problems == ()
    assert read_status(uri).rows == 10
    assert sum(proxy.faults.values()) > 5
    proxy.rate = 0.0
    assert len(store.storage.files("videos")) == 5


def test_compact_and_export_through_faults(uri: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.rate = 0.2
    store = OutputStore(uri)
    store.bind(FINGERPRINT, {})
    for number in range(4):
        store.write_rows([make_row(number)])
    compact(uri)
    assert len(store.storage.files("videos")) == 5, "what was replaced is still there, and counts no more"
    assert [row["video_id"] for row in store.iter_rows(["video_id"])] == [f"video-{n}" for n in range(4)]
    assert verify_output(uri).ok
    compact(uri, keep_seconds=0)
    report = export(uri, "videos", str(tmp_path / "latest.parquet"), latest=True)
    assert (report.rows, report.rows_read) == (4, 4)
    assert f"'{uri}/videos/{store.parts('videos')[0].name}'" in view_sql(uri, "videos")


def test_a_create_whose_answer_got_lost_is_won(uri: str, proxy: FaultyProxy) -> None:
    proxy.only, proxy.plan = ("PUT",), ["answer lost"]
    assert Storage(uri).create("one", b"mine")
    assert proxy.faults["answer lost"] == 1
    assert not Storage(uri).create("one", b"another's")
    assert Storage(uri).read("one") == b"mine"


def test_a_store_that_overwrites_on_create_is_found_out(
    uri: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers that speak S3 do not know the condition and answer 200 to both."""
    mine, theirs = (Storage(uri, settle_seconds=0.3) for _ in range(2))
    put = mine._fs.pipe_file
    monkeypatch.setattr(mine._fs, "pipe_file", lambda path, data, mode="": put(path, data))
    won: dict[str, bool] = {}

    def create(name: str, storage: Storage) -> None:
        won[name] = storage.create("lock", name.encode())

    with pytest.warns(StorageWarning, match="no conditional create"), ThreadPoolExecutor() as racers:
        list(racers.map(create, ("mine", "theirs"), (mine, theirs)))
    assert sorted(won.values()) == [False, True]


def test_a_store_that_keeps_the_condition_is_asked_once(uri: str, proxy: FaultyProxy) -> None:
    storage = Storage(uri)
    assert [storage.create(name, b"mine") for name in ("one", "two", "two")] == [True, True, True]
    assert not storage.create("one", b"theirs")
    assert storage._is_conditional


def test_of_many_creates_one_wins(uri: str, proxy: FaultyProxy) -> None:
    """Processes, because filesystems are shared within one; through faults, because those blur who won."""
    proxy.rate, proxy.kinds = 0.1, ("answer lost", "503")
    code = (
        "import sys; from pipeline.stores.storage import Storage; import pipeline.stores.retrying\n"
        "pipeline.stores.retrying._FIRST_SECONDS = 0.01\n"
        "storage = Storage(sys.argv[1]); print('up', flush=True); sys.stdin.readline()\n"
        "print(*[n for n in range(6) if storage.create(f'lock/{n}', sys.argv[2].encode())])"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, uri, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "up\n"
    won = [racer.communicate("go\n", timeout=60)[0].split() for racer in racers]
    assert sorted(int(number) for numbers in won for number in numbers) == list(range(6))


def test_of_many_locks_one_is_held(uri: str, proxy: FaultyProxy) -> None:
    proxy.rate, proxy.kinds = 0.1, ("answer lost", "500", "reset")
    held: list[str] = []
    refused: list[UserError] = []

    def race(name: str) -> None:
        try:
            OutputLock(uri, wait_seconds=0.0).acquire(name)
            held.append(name)
        except UserError as error:
            refused.append(error)

    racers = [threading.Thread(target=race, args=(f"run-{number}",)) for number in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert (len(held), len(refused)) == (1, 5)
    assert all("One run at a time" in str(error) for error in refused)


def test_a_listing_is_fresh(uri: str) -> None:
    reader, writer = Storage(uri), Storage(uri)
    assert reader.files("a") == []
    writer.write("a/one", b"")
    assert [entry.name for entry in reader.files("a")] == ["one"]


def test_a_large_file_is_not_there_until_all_of_it_is(
    uri: str, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stores.storage._S3_CHUNK_BYTES", 5 * 2**20)
    source = tmp_path / "large"
    source.write_bytes(os.urandom(11 * 2**20))
    storage = Storage(uri)
    storage.retry_seconds = 0.0
    proxy.only, proxy.plan = ("PUT",), ["", "500"]  # the second of three chunks
    with pytest.raises(StorageDownError):
        storage.upload("a/large", str(source))
    assert storage.files("a") == []
    assert storage.abort_uploads(["a"]) == 0, "an upload that failed is ended at once"
    storage.upload("a/large", str(source))
    assert storage.read("a/large") == source.read_bytes()


def test_an_upload_whose_sender_died_does_not_stay(uri: str, proxy: FaultyProxy) -> None:
    storage = Storage(uri)
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    others = ["another/part", f"{key}/inner/videos/part", f"{key}/latest.parquet"]
    for name in (f"{key}/videos/part", *others):
        storage._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=name)
    assert OutputStore(uri).clean() == 1
    proxy.plan = ["denied"]
    assert storage.abort_uploads(["videos"]) == 0, "not allowed to look: no reason to fail"
    left = storage._fs.call_s3("list_multipart_uploads", Bucket=bucket)["Uploads"]
    assert sorted(upload["Key"] for upload in left) == others, "an export, another output: not ours"


def test_a_store_that_stays_down_ends_the_wait(uri: str, proxy: FaultyProxy) -> None:
    storage = Storage(uri, retry_seconds=0.2)
    proxy.rate, proxy.kinds, proxy.in_a_row = 1.0, ("503",), 10**6
    try:
        with pytest.raises(
            StorageDownError, match=r"failed for 0 s, the last time with: .*Service Unavailable"
        ):
            storage.read("one")
    finally:
        proxy.in_a_row = 4


def test_a_refusal_is_not_tried_again(proxy: FaultyProxy) -> None:
    before = sum(proxy.requests.values())
    with pytest.raises(FileNotFoundError):
        Storage("s3://no-such-bucket/out").write("a", b"1")
    assert sum(proxy.requests.values()) - before == 1


def test_access_denied_for_a_while_does_not_cost_the_lock(uri: str, proxy: FaultyProxy) -> None:
    """Credentials that are renewed too late: the right lapses by the clock, not by one refusal."""
    lock = OutputLock(uri)
    lock.acquire("run-1")
    proxy.plan = ["denied"]
    lock.heartbeat()
    lock.heartbeat()
    assert proxy.plan == []
    lock.check()
    proxy.plan = ["denied"]
    lock.release()


def test_missing_credentials_are_told_in_one_line(
    uri: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(UserError, match="NoCredentialsError: Unable to locate credentials"):
        read_status(uri)
    fsspec.filesystem("s3").clear_instance_cache()


def test_denied_access_is_the_users_to_mend(uri: str, proxy: FaultyProxy) -> None:
    proxy.plan = ["denied"]
    with pytest.raises(UserError, match=r"is denied .*check the credentials"):
        Storage(uri).files("a")


def test_a_stalled_socket_ends(uri: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(filesystems._S3_CONFIG, "read_timeout", 0.2)
    Storage(uri).write("a", b"1")
    proxy.plan = ["stall"]
    assert Storage(uri).read("a") == b"1"
    assert proxy.faults["stall"] == 1


def test_what_the_user_configured_for_fsspec_stays(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    users = {"config_kwargs": {"read_timeout": 77}, "requester_pays": True}
    monkeypatch.setitem(fsspec.config.conf, "s3", users)
    filesystem = Storage(uri)._fs
    assert filesystem.config_kwargs["read_timeout"] == 77
    assert filesystem.config_kwargs["connect_timeout"] == 10
    assert filesystem.req_kw == {"RequestPayer": "requester"}


# ---- the lock, while the store fails


def test_a_heartbeat_puts_up_with_a_store_that_fails(
    uri: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("pipeline.output.lock.steady_seconds", lambda: now[0])
    lock = OutputLock(uri)
    lock._impatient.retry_seconds = 0.0
    lock.acquire("run-1")
    proxy.rate, proxy.kinds, proxy.in_a_row = 1.0, ("503",), 10**6
    try:
        now[0] += 55
        lock.heartbeat()
        now[0] += 6
        with pytest.raises(LockLostError, match=r"no heartbeat reached .* for 61 s"):
            lock.heartbeat()
    finally:
        proxy.in_a_row, proxy.rate = 4, 0.0
    lock.heartbeat()  # nobody took it meanwhile
    lock.check()


# ---- what passes and what does not, without a server


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError("reset"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(5, "input/output error"), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (FileExistsError(), False),
        (OSError(28, "no space left on device"), False),
        (ValueError("mine"), False),
        (UserError("mine"), False),
    ],
)
def test_which_errors_pass(error: Exception, passes: bool) -> None:
    assert is_passing(error) is passes


@pytest.mark.parametrize(
    ("status", "code", "passes"),
    [
        (500, "InternalError", True),
        (503, "SlowDown", True),
        (501, "NotImplemented", False),
        (429, "TooMany", True),
        (400, "SlowDown", True),
        (400, "InvalidRequest", False),
        (412, "PreconditionFailed", False),
        (404, "NoSuchKey", False),
    ],
)
def test_which_answers_pass(status: int, code: str, passes: bool) -> None:
    from botocore.exceptions import ClientError

    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = OSError(22, "translated")
    error.__cause__ = ClientError(answer, "PutObject")
    assert is_passing(error) is passes


def test_retrying_ends_and_waits_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [0.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    def fail() -> None:
        raise ConnectionResetError

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    with pytest.raises(ConnectionResetError):
        retry(fail, 60.0)
    assert pauses[:7] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0]
    assert 50.0 < sum(pauses) <= 60.0


def test_a_bucket_that_is_not_there_is_told_before_a_run_starts(uri: str) -> None:
    needed = ["corpus.uri=videos", "model.name=demo/model"]
    check_output(load_config(None, [*needed, f"output.uri={uri}"]), "revision")
    with pytest.raises(UserError, match="cannot be used: The specified bucket does not exist; create it"):
        check_output(load_config(None, [*needed, "output.uri=s3://no-such-bucket/out"]), "revision")
