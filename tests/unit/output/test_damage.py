"""Bit rot: what has changed in a part since it was written is found by whoever reads it, and named."""

from __future__ import annotations

import io
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.output.commit_order import part_name
from pipeline.output.compacting import compact
from pipeline.output.exporting import export
from pipeline.output.parts import CHECKED, encode_rows
from pipeline.output.schemas import VIDEO_SCHEMA
from pipeline.output.seals import SEAL_BYTES, look_at_seal, seal_bytes, seal_file
from pipeline.output.status import read_status
from pipeline.output.store import OutputStore
from pipeline.output.verify import verify_output
from tests.unit.samples import FINGERPRINT, make_failure, make_row

FLIPS = 120


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    store = OutputStore(str(tmp_path / "out"))
    store.bind(FINGERPRINT, {})
    for first in (0, 8):
        store.write_rows([make_row(n, caption=f"Caption {n * 7919}.") for n in range(first, first + 8)])
    store.write_failures([make_failure(number) for number in range(20, 26)])
    store.write_failures([make_failure(30)])
    return store


def part_of(store: OutputStore, folder: str = "videos", number: int = 0) -> Path:
    return Path(store.storage.path(f"{folder}/{store.parts(folder)[number].name}"))


def flips(data: bytes, seed: int, number: int = FLIPS) -> Iterator[bytes]:
    """The data with one bit flipped, at places of a fixed series, and at each bit of the mark of the seal."""
    rng = random.Random(seed)
    mark = 8 * data.index(b"flashvid\x00seal")
    for place in (*rng.sample(range(8 * len(data)), number), mark, mark + 40, mark + 127):
        yield flipped(data, place)


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def chunk_of(path: Path, column: str) -> tuple[int, int]:
    """Where the last page of a column lies: inside its chunk, and some bytes long."""
    metadata = pq.ParquetFile(path).metadata.row_group(0)
    numbers = range(metadata.num_columns)
    found = next(
        metadata.column(number) for number in numbers if metadata.column(number).path_in_schema == column
    )
    return found.data_page_offset, found.total_compressed_size


def damage(path: Path, column: str) -> None:
    """Flip one bit of a column's values: in the last byte of its pages."""
    metadata = pq.ParquetFile(path).metadata.row_group(0)
    for number in range(metadata.num_columns):
        found = metadata.column(number)
        if found.path_in_schema == column:
            start = found.dictionary_page_offset or found.data_page_offset
            path.write_bytes(flipped(path.read_bytes(), 8 * (start + found.total_compressed_size) - 4))
            return
    raise AssertionError(column)


@pytest.mark.parametrize("folder", ["videos", "failures"])
def test_verify_finds_every_flipped_bit(store: OutputStore, folder: str) -> None:
    path = part_of(store, folder)
    whole = path.read_bytes()
    assert verify_output(store.storage.uri).problems == ()
    for changed in flips(whole, seed=14):
        path.write_bytes(changed)
        text = "\n".join(verify_output(store.storage.uri).problems)
        assert f"{folder}/{path.name} cannot be read" in text
        assert "move it out of the folder, and its videos are done again" in text
    path.write_bytes(whole)
    assert verify_output(store.storage.uri).ok


