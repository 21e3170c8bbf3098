"""Committing and reading back: what exists is whole, what is whole is found, by us and by other tools."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import Reason, UserError
from pipeline.output.lock import LockLostError, OutputLock
from pipeline.output.parts import PartBuffer, encode_rows
from pipeline.output.schemas import VIDEO_SCHEMA
from pipeline.output.shard_cache import ShardCache
from pipeline.output.store import OutputStore
from pipeline.stores import local_files
from pipeline.stores.storage import Storage
from tests.unit.samples import FINGERPRINT, make_failure, make_ref, make_row


def committed(store: OutputStore, *numbers: int, fingerprint: str = FINGERPRINT) -> bool:
    """Whether exactly these videos are committed."""
    keys = store.committed(fingerprint)
    return len(keys) == len(numbers) and all(make_ref(number).key in keys for number in numbers)


def final(store: OutputStore) -> dict[int, Reason | None]:
    failed = store.failures_of(FINGERPRINT)
    return {number: failed.final(make_ref(number).key) for number in range(4)}


def test_what_was_written_is_read_back(uri: str) -> None:
    store = OutputStore(uri)
    assert store.write_rows([make_row(0), make_row(1)]) is not None
    store.write_rows([make_row(2)])
    assert committed(store, 0, 1, 2)
    assert committed(store, fingerprint="another")
    assert [row["video_id"] for row in store.iter_rows()] == ["video-0", "video-1", "video-2"]


def test_every_field_survives(uri: str) -> None:
    store, row = OutputStore(uri), make_row(degraded="fewer frames")
    store.write_rows([row])
    (back,) = store.iter_rows()
    assert int(back.pop("indexed_at").timestamp() * 1e6) == pytest.approx(row.indexed_at_us, abs=2)
    expected = row.to_record()
    del expected["indexed_at"]
    assert back == expected


def test_nothing_to_write_writes_nothing(uri: str) -> None:
    store = OutputStore(uri)
    assert store.write_rows([]) is None
    assert store.write_failures([]) is None
    assert store.parts("videos") == []
    assert committed(store)


def test_final_failures_are_those_that_no_row_made_up_for(uri: str) -> None:
    store = OutputStore(uri)
    store.write_failures([make_failure(0, is_final=False, reason=Reason.READ_ERROR), make_failure(1)])
    store.write_failures([make_failure(2), make_failure(3, fingerprint="another")])
    assert final(store) == {0: None, 1: Reason.CORRUPT, 2: Reason.CORRUPT, 3: None}
    store.write_rows([make_row(2)])
    assert final(store) == {0: None, 1: Reason.CORRUPT, 2: None, 3: None}


def test_a_failure_says_everything(uri: str) -> None:
    store = OutputStore(uri)
    store.write_failures([make_failure(details={"decoder": "pyav", "frame": "7"})])
    (row,) = store.iter_failures()
    assert (row["stage"], row["reason"], row["is_final"]) == ("decoding", "corrupt", True)
    assert dict(row["details"]) == {"decoder": "pyav", "frame": "7"}


def test_text_that_is_not_unicode_does_not_stop_the_part(uri: str) -> None:
    """Linux file names may hold any bytes; Python shows the odd ones as lone surrogates."""
    store = OutputStore(uri)
    store.write_rows([make_row(0, uri="file:///videos/\udcff.mp4", caption="cut \ud83d"), make_row(1)])
    first, second = store.iter_rows()
    assert first["uri"] == "file:///videos/\ufffd.mp4"
    assert first["caption"] == "cut \ufffd"  # half of a pair, which no file name can hold
    assert second["uri"] == make_row(1).uri


def test_a_value_the_schema_does_not_take_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        encode_rows([make_row(caption=None)], VIDEO_SCHEMA)
    with pytest.raises(pa.ArrowInvalid):
        encode_rows([make_row(answers=(replace(make_row().answers[0], answer=None),))], VIDEO_SCHEMA)


def test_the_part_is_zstd_and_of_the_schema_by_hand(tmp_path: Path) -> None:
    path = OutputStore(str(tmp_path)).write_rows([make_row()])
    part = pq.ParquetFile(path)
    assert part.metadata.row_group(0).column(0).compression == "ZSTD"
    assert part.schema_arrow.equals(VIDEO_SCHEMA)


def test_a_part_says_which_job_and_run_made_it(tmp_path: Path) -> None:
    path = OutputStore(str(tmp_path)).write_rows([make_row()])
    said = json.loads(pq.read_schema(path).metadata[b"flashvid"])
    assert said == {"fingerprint": FINGERPRINT, "run_id": "run-1"}


def test_shard_indexes_are_kept_and_the_oldest_make_room(uri: str) -> None:
    cache = OutputStore(uri).shard_cache()
    assert cache.get("s3://bucket/a.tar") is None
    cache.put("s3://bucket/a.tar", b"index")
    assert OutputStore(uri).shard_cache().get("s3://bucket/a.tar") == b"index"
    small = ShardCache(Storage(uri), max_bytes=12)
    small.put("b", b"123456")
    small.put("too much", b"x" * 13)
    small.put("c", b"123456")
    found = [small.get(name) for name in ("s3://bucket/a.tar", "b", "too much", "c")]
    assert found == [None, b"123456", None, b"123456"]
    assert OutputStore(uri).tables() == ()


def test_a_shard_index_that_cannot_be_kept_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "_shards").mkdir()
    blocked = OutputStore(str(tmp_path)).shard_cache()
    name = "a" * 10
    blocked.put(name, b"1")
    (path,) = (tmp_path / "_shards").iterdir()
    path.unlink()
    path.mkdir()  # nothing can be put there now
    blocked.put(name, b"2")


def test_duckdb_and_pandas_open_the_result(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path / "out"))
    store.write_rows([make_row(0), make_row(1)])
    store.write_rows([make_row(2, answers=(), segments=())])
    store.write_failures([make_failure(3)])
    (tmp_path / "out/videos/.part-killed.parquet.1234.tmp").write_bytes(b"half")
    query = (
        f"select video_id, answers[1].answer, segments[1].end_seconds from '{tmp_path}/out/videos/*.parquet'"
    )
    rows = duckdb.sql(f"{query} order by video_id").fetchall()
    assert rows == [("video-0", "Red.", 2.5), ("video-1", "Red.", 2.5), ("video-2", None, None)]
    reason = duckdb.sql(
        f"select reason, count(*) from '{tmp_path}/out/failures/*.parquet' group by 1"
    ).fetchall()
    assert reason == [("corrupt", 1)]
    assert duckdb.sql(f"select * from '{tmp_path}/out/videos/*.parquet'").columns == VIDEO_SCHEMA.names
    frame = pandas.read_parquet(tmp_path / "out" / "videos")
    assert sorted(frame["video_id"]) == ["video-0", "video-1", "video-2"]
    assert frame["answers"][0][0]["answer"] == "Red."


def test_binding_twice_to_the_same_is_fine(uri: str) -> None:
    store = OutputStore(uri)
    store.bind(FINGERPRINT, {"frames": {"baseline": 16}})
    store.bind(FINGERPRINT, {"frames": {"baseline": 16}})
    binding = store.binding()
    assert binding is not None
    assert binding["fingerprint"] == FINGERPRINT
    assert store.tables() == ("videos",)


def test_another_fingerprint_is_refused_with_the_difference(uri: str) -> None:
    there = {"frames": {"baseline": 16, "fps": 2.0}, "prompts": {"questions": ["a"]}}
    here = {"frames": {"baseline": 32, "fps": 2.0}, "prompts": {"questions": ["a", "b"]}}
    OutputStore(uri).bind(FINGERPRINT, there)
    OutputStore(uri).write_rows([make_row()])
    with pytest.raises(UserError) as error:
        OutputStore(uri).bind("another", here)
    text = str(error.value)
    assert "frames.baseline: 16 there, 32 here" in text
    assert "prompts.questions[1]: None there, 'b' here" in text
    assert "fps" not in text
    assert "output.table=videos_2" in text
    OutputStore(uri, "videos_2").bind("another", here)


def test_a_table_without_rows_is_bound_anew(uri: str) -> None:
    """A first run that failed before any row must not tie the user's hands."""
    OutputStore(uri).bind(FINGERPRINT, {"frames": 16})
    OutputStore(uri).write_failures([make_failure()])
    OutputStore(uri, columns={"title": "string"}).bind("another", {"frames": 32})
    binding = OutputStore(uri).binding()
    assert binding is not None
    assert (binding["fingerprint"], binding["columns"]) == ("another", {"title": "string"})


