"""compact: no row twice, none missing, at any instant, for any reader, whenever it is killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PipelineError, UserError
from pipeline.output.compacting import compact
from pipeline.output.lock import OutputLock
from pipeline.output.merge_plan import Footer, plan_groups
from pipeline.output.merge_records import Merge, drop_replaced, is_torn, read_merges, write_merge
from pipeline.output.store import OutputStore, again_if_merged
from pipeline.output.verify import verify_output
from pipeline.stores import local_files
from pipeline.stores.storage import Storage, StoredFile
from tests.unit.samples import FINGERPRINT, make_failure, make_row

ROWS = 24


@pytest.fixture(params=["exchange", "record", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A local output whose folders can be exchanged, one where they cannot, and one that is not local."""
    if request.param == "memory":
        monkeypatch.setattr("pipeline.output.lock.Storage", _settled)
        where: str = request.getfixturevalue("memory_uri")
        return where
    if request.param == "record":
        monkeypatch.setattr("pipeline.stores.local_files.exchange_folders", lambda left, right: False)
    return str(tmp_path / "out")


def _settled(uri: str, **settings: Any) -> Storage:
    return Storage(uri, settle_seconds=0.0)


def fill(uri: str, rows: int = ROWS, part_rows: int = 3) -> OutputStore:
    store = OutputStore(uri)
    store.storage._settle_seconds = 0.0
    store.bind(FINGERPRINT, {})
    for first in range(0, rows, part_rows):
        store.write_rows([make_row(number) for number in range(first, min(first + part_rows, rows))])
    return store


def ids(store: OutputStore) -> list[str]:
    return [row["video_id"] for row in store.iter_rows(["video_id"])]


def test_small_parts_become_large_ones_and_rows_stay_as_they_were(uri: str) -> None:
    store = fill(uri)
    for number in range(4):
        store.write_failures([make_failure(100 + number, details={"number": str(number)})])
    rows, failures = list(store.iter_rows()), list(store.iter_failures())
    report = compact(uri, target_rows=12)
    assert [(one.folder, one.parts_before, one.parts_after) for one in report.folders] == [
        ("videos", 8, 2),
        ("failures", 4, 1),
    ]
    assert list(store.iter_rows()) == rows
    assert list(store.iter_failures()) == failures
    assert len(store.committed(FINGERPRINT)) == ROWS
    assert store.failures_of(FINGERPRINT).num_final == 4
    assert verify_output(uri).problems == ()
    assert "videos: 8 parts became 2; 24 rows were merged" in report.lines()[0]


def test_what_was_replaced_is_kept_for_a_while_and_then_removed(uri: str) -> None:
    store = fill(uri)
    report = compact(uri, target_rows=100, keep_seconds=600)
    assert report.waiting > 0
    assert report.due_at is not None
    assert "kept for readers" in report.lines()[-1]
    assert compact(uri, target_rows=100).removed == 0
    again = compact(uri, target_rows=100, keep_seconds=0)
    assert again.folders[0].rows_merged == 0, "what is merged stays as it is"
    for name in [entry.name for entry in store.storage.files("_compact")]:
        record = json.loads(store.storage.read(f"_compact/{name}") or b"")
        store.storage.write(f"_compact/{name}", json.dumps({**record, "due_at": 0.0}).encode())
    for name in store.storage.folders("_compact") if store.storage.is_local else []:
        path = Path(store.storage.path(f"_compact/{name}"))
        path.rename(path.with_name(f"{name.rpartition('-')[0]}-0"))
    assert store.clean() > 0
    assert len(store.storage.files("videos")) == 1
    assert ids(store) == [f"video-{number}" for number in range(ROWS)]


def test_without_keeping_nothing_replaced_is_left(uri: str) -> None:
    store = fill(uri)
    report = compact(uri, target_rows=100, keep_seconds=0)
    assert report.waiting == 0
    assert len(store.storage.files("videos")) == 1
    assert ids(store) == [f"video-{number}" for number in range(ROWS)]


def test_large_parts_are_left_alone_and_order_is_kept(uri: str) -> None:
    store = fill(uri, rows=6)
    store.write_rows([make_row(number) for number in range(6, 26)])
    large = store.parts("videos")[-1].name
    for number in range(26, 30):
        store.write_rows([make_row(number)])
    compact(uri, target_rows=20)
    assert large in [entry.name for entry in store.parts("videos")]
    assert len(store.parts("videos")) == 3
    assert ids(store) == [f"video-{number}" for number in range(30)]