def test_merged_parts_are_as_safe(store: OutputStore) -> None:
    compact(store.storage.uri, keep_seconds=0)
    (entry,) = store.parts("videos")
    path = Path(store.storage.path(f"videos/{entry.name}"))
    for changed in flips(path.read_bytes(), seed=15, number=FLIPS // 2):
        path.write_bytes(changed)
        assert not verify_output(store.storage.uri).ok


def test_a_part_without_page_checksums_changes_in_silence(store: OutputStore) -> None:
    """The positive control: it is the checksums that tell."""
    rows = [make_row(n, caption=f"Caption {n * 7919}.") for n in range(8)]
    table = pq.read_table(io.BytesIO(encode_rows(rows, VIDEO_SCHEMA)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    silent = 0
    for place in random.Random(14).sample(range(8 * sink.tell()), FLIPS):
        try:
            found = pq.ParquetFile(io.BytesIO(flipped(sink.getvalue().to_pybytes(), place)), **CHECKED).read()
        except (pa.ArrowException, OSError):
            continue
        silent += not found.equals(table)
    assert silent > 0


def test_the_row_group_and_the_column_are_named(store: OutputStore) -> None:
    damage(part_of(store), "caption")
    (problem,) = [text for text in verify_output(store.storage.uri).problems if "cannot be read" in text]
    assert "row group 0, column 'caption' is damaged" in problem


def readers(store: OutputStore, tmp_path: Path) -> dict[str, Callable[[], object]]:
    uri = store.storage.uri
    return {
        "export": lambda: export(uri, "videos", str(tmp_path / "all.parquet")),
        "export --latest": lambda: export(uri, "videos", str(tmp_path / "latest.parquet"), latest=True),
        "compact": lambda: compact(uri, keep_seconds=0),
        "resume": lambda: store.committed(FINGERPRINT),
        "status": lambda: read_status(uri),
        "rows": lambda: list(store.iter_rows()),
    }


@pytest.mark.parametrize("reader", ["export", "export --latest", "compact", "resume", "status", "rows"])
def test_who_reads_a_damaged_part_refuses_it_by_name(store: OutputStore, tmp_path: Path, reader: str) -> None:
    path = part_of(store)
    damage(path, "video_id")
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(
        UserError, match=r"row group 0, column 'video_id' is damaged.*its videos are done again"
    ) as told:
        readers(store, tmp_path)[reader]()
    assert str(path) in str(told.value)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("reader", ["export", "export --latest", "compact", "rows"])
def test_who_hands_values_on_reads_them_all_checked(store: OutputStore, tmp_path: Path, reader: str) -> None:
    damage(part_of(store, number=1), "caption")
    with pytest.raises(UserError, match="row group 0, column 'caption' is damaged"):
        readers(store, tmp_path)[reader]()


@pytest.mark.parametrize("reader", ["resume", "status"])
def test_a_footer_that_changed_is_seen_by_who_reads_only_keys(
    store: OutputStore, tmp_path: Path, reader: str
) -> None:
    path = part_of(store)
    path.write_bytes(path.read_bytes().replace(b"run_id", b"run_ie", 1))
    with pytest.raises(UserError, match="its footer is not what was written"):
        readers(store, tmp_path)[reader]()


def test_damage_in_failures_does_not_forget_what_failed(store: OutputStore) -> None:
    damage(part_of(store, "failures"), "reason")
    with pytest.raises(UserError, match="row group 0, column 'reason' is damaged"):
        store.failures_of(FINGERPRINT)


@pytest.mark.parametrize("way", ["exchange", "record"])
def test_compact_neither_merges_nor_deletes_a_damaged_part(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Be the damage where no value is: a bit of a header, which no page checksum covers."""
    if way == "record":
        monkeypatch.setattr("pipeline.stores.local_files.exchange_folders", lambda left, right: False)
    path = part_of(store, number=1)
    data = path.read_bytes()
    harmless = next(
        changed
        for place in range(32, 8 * len(data))
        if same_values(data, changed := flipped(data, place)) and look(changed) == "body"
    )
    path.write_bytes(harmless)
    names = [entry.name for entry in store.parts("videos")]
    with pytest.raises(UserError, match=rf"{path.name}.*a header of a page"):
        compact(store.storage.uri, keep_seconds=0)
    assert [entry.name for entry in store.parts("videos")] == names
    assert path.read_bytes() == harmless
    path.write_bytes(data)
    assert compact(store.storage.uri, keep_seconds=0).folders[0].rows_merged == 16


def same_values(data: bytes, changed: bytes) -> bool:
    try:
        found = pq.ParquetFile(io.BytesIO(changed), **CHECKED).read()
    except (pa.ArrowException, OSError):
        return False
    return bool(found.equals(pq.read_table(io.BytesIO(data))))


def look(data: bytes) -> str:
    return look_at_seal(io.BytesIO(data), len(data), whole=True)


def test_what_a_damaged_merge_replaces_is_kept(store: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stores.local_files.exchange_folders", lambda left, right: False)
    compact(store.storage.uri, keep_seconds=0.1)
    merged = part_of(store)
    damage(merged, "caption")
    time.sleep(0.2)  # what was replaced is due now
    with pytest.raises(UserError, match="row group 0, column 'caption' is damaged"):
        store.clean()
    merged.unlink()
    assert len(list(store.iter_rows())) == 16


def test_after_the_part_is_moved_out_its_videos_are_done_again(store: OutputStore, tmp_path: Path) -> None:
    path = part_of(store)
    damage(path, "video_id")
    path.rename(tmp_path / path.name)
    assert len(store.committed(FINGERPRINT)) == 8
    assert compact(store.storage.uri).folders[0].parts_after == 1


def test_an_object_store(memory_uri: str) -> None:
    """A part is fetched whole there, so that the seal is looked at whoever reads it."""
    store = OutputStore(memory_uri)
    store.write_rows([make_row(0)])
    (entry,) = store.parts("videos")
    data = store.storage.read(f"videos/{entry.name}")
    assert data is not None
    for changed in flips(data, seed=16, number=FLIPS // 4):
        store.storage.write(f"videos/{entry.name}", changed)
        with pytest.raises(UserError, match=r"damaged|not what was written|cannot read part"):
            store.committed(FINGERPRINT)


def test_parts_of_earlier_releases_are_sound_and_noted(store: OutputStore) -> None:
    for name in ("old", "older"):
        rows = [make_row(50, version=name, run_id="run-0")]
        table = pq.read_table(io.BytesIO(encode_rows(rows, VIDEO_SCHEMA)))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        at_us = {"old": 10**15, "older": 2 * 10**15}[name]
        store.storage.write(f"videos/{part_name(at_us)}", sink.getvalue().to_pybytes())
    report = verify_output(store.storage.uri)
    assert report.problems == ()
    assert any(note.startswith("2 parts have no checksums") for note in report.notes)
    compact(store.storage.uri, keep_seconds=0)
    report = verify_output(store.storage.uri)
    assert (report.ok, report.rows) == (True, 18)
    assert not any("checksums" in note for note in report.notes)


def test_an_old_part_whose_captions_cannot_be_read_is_found(store: OutputStore) -> None:
    path = part_of(store)
    pq.write_table(pq.read_table(path), path, compression="zstd")
    start, size = chunk_of(path, "caption")
    data = bytearray(path.read_bytes())
    data[start : start + size // 2] = b"\xff" * (size // 2)
    path.write_bytes(data)
    assert "row group 0, column 'caption' is damaged" in "\n".join(verify_output(store.storage.uri).problems)


def test_every_file_that_is_written_has_checksums_for_other_readers_too(
    store: OutputStore, tmp_path: Path
) -> None:
    """No reader minds the seal, and who checks pages finds what is wrong: also in an exported file."""
    export(store.storage.uri, "videos", str(tmp_path / "all.parquet"))
    for path in (part_of(store), part_of(store, "failures"), tmp_path / "all.parquet"):
        rows = pq.read_metadata(path).num_rows
        assert duckdb.sql(f"select count(*) from '{path}'").fetchall() == [(rows,)]
        damage(path, "video_id")
        with pytest.raises(OSError, match="CRC checksum verification failed"):
            pq.ParquetFile(path, **CHECKED).read()


def test_a_seal_in_memory_and_on_disk_are_the_same(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2, 3]}), sink)
    plain = sink.getvalue().to_pybytes()
    (tmp_path / "x.parquet").write_bytes(plain)
    seal_file(str(tmp_path / "x.parquet"))
    assert (tmp_path / "x.parquet").read_bytes() == seal_bytes(plain)
    assert len(seal_bytes(plain)) == len(plain) + SEAL_BYTES
    assert look(seal_bytes(plain)) == "sound"
    assert look(plain) == "none"
    assert look(b"") == look(b"PAR1") == look(plain[:30]) == look(b"\xff" * 300) == "none"


def exchanged(store: OutputStore) -> None:
    first, second = part_of(store), part_of(store, number=1)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def renamed(store: OutputStore) -> None:
    path = part_of(store)
    path.rename(path.with_name(part_name(int(time.time() * 1e6) + 60_000_000)))


def of_another_output(store: OutputStore) -> None:
    other = OutputStore(f"{store.storage.uri}-other")
    other.bind(FINGERPRINT, {})
    other.write_rows([make_row(number) for number in range(40, 44)])
    part_of(store).write_bytes(part_of(other).read_bytes())


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("change", [exchanged, renamed, of_another_output])
def test_sound_parts_under_other_names_are_found(
    store: OutputStore, tmp_path: Path, change: Callable[[OutputStore], None], merged: bool
) -> None:
    store.write_rows([make_row(0, version="later"), make_row(50)])
    if merged:
        compact(store.storage.uri, target_rows=17, keep_seconds=0)
        store.write_rows([make_row(1, version="later still")])
    assert verify_output(store.storage.uri).ok
    change(store)
    said = r"its last rows were committed at \S+Z, and its name says otherwise"
    (problem, *_) = verify_output(store.storage.uri).problems
    assert re.search(said, problem)
    for read in readers(store, tmp_path).values():
        with pytest.raises(UserError, match=said):
            read()


@pytest.mark.parametrize("merged", [False, True])
def test_a_part_that_is_there_twice_is_neither_merged_nor_exported(
    store: OutputStore, tmp_path: Path, merged: bool
) -> None:
    path = part_of(store)
    content, twin = path.read_bytes(), path.with_name(f"{path.name.rpartition('-')[0]}-0123456789ab.parquet")
    if merged:  # it is put back beside the one that has its rows
        compact(store.storage.uri, keep_seconds=0)
    twin.write_bytes(content)
    assert "videos indexed more than once" in verify_output(store.storage.uri).problems[0]
    for read in (readers(store, tmp_path)[name] for name in ("export", "export --latest", "compact")):
        with pytest.raises(UserError, match="one is a copy of the other, or was merged into it") as told:
            read()
        assert twin.name in str(told.value)
    twin.unlink()
    assert verify_output(store.storage.uri).ok
    assert export(store.storage.uri, "videos", str(tmp_path / "all.parquet")).rows == 16


def test_a_message_about_a_damaged_part_is_one_line(store: OutputStore) -> None:
    path = part_of(store)
    path.write_bytes(path.read_bytes()[100:])
    with pytest.raises(UserError) as told:
        read_status(store.storage.uri)
    assert str(told.value).isprintable()