def test_other_columns_are_refused_with_the_difference(uri: str) -> None:
    store = OutputStore(uri, columns={"title": "string", "likes": "int64", "owner": "string"})
    store.bind(FINGERPRINT, {})
    store.write_rows([make_row(extra=(("title", "A film"), ("likes", 7)))])
    (row,) = store.iter_rows()
    assert (row["title"], row["likes"], row["owner"]) == ("A film", 7, None)
    with pytest.raises(UserError) as error:
        OutputStore(uri, columns={"title": "string", "likes": "float64", "year": "int64"}).bind(
            FINGERPRINT, {}
        )
    assert "likes: int64 there, float64 here" in str(error.value)
    assert "owner: string there, no such column here" in str(error.value)
    assert "year: no such column there, int64 here" in str(error.value)
    assert "title" not in str(error.value)
    store.bind(FINGERPRINT, {})


def test_a_binding_from_before_there_were_columns_means_none(uri: str) -> None:
    OutputStore(uri).write_rows([make_row()])
    Storage(uri).write("_tables/videos.json", b'{"fingerprint": "0123456789abcdef", "semantic": {}}')
    OutputStore(uri).bind(FINGERPRINT, {})
    with pytest.raises(UserError, match="title: no such column there, string here"):
        OutputStore(uri, columns={"title": "string"}).bind(FINGERPRINT, {})