def test_parts_of_different_jobs_or_schemas_are_not_mixed(uri: str) -> None:
    store = fill(uri, rows=6)
    store.write_rows([make_row(90, fingerprint="another")])
    store.write_rows([make_row(91, fingerprint="another")])
    wider = OutputStore(uri, columns={"title": "string"})
    wider.write_rows([make_row(92, extra=(("title", "A film"),))])
    compact(uri)
    parts = [pq.read_schema(_bytes(store, entry.name)) for entry in store.parts("videos")]
    assert sorted(len(schema.names) for schema in parts) == [34, 34, 35]
    assert len(ids(store)) == 9


def _bytes(store: OutputStore, name: str) -> Any:
    import pyarrow as pa

    return pa.BufferReader(store.storage.read(f"videos/{name}"))


def test_planning_looks_at_each_part_a_few_times_however_many_there_are() -> None:
    looks = [0]

    class Counted(Footer):
        def __getattribute__(self, name: str) -> Any:
            looks[0] += name == "rows"
            return super().__getattribute__(name)

    parts = [Counted(StoredFile(f"part-{number}", 1), 1, ("f", b"")) for number in range(2000)]
    (group,) = plan_groups(parts, target_rows=2000, min_parts=2)
    assert group.rows == 2000
    assert looks[0] < 20 * len(parts)


def test_a_run_in_progress_is_not_disturbed(tmp_path: Path) -> None:
    fill(str(tmp_path))
    lock = OutputLock(str(tmp_path))
    lock.acquire("run-1")
    with pytest.raises(UserError, match="is being written by run run-1"):
        compact(str(tmp_path))
    lock.release()
    compact(str(tmp_path))


def test_foreign_files_stay_where_they_are(tmp_path: Path) -> None:
    store = fill(str(tmp_path))
    (tmp_path / "videos" / "notes.txt").write_text("mine")
    compact(str(tmp_path), keep_seconds=0)
    assert (tmp_path / "videos" / "notes.txt").read_text() == "mine"
    assert len(store.parts("videos")) == 1


def test_a_folder_with_subfolders_is_not_exchanged_and_still_merged(tmp_path: Path) -> None:
    store = fill(str(tmp_path))
    (tmp_path / "videos" / "mine").mkdir()
    compact(str(tmp_path))
    assert len(read_merges(store.storage)) == 1, "the record protocol"
    assert len(store.parts("videos")) == 1
    assert (tmp_path / "videos" / "mine").is_dir()


