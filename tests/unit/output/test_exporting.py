"""export: every row, or the last of each video, in one file or through a view; never inside the output."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import duckdb
import fsspec
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.output.compacting import compact
from pipeline.output.exporting import export, view_sql
from pipeline.output.schemas import VIDEO_SCHEMA
from pipeline.output.store import OutputStore
from tests.unit.samples import FINGERPRINT, make_row

PARTS = [[(0, "a", 100), (1, "a", 100)], [(0, "c", 300), (2, "v2", 100)], [(0, "b", 200), (1, "b", 100)]]


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    """Three videos; the first has three versions, the last of them made by a worker whose clock is behind."""
    store = OutputStore(str(tmp_path / "it's [an] output"))
    store.bind(FINGERPRINT, {})
    for part in PARTS:
        store.write_rows([make_row(number, version=name, indexed_at_us=at) for number, name, at in part])
    return store


LATEST = [("video-0", "b"), ("video-1", "b"), ("video-2", "v2")]


def exported(store: OutputStore, target: str, latest: bool = True) -> list[tuple[str, str]]:
    report = export(store.storage.uri, "videos", target, latest=latest)
    with fsspec.open(target) as file:
        table = pq.read_table(file)
    rows = list(zip(table["video_id"].to_pylist(), table["version"].to_pylist(), strict=True))
    assert report.rows == len(rows)
    assert report.rows_read == 6
    return sorted(rows) if latest else rows


def viewed(store: OutputStore, latest: bool = True) -> list[tuple[str, str]]:
    connection = duckdb.connect()
    connection.execute(view_sql(store.storage.uri, "videos", latest=latest))
    name = "videos_latest" if latest else "videos"
    assert set(connection.sql(f"select * from {name}").columns) == set(VIDEO_SCHEMA.names)
    return connection.sql(f"select video_id, version from {name} order by all").fetchall()


def test_the_version_of_each_video_that_was_committed_last(store: OutputStore, tmp_path: Path) -> None:
    assert exported(store, str(tmp_path / "new" / "latest.parquet")) == LATEST
    assert viewed(store) == LATEST
    assert os.listdir(tmp_path / "new") == ["latest.parquet"]


def test_all_rows_in_their_order(store: OutputStore, tmp_path: Path) -> None:
    rows = exported(store, str(tmp_path / "all.parquet"), latest=False)
    assert rows == [(row["video_id"], row["version"]) for row in store.iter_rows()]
    assert viewed(store, latest=False) == sorted(rows)
    assert pq.read_schema(tmp_path / "all.parquet").equals(VIDEO_SCHEMA)


def test_a_view_goes_on_growing_where_the_table_is_local(store: OutputStore) -> None:
    connection = duckdb.connect()
    connection.execute(view_sql(store.storage.uri, "videos"))
    store.write_rows([make_row(7)])
    assert connection.sql("select count(*) from videos").fetchall() == [(7,)]


def test_parts_that_wait_for_their_removal_are_not_viewed(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stores.local_files.exchange_folders", lambda left, right: False)
    compact(store.storage.uri)
    assert len(store.storage.files("videos")) == 4, "positive control: a plain pattern would see doubles"
    assert viewed(store) == LATEST
    assert len(viewed(store, latest=False)) == 6
    assert exported(store, str(tmp_path / "latest.parquet")) == LATEST


def test_to_an_object_store_and_from_one(store: OutputStore) -> None:
    target = f"memory://export-{uuid.uuid4().hex}/latest.parquet"
    assert exported(store, target) == LATEST
    remote = OutputStore(f"memory://export-{uuid.uuid4().hex}")
    remote.write_rows([make_row(0)])
    sql = view_sql(remote.storage.uri, "videos")
    assert f"/videos/{remote.parts('videos')[0].name}'" in sql
    assert "the 1 parts that count now" in sql


@pytest.mark.parametrize("place", ["videos/x.parquet", "failures/x.parquet", "videos/sub/x.parquet"])
def test_a_file_among_the_parts_is_refused(store: OutputStore, place: str) -> None:
    with pytest.raises(UserError, match="where readers would count its rows again"):
        export(store.storage.uri, "videos", f"{store.storage.uri}/{place}")
    assert len(list(store.iter_rows())) == 6


def test_a_link_into_the_table_is_refused(store: OutputStore, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(Path(store.storage.uri) / "videos")
    with pytest.raises(UserError, match="where readers would count its rows again"):
        export(store.storage.uri, "videos", str(tmp_path / "link" / "x.parquet"))


def test_a_folder_as_the_target_is_refused(store: OutputStore, tmp_path: Path) -> None:
    for target in (f"{tmp_path}/", str(tmp_path)):
        with pytest.raises(UserError, match=r"is a folder; name the file|must end in \.parquet"):
            export(store.storage.uri, "videos", target)


def test_a_name_that_promises_another_format_is_refused(store: OutputStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.csv' must end in \.parquet"):
        export(store.storage.uri, "videos", str(tmp_path / "x.csv"))
    assert not (tmp_path / "x.csv").exists()


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    OutputStore(str(tmp_path)).bind(FINGERPRINT, {})
    with pytest.raises(UserError, match="has no rows yet"):
        export(str(tmp_path), "videos", str(tmp_path / "x.parquet"))
    with pytest.raises(UserError, match="has no rows yet"):
        view_sql(str(tmp_path), "videos")


def test_a_failed_export_leaves_what_was_there(store: OutputStore, tmp_path: Path) -> None:
    target = tmp_path / "latest.parquet"
    target.write_text("the old one")
    entry = store.parts("videos")[1]
    path = Path(store.storage.path(f"videos/{entry.name}"))
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56  # the footer is whole, a column is not
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot read part"):
        export(store.storage.uri, "videos", str(target))
    assert target.read_text() == "the old one"
    assert sorted(os.listdir(tmp_path)) == sorted([Path(store.storage.uri).name, "latest.parquet"])


def test_a_column_that_older_parts_lack_is_empty_there(store: OutputStore, tmp_path: Path) -> None:
    path = Path(store.storage.path(f"videos/{store.parts('videos')[0].name}"))
    pq.write_table(pq.read_table(path).drop_columns(["visual_tokens_budget"]), path)
    assert exported(store, str(tmp_path / "x.parquet")) == LATEST
    assert viewed(store) == LATEST
    export(store.storage.uri, "videos", str(tmp_path / "all.parquet"))
    assert pq.read_table(tmp_path / "all.parquet")["visual_tokens_budget"].null_count == 2


def test_columns_of_different_types_are_named(store: OutputStore, tmp_path: Path) -> None:
    path = Path(store.storage.path(f"videos/{store.parts('videos')[0].name}"))
    table = pq.read_table(path)
    pq.write_table(table.set_column(8, "width", table["width"].cast("int64")), path)
    with pytest.raises(UserError, match="column 'width' has several types in videos/: int32, int64"):
        export(store.storage.uri, "videos", str(tmp_path / "x.parquet"))


def test_a_place_that_cannot_be_written_is_named(store: OutputStore) -> None:
    with pytest.raises(UserError, match=r"'/proc/nowhere/all\.parquet' cannot be used: FileNotFoundError"):
        export(store.storage.uri, "videos", "/proc/nowhere/all.parquet")