def test_rows_of_another_fingerprint_without_a_binding_are_refused(uri: str) -> None:
    OutputStore(uri).write_rows([make_row()])
    with pytest.raises(UserError, match="holds rows of fingerprint 0123456789abcdef"):
        OutputStore(uri).bind("another", {})
    OutputStore(uri).bind(FINGERPRINT, {})


@pytest.mark.parametrize("content", [b"{half", b"[]", b"7", b'{"semantic": {}}'])
def test_a_broken_binding_is_named(uri: str, content: bytes) -> None:
    Storage(uri).write("_tables/videos.json", content)
    with pytest.raises(UserError, match=r"_tables/videos\.json.*restore or delete it"):
        OutputStore(uri).bind(FINGERPRINT, {})


@pytest.mark.parametrize("content", [b"", b"PAR1 nothing PAR1"])
def test_an_unreadable_part_is_named(uri: str, content: bytes) -> None:
    store = OutputStore(uri)
    path = store.write_rows([make_row()])
    assert path is not None
    Storage(uri).write(f"videos/{path.rsplit('/', 1)[-1]}", content)
    with pytest.raises(UserError, match=r"part-.*parquet.*move it out of the folder"):
        store.committed(FINGERPRINT)


def test_a_disk_that_cannot_be_read_is_not_the_parts_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> None:
        raise OSError(5, "Input/output error", path)

    store = OutputStore(str(tmp_path))
    store.write_rows([make_row()])
    monkeypatch.setattr("pipeline.stores.storage.pa.OSFile", broken)
    with pytest.raises(UserError, match="Input/output error") as caught:
        store.committed(FINGERPRINT)
    assert "move it out" not in str(caught.value)