@pytest.mark.parametrize("keep_seconds", [0.0, 600.0])
def test_a_merge_on_record_and_an_exchange_after_it_count_each_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_seconds: float
) -> None:
    """An output copied from object storage; a subfolder or a link that was in the way and is gone."""
    store = fill(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stores.local_files.exchange_folders", lambda left, right: False)
        compact(str(tmp_path), keep_seconds=keep_seconds)
    for number in range(ROWS, ROWS + 3):
        store.write_rows([make_row(number)])
    compact(str(tmp_path), keep_seconds=keep_seconds)
    assert sorted(ids(store)) == sorted(f"video-{number}" for number in range(ROWS + 3))
    assert verify_output(str(tmp_path)).problems == ()


@pytest.mark.parametrize("how", ["exchange", "record"])
def test_a_full_disk_is_told_and_nothing_of_the_merge_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    if how == "record":
        monkeypatch.setattr("pipeline.stores.local_files.exchange_folders", lambda left, right: False)
    store = fill(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.output.compacting.os.fsync", full)
        with pytest.raises(UserError, match="No space left"):
            compact(str(tmp_path))
    there = [path for path in (tmp_path / "_compact").rglob("*") if path.is_file()]
    assert (there, len(store.parts("videos"))) == ([], 8)
    assert compact(str(tmp_path)).folders[0].parts_after == 1


def test_what_a_killed_compact_had_staged_goes_at_once(tmp_path: Path) -> None:
    store = fill(str(tmp_path))
    staged = tmp_path / "_compact" / "20260101T000000000000Z-12345678" / "videos"  # as before the exchange
    staged.mkdir(parents=True)
    (staged / "part-20260101T000000000000Z-000000000001.parquet").write_bytes(b"half")
    (tmp_path / "_compact" / ".x.json.0123.tmp").write_bytes(b"half")
    assert store.clean() == 2
    assert list((tmp_path / "_compact").iterdir()) == []


def test_a_compact_that_overslept_does_not_bring_back_what_another_one_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended between its check of the lock and the exchange, which is one instruction later."""
    store = fill(str(tmp_path))
    swap, calls = local_files.exchange_folders, []

    def overslept(left: str, right: str) -> bool:
        calls.append(left)
        if len(calls) == 1:
            (path,) = (tmp_path / "_lock").iterdir()
            path.write_text(path.read_text().replace('"released": false', '"released": true'))
            assert compact(str(tmp_path), keep_seconds=0).folders[0].parts_after == 1
        return swap(left, right)

    monkeypatch.setattr("pipeline.stores.local_files.exchange_folders", overslept)
    with pytest.raises(PipelineError):
        compact(str(tmp_path), keep_seconds=600)
    monkeypatch.undo()
    assert ids(store) == [f"video-{number}" for number in range(ROWS)]
    assert verify_output(str(tmp_path)).problems == ()


def test_a_reader_that_listed_before_is_served_as_it_began(uri: str) -> None:
    store = fill(uri)
    reader = store.iter_rows(["video_id"])
    assert next(reader)["video_id"] == "video-0"
    compact(uri)
    assert [row["video_id"] for row in reader] == [f"video-{number}" for number in range(1, ROWS)]


def test_a_reader_too_slow_for_what_was_kept_is_told(uri: str) -> None:
    store = fill(uri)
    reader = store.iter_rows(["video_id"])
    next(reader)
    compact(uri, keep_seconds=0)
    with pytest.raises(UserError, match="merged or removed while they were read; read again"):
        list(reader)
    assert len(ids(store)) == ROWS


# ---- a compact that died at each step of the record protocol


def record(store: OutputStore, **changes: Any) -> Merge:
    names = tuple(entry.name for entry in store.parts("videos"))
    stem = names[0].rpartition("-")[0]
    values = {"merge_id": uuid.uuid4().hex, "folder": "videos", "part": f"{stem}-abcdef012345.parquet"}
    times = {"written_at": time.time(), "due_at": time.time() + 600}
    merge = Merge(**{**values, "replaces": names, "rows": ROWS, **times, **changes})
    write_merge(store.storage, merge)
    return merge


def merged_bytes(store: OutputStore) -> bytes:
    from pipeline.output.parts import encode_rows
    from pipeline.output.schemas import VIDEO_SCHEMA

    return encode_rows([make_row(number) for number in range(ROWS)], VIDEO_SCHEMA)


def test_killed_before_the_new_part_nothing_has_changed(uri: str) -> None:
    store = fill(uri)
    record(store)
    assert len(ids(store)) == ROWS
    compact(uri, keep_seconds=0)
    assert len(ids(store)) == ROWS
    assert len(store.parts("videos")) == 1


def test_a_part_sent_off_by_a_killed_compact_that_arrives_late_does_not_count_twice(uri: str) -> None:
    """The record was written, the upload was on its way when its sender died; the next compact came first."""
    store = fill(uri)
    late = record(store)
    data = merged_bytes(store)
    if store.storage.is_local:
        pytest.skip("a local write is over when its writer is dead")
    compact(uri)
    store.storage.write(f"videos/{late.part}", data)
    assert len(ids(store)) == ROWS
    compact(uri, keep_seconds=0)
    assert len(ids(store)) == ROWS


def test_killed_before_the_old_parts_were_deleted_rows_count_once(uri: str) -> None:
    store = fill(uri)
    merge = record(store, due_at=time.time() - 1)
    store.storage.write(f"videos/{merge.part}", merged_bytes(store))
    assert len(ids(store)) == ROWS
    store.storage.delete(f"videos/{merge.replaces[3]}")
    assert len(ids(store)) == ROWS
    assert verify_output(uri).ok
    store.clean()
    assert [entry.name for entry in store.storage.files("videos")] == [merge.part]
    assert len(ids(store)) == ROWS


def test_a_merge_of_a_merge_counts_once_while_all_parts_are_there(uri: str) -> None:
    store = fill(uri)
    first = record(store)
    store.storage.write(f"videos/{first.part}", merged_bytes(store))
    last = record(store, replaces=(first.part,), part="part-0-abcdef999999.parquet", due_at=0.0)
    store.storage.write(f"videos/{last.part}", merged_bytes(store))
    assert len(ids(store)) == ROWS
    store.clean()  # removes the first merged part, but not yet what that one replaced
    assert len(store.storage.files("videos")) > 1
    assert len(ids(store)) == ROWS


def test_a_new_part_that_is_not_whole_costs_nothing(uri: str) -> None:
    store = fill(uri)
    merge = record(store, rows=ROWS + 1, due_at=0.0)
    store.storage.write(f"videos/{merge.part}", merged_bytes(store))
    with pytest.raises(UserError, match="has 24 rows instead of 25: nothing was deleted"):
        store.clean()
    assert set(merge.replaces) < {entry.name for entry in store.storage.files("videos")}


@pytest.mark.parametrize(
    ("listed", "counts", "torn"),
    [("ab", "ab", False), ("abC", "C", False), ("bC", "C", False), ("C", "C", False), ("b", "b", True)],
)
def test_a_listing_read_while_parts_changed_is_noticed(listed: str, counts: str, torn: bool) -> None:
    """Pages of a long listing come one after the other: the first without the new part, the last without
    one that it replaces."""
    merges = [Merge("m", "videos", "C", ("a", "b"), 2, 0.0, 0.0)]
    assert is_torn("videos", listed, merges) is torn
    entries = [StoredFile(name, 1) for name in listed]
    assert [entry.name for entry in drop_replaced("videos", entries, merges)] == list(counts)
    assert drop_replaced("failures", entries, merges) == entries


# ---- readers that never stop looking

_COMPACTOR = """
import sys
import pipeline.stores.local_files
from pipeline.output.compacting import compact
uri, how = sys.argv[1:]
if how == "record":
    pipeline.stores.local_files.exchange_folders = lambda left, right: False
print("up", flush=True)
compact(uri, target_rows=1000, keep_seconds=0)
"""


def count_by_glob(root: Path) -> tuple[int, int] | None:
    query = f"select count(*), count(distinct video_id) from read_parquet('{root}/videos/*.parquet')"
    try:
        (found,) = duckdb.sql(query).fetchall()
    except duckdb.Error:
        return None  # a listed part is gone: loud, not wrong
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("how", "seed"), [("exchange", 1), ("record", 2)])
def test_readers_see_every_row_once_while_compact_is_killed_at_random(
    tmp_path: Path, how: str, seed: int
) -> None:
    chance = random.Random(seed)
    store = fill(str(tmp_path), rows=40, part_rows=1)
    for _ in range(3):
        looks = look_until_it_ends(store, how, seconds=chance.uniform(0.0, 0.4))
        assert looks > 0
        first = len(ids(store))
        for number in range(first, first + 10):
            store.write_rows([make_row(number)])
    compact(str(tmp_path), keep_seconds=0)
    assert verify_output(str(tmp_path)).problems == ()
    assert count_by_glob(tmp_path) == (70, 70)


def look_until_it_ends(store: OutputStore, how: str, seconds: float) -> int:
    """Count by every way of reading while compact runs and, so many seconds later, is killed."""
    expected = sorted(ids(store))
    rows, looks = len(expected), 0
    command = [sys.executable, "-c", _COMPACTOR, store.storage.uri, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.monotonic() + seconds
        while child.poll() is None or not looks:
            if time.monotonic() > deadline:
                child.send_signal(signal.SIGKILL)
                child.wait()
            assert sorted(ids_again(store)) == expected
            assert len(store.committed(FINGERPRINT)) == rows
            if how == "exchange":
                assert count_by_glob(Path(store.storage.uri)) in ((rows, rows), None)
            looks += 1
    assert sorted(ids(store)) == expected
    return looks


def ids_again(store: OutputStore) -> list[str]:
    """Read from the start where the parts were merged meanwhile and nothing was kept."""
    return again_if_merged(lambda: ids(store))