def test_large_parts_are_read_by_range(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = OutputStore(uri)
    store.write_rows([make_row(0), make_row(1)])
    monkeypatch.setattr("pipeline.output.parts._WHOLE_BYTES", 0)
    assert committed(store, 0, 1)
    assert len(list(store.iter_rows())) == 2


def test_foreign_files_and_leftovers_are_not_parts(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    store.write_rows([make_row()])
    (tmp_path / "videos" / "notes.txt").write_text("mine")
    (tmp_path / "videos" / ".part-x.parquet.abcd.tmp").write_bytes(b"half")
    assert len(store.parts("videos")) == 1
    assert store.clean() == 1
    assert (tmp_path / "videos" / "notes.txt").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_fenced_writer_commits_nothing(uri: str) -> None:
    lock = OutputLock(uri)
    store = OutputStore(uri, fence=lock.check)
    with pytest.raises(LockLostError):
        store.write_rows([make_row()])
    assert store.parts("videos") == []


def test_a_commit_that_overslept_is_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check passed, then the process was suspended in the middle of the PUT, then another took over."""
    calls = iter([None, LockLostError("taken over")])

    def fence() -> None:
        if (answer := next(calls)) is not None:
            raise answer

    store = OutputStore(f"memory://overslept-{uuid.uuid4().hex}", fence=fence)
    monkeypatch.setattr("pipeline.output.store._FENCE_SECONDS", -1.0)
    with pytest.raises(LockLostError, match="taken over"):
        store.write_rows([make_row()])
    assert store.parts("videos") == []


@pytest.mark.parametrize("moment", ["_create_plainly", "os.replace"])
def test_a_local_writer_that_overslept_adds_nothing_to_what_its_successor_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Suspended before the temporary file, or before its name: it wakes when another has begun."""
    lost: list[str] = []
    successor, read = OutputStore(str(tmp_path)), list[int]()
    name = f"pipeline.stores.local_files.{moment}"
    really = local_files._create_plainly if moment == "_create_plainly" else os.replace

    def overslept(*arguments: Any) -> Any:
        if not lost:
            lost.append("taken over")
            successor.clean()
            read.append(len(successor.committed(FINGERPRINT)))
        return really(*arguments)

    def fence() -> None:
        if lost:
            raise LockLostError(lost[0])

    monkeypatch.setattr(name, overslept)
    with pytest.raises((LockLostError, FileNotFoundError)):
        OutputStore(str(tmp_path), fence=fence).write_rows([make_row()])
    assert (read, successor.parts("videos")) == ([0], [])


def test_a_part_that_its_successor_has_read_is_not_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock went over right after the rename: the successor counts the row, so it must stay."""
    calls = iter([None, LockLostError("taken over")])

    def fence() -> None:
        if (answer := next(calls)) is not None:
            raise answer

    monkeypatch.setattr("pipeline.output.store._FENCE_SECONDS", -1.0)
    OutputStore(str(tmp_path), fence=fence).write_rows([make_row()])
    assert committed(OutputStore(str(tmp_path)), 0)


def test_a_put_is_not_repeated_after_a_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"memory://again-{uuid.uuid4().hex}"
    filesystem, _ = fsspec.core.url_to_fs(root)
    lost: list[str] = []

    def reset(self: object, path: str, value: bytes, **options: object) -> None:
        lost.append("taken over while the connection hung")
        raise OSError("connection reset")

    def fence() -> None:
        if lost:
            raise LockLostError(lost[0])

    monkeypatch.setattr(type(filesystem), "pipe_file", reset)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(LockLostError, match="while the connection hung"):
        OutputStore(root, fence=fence).write_rows([make_row()])
    assert len(lost) == 1


def test_a_failed_local_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        OutputStore(str(tmp_path)).write_rows([make_row()])
    assert list((tmp_path / "videos").iterdir()) == []


@pytest.mark.parametrize("folder", ["videos", "failures", "_runs"])
def test_a_full_disk_is_told_with_the_place(tmp_path: Path, folder: str) -> None:
    """A limit on the size of files stands for it: the system answers in the same way."""
    store = OutputStore(str(tmp_path))
    report = {"run_id": "run-1", "counts": {}, "text": 1000 * "x"}
    write = {
        "videos": lambda: store.write_rows([make_row()]),
        "failures": lambda: store.write_failures([make_failure()]),
        "_runs": lambda: store.write_run("run-1", report),
    }[folder]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="what was committed is safe") as told:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"[Errno 27] File too large, while writing to '{tmp_path}/{folder}'" in str(told.value)
    assert list((tmp_path / folder).iterdir()) == []


def test_a_run_that_lost_the_output_writes_no_report(tmp_path: Path) -> None:
    lock = OutputLock(str(tmp_path / "out"))
    lock.acquire("run-1")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(LockLostError, match="or the whole output"):
        OutputStore(str(tmp_path / "out"), fence=lock.check).write_run("run-1", {"run_id": "run-1"})
    assert not (tmp_path / "out").exists()


def test_a_lost_put_is_repeated_under_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store kept the part but its answer got lost: repeating must not double it."""
    root = f"memory://put-{uuid.uuid4().hex}"
    store = OutputStore(root)
    filesystem, _ = fsspec.core.url_to_fs(root)
    put, calls = type(filesystem).pipe_file, []

    def forgetful(self: object, path: str, value: bytes, **options: object) -> None:
        put(self, path, value, **options)
        calls.append(path)
        if len(calls) == 1:
            raise OSError("connection reset")

    monkeypatch.setattr(type(filesystem), "pipe_file", forgetful)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    store.write_rows([make_row()])
    assert len(calls) == 2
    assert len(list(store.iter_rows())) == 1


def test_a_link_whose_answer_got_lost_is_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of NFS repeats a link that it heard nothing of, and is told that there is one."""
    link = os.link

    def forgetful(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr("os.link", forgetful)
    storage = Storage(str(tmp_path))
    assert storage.create("lock", b"mine")
    assert not storage.create("lock", b"theirs")
    assert storage.read("lock") == b"mine"


def test_colons_in_the_name_of_a_folder_do_not_cut_it(tmp_path: Path) -> None:
    stores = [OutputStore(str(tmp_path / name)) for name in ("a::1", "a::2")]
    stores[0].write_rows([make_row(0)])
    assert (committed(stores[0], 0), committed(stores[1])) == (True, True)


def test_addresses_nobody_understands() -> None:
    with pytest.raises(UserError, match="not an address fsspec understands"):
        OutputStore("nonsense://bucket/out")


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="must be a folder to write to"):
        OutputStore(str(tmp_path / "out")).write_rows([make_row()])


def test_the_run_report_is_replaced_whole(uri: str) -> None:
    store = OutputStore(uri)
    store.write_run("run-1", {"run_id": "run-1", "counts": {"listed": 1}})
    store.write_run("run-1", {"run_id": "run-1", "counts": {"listed": 2}})
    assert [entry.name for entry in store.storage.files("_runs")] == ["run-1.json"]


def test_part_buffer_is_bounded_in_rows_and_seconds() -> None:
    buffer: PartBuffer[int] = PartBuffer(part_rows=3, part_seconds=10.0)
    assert not buffer.due(1e9)
    buffer.add([1, 2], now=100.0)
    assert not buffer.due(109.9)
    assert buffer.due(110.0)
    buffer.add([3, 4], now=101.0)
    assert buffer.due(101.0)
    assert buffer.take() == [1, 2, 3]
    assert not buffer.due(102.0)
    assert buffer.take() == [4]
    assert buffer.take() == []
    assert len(buffer) == 0


_WRITER = """
import sys
from pipeline.output.store import OutputStore
from tests.unit.samples import make_row
store, number = OutputStore(sys.argv[1]), int(sys.argv[2])
while True:
    store.write_rows([make_row(number * 10 + i, caption="x" * 20_000) for i in range(10)])
    number += 1
    print("wrote", flush=True)
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_of_commits(tmp_path: Path) -> None:
    """Whenever the writer dies, every visible part is whole, and what is half written is invisible."""
    for round_number in range(3):
        command = [sys.executable, "-c", _WRITER, str(tmp_path), str(round_number * 100_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.043 * round_number)
            child.send_signal(signal.SIGKILL)
        store = OutputStore(str(tmp_path))
        parts = store.parts("videos")
        keys = store.committed(FINGERPRINT)
        assert len(parts) > round_number, "the writer commits before it is killed"
        assert len(keys) == 10 * len(parts)
        assert all(len(row["caption"]) == 20_000 for row in store.iter_rows())
        assert not any(".tmp" in name for (name,) in duckdb_files(tmp_path))
        store.clean()
        assert not list(tmp_path.rglob("*.tmp"))


def test_sigkill_between_the_temporary_file_and_its_name(tmp_path: Path) -> None:
    """The worst moment, on purpose: all bytes are on disk, the rename has not happened."""
    code = (
        "import os, signal, sys\nfrom pipeline.output.store import OutputStore\n"
        "from tests.unit.samples import make_row\n"
        "store = OutputStore(sys.argv[1]); store.write_rows([make_row(0)])\n"
        "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.write_rows([make_row(1)])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "videos").glob(".*.tmp"))) == 1, "positive control: it died in the middle"
    store = OutputStore(str(tmp_path))
    assert committed(store, 0)
    assert len(duckdb_files(tmp_path)) == 1
    assert len(pandas.read_parquet(tmp_path / "videos")) == 1
    assert store.clean() == 1


def duckdb_files(root: Path) -> list[tuple[str]]:
    return duckdb.sql(f"select distinct filename from read_parquet('{root}/videos/*.parquet')").fetchall()


def test_attempts_count_by_their_number_not_by_the_clock_that_names_parts(uri: str) -> None:
    """A heal on a host whose clock is behind writes parts that sort before the failure it heals."""
    store = OutputStore(uri)
    crash = {"reason": Reason.CRASHED_WORKER, "is_final": False}
    store.write_failures([make_failure(0, attempt=2, **crash)])  # made last, named first
    store.write_failures([make_failure(0, attempt=1, reason=Reason.CORRUPT)])
    key = make_ref(0).key
    history = store.failures_of(FINGERPRINT).history(key)
    assert (history.attempts, history.failures, history.strikes) == (2, 0, 1)
