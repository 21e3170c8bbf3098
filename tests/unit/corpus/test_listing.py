"""Listing: what is found, under which id and version, and what is said where nothing is."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.config.sections import CorpusConfig
from pipeline.corpus import identity, listing
from pipeline.corpus.entries import PassedOver
from pipeline.corpus.identity import IdSet, id_hash
from pipeline.corpus.listing import corpus_format, list_videos, open_listing, video_id_for
from pipeline.corpus.map_ahead import map_ahead
from pipeline.errors import Reason, UserError
from pipeline.stores.addresses import local_path_of
from tests.web_server import served_folder


def names(uri: str | Path, **options: object) -> list[str]:
    config = CorpusConfig(uri=str(uri), **options)  # type: ignore[arg-type]
    return [ref.uri.rsplit("/", 1)[-1] for ref in list_videos(config)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MP4", "notes.txt", "deep/er/c.mkv", "trash/d.mp4", "empty.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if "empty" in name else name.encode())
    return tmp_path / "videos"


def test_a_folder_is_listed_sorted_and_empty_files_are_inputs(folder: Path) -> None:
    assert names(folder) == ["a.MP4", "b.mp4", "c.mkv", "empty.mp4", "d.mp4"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"exclude": ["trash"]}, ["a.MP4", "b.mp4", "c.mkv", "empty.mp4"]),
        ({"exclude": ["deep/*", "E*"]}, ["a.MP4", "b.mp4", "d.mp4"]),
        ({"include": ["deep/*"]}, ["c.mkv"]),
        ({"include": ["**/*.mp4"]}, ["a.MP4", "b.mp4", "empty.mp4", "d.mp4"]),
        ({"include": ["deep/**/*.mkv", "**/**/b.*"]}, ["b.mp4", "c.mkv"]),
        ({"exclude": ["**/trash", "deep/**/er/"]}, ["a.MP4", "b.mp4", "empty.mp4"]),
        ({"include": ["*.txt", "b.*"]}, ["b.mp4", "notes.txt"]),
        ({"limit": 2}, ["a.MP4", "b.mp4"]),
    ],
)
def test_patterns_and_limit(folder: Path, options: dict[str, object], expected: list[str]) -> None:
    assert names(folder, **options) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", ["b.mp4", "empty.mp4"]),
        ("*.txt", ["notes.txt"]),
        ("*", ["a.MP4", "b.mp4", "empty.mp4"]),
        ("**/*.mkv", ["c.mkv"]),
        ("tr*/[de].mp4", ["d.mp4"]),
        ("notes.txt", ["notes.txt"]),
    ],
)
def test_globs_and_single_files(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(folder / pattern) == expected


def test_a_folder_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "[2024] a*b").mkdir()
    (tmp_path / "[2024] a*b" / "x.mp4").write_bytes(b"x")
    assert names(tmp_path / "[2024] a*b") == ["x.mp4"]


def test_the_same_folder_gives_the_same_ids_however_it_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    spellings = [str(folder), "videos", "./videos/", f"file://{folder}", "deeper/../videos", "link"]
    (tmp_path / "deeper").mkdir()
    listings = [tuple(ref for ref in list_videos(CorpusConfig(uri=uri))) for uri in spellings]
    assert len(set(listings)) == 1
    assert all(ref.uri.startswith("/") and ref.video_id == video_id_for(ref.uri) for ref in listings[0])
    assert video_id_for("videos/b.mp4") == video_id_for(str(folder / "b.mp4"))


def test_ids_are_readable_short_and_distinct(tmp_path: Path) -> None:
    assert video_id_for("/x/Größe & Zeit (1).mp4").startswith("groe-zeit-1-")
    assert video_id_for("/x/🎬.mp4").startswith("video-")
    assert len(video_id_for("/x/" + "long name " * 20 + ".mp4")) <= 40 + 1 + 16
    assert video_id_for("/x/a.mp4") != video_id_for("/y/a.mp4")
    assert video_id_for("s3://b/a.mp4") != video_id_for("s3://c/a.mp4")


@pytest.mark.parametrize("name", ["new\nline.mp4", "🎬 film.mp4", "50% a::b#c?.mp4", "-dash.mp4", " .mp4"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (ref,) = list_videos(CorpusConfig(uri=str(tmp_path)))
    assert local_path_of(ref.uri) == os.path.realpath(tmp_path / name)


def test_a_name_that_is_not_text_still_gives_a_uri_that_is(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    with open(path, "wb") as file:
        file.write(b"x")
    (ref,) = list_videos(CorpusConfig(uri=str(tmp_path)))
    ref.uri.encode()
    assert os.fsencode(local_path_of(ref.uri) or "") == os.fsencode(os.path.realpath(path))


def test_loops_and_dangling_links(folder: Path) -> None:
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    assert names(folder) == ["a.MP4", "b.mp4", "c.mkv", "empty.mp4", "gone.mp4", "d.mp4"]


def test_a_changed_file_has_another_version_and_the_same_id(folder: Path) -> None:
    (before,) = list_videos(CorpusConfig(uri=str(folder / "b.mp4")))
    (folder / "b.mp4").write_bytes(b"other")
    os.utime(folder / "b.mp4", ns=(1, 12345))
    (after,) = list_videos(CorpusConfig(uri=str(folder / "b.mp4")))
    assert before.video_id == after.video_id
    assert before.version != after.version == "5-12345"
    assert after.size_bytes == 5


def test_pipes_are_no_videos(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert names(tmp_path) == ["a.mp4"]


def test_nothing_found_is_explained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file or folder .*missing"):
        names(folder / "missing")
    with pytest.raises(UserError, match=r"6 files, of which 5 match none of .* 1 match corpus.ex"):
        names(folder, include=["*.avi"], exclude=["notes.txt"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="there is no file at all"):
        names(tmp_path / "bare")
    with pytest.raises(UserError, match="no file"):
        names(folder / "*.nothing")


def test_a_folder_of_lists_or_shards_says_how_to_read_them(tmp_path: Path) -> None:
    for name in ("1.csv", "2.jsonl.zst", "0.tar", "notes.txt"):
        (tmp_path / name).write_bytes(b"uri\na.mp4\n")
    said = r"2 look like manifests: .*corpus\.format=manifest; 1 look like tar shards: .*corpus\.format=tar"
    with pytest.raises(UserError, match=said):
        names(tmp_path)


@pytest.mark.parametrize("name", ["list.tsv", "list.json", "videos.zip"])
def test_a_list_that_is_not_read_is_not_taken_for_a_video(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"is no video by its name.*corpus\.format=files"):
        names(tmp_path / name)
    assert names(tmp_path / name, format="files") == [name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_not_passed_over_in_silence(folder: Path) -> None:
    (folder / "deep").chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot list .*exclude"):
            names(folder)
        assert "b.mp4" in names(folder, exclude=["deep"])
    finally:
        (folder / "deep").chmod(0o755)


@pytest.fixture
def store() -> str:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name in ("vid/a.mp4", "vid/b.mp4", "vid/sub/c.webm", "vid/readme.txt", "other/d.mp4"):
        memory.pipe(f"/bucket/{name}", name.encode())
    return "memory://bucket"


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ("", ["a.mp4", "b.mp4", "c.webm", "d.mp4"]),
        ("/vid", ["a.mp4", "b.mp4", "c.webm"]),
        ("/vid/", ["a.mp4", "b.mp4", "c.webm"]),
        ("/vid/a.mp4", ["a.mp4"]),
        ("/vid/*.mp4", ["a.mp4", "b.mp4"]),
        ("/oth", ["d.mp4"]),
    ],
)
def test_object_stores(store: str, below: str, expected: list[str]) -> None:
    assert sorted(names(store + below)) == expected


def test_remote_references_can_be_opened_again(store: str) -> None:
    for ref in list_videos(CorpusConfig(uri=f"{store}/vid")):
        with fsspec.open(ref.uri, "rb") as file:
            assert len(file.read()) == ref.size_bytes
        assert ref.version


def test_remote_mistakes_are_the_users(store: str) -> None:
    with pytest.raises(UserError, match=r"no file at all|nothing there"):
        names(f"{store}/absent/x")
    with pytest.raises(UserError, match="cannot be opened"):
        names("nosuchscheme://bucket/x")
    with pytest.raises(UserError, match="cannot be opened"):
        names("zip://a.mp4::/nowhere.zip")
    assert names(f"{store}/", exclude=["vid"]) == ["d.mp4"]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("videos", "files"),
        ("s3://b/*.MP4", "files"),
        ("s3://b/list.parquet", "manifest"),
        ("gs://b/parts.parquet/", "manifest"),
        ("list.CSV", "manifest"),
        ("https://h/list.jsonl.gz?key=1", "manifest"),
        ("lists/*.ndjson", "manifest"),
        ("s3://b/{0..9}-*.tar", "tar"),
        ("x.tar.gz", "tar"),
        ("x.gz", "files"),
    ],
)
def test_the_format_goes_by_the_suffix(uri: str, expected: str) -> None:
    assert corpus_format(CorpusConfig(uri=uri)) == expected
    assert corpus_format(CorpusConfig(uri=uri, format="files")) == "files"


def test_columns_of_plain_files_are_a_mistake(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"corpus\.columns=\['title'\] are a manifest's.*corpus\.format=manifest"
    ):
        names(folder, columns=["title"])


def test_slices_are_disjoint_and_make_up_the_whole(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number}.mp4").write_bytes(b"x")
    parts = [names(tmp_path, slice=f"{part}/4") for part in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(names(tmp_path))
    assert all(5 < len(part) < 30 for part in parts)
    (tmp_path / "later.mp4").write_bytes(b"x")
    again = [names(tmp_path, slice=f"{part}/4") for part in range(4)]
    assert [[name for name in part if name != "later.mp4"] for part in again] == parts
    assert names(tmp_path, slice="1/4", limit=3) == again[1][:3]


def test_a_slice_may_be_empty_but_a_corpus_may_not(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    listed = [names(tmp_path, slice=f"{part}/50") for part in range(50)]
    assert sorted(map(len, listed)) == [0] * 49 + [1]
    with pytest.raises(UserError, match="match none of"):
        names(tmp_path, slice="0/50", include="*.avi")


def test_sizes_that_are_too_small_are_passed_over_and_too_large_fail(tmp_path: Path) -> None:
    for size in (0, 5, 50):
        (tmp_path / f"{size}.mp4").write_bytes(bytes(size))
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    middle, large, gone = list_videos(CorpusConfig(uri=str(tmp_path), min_video_bytes=5, max_video_bytes=49))
    assert (middle.size_bytes, middle.problem, gone.problem) == (5, None, None)
    assert large.problem is not None
    assert large.problem.reason is Reason.TOO_LARGE
    for said in ("50 bytes", "corpus.max_video_bytes=49", "flashvid heal CONFIG --reason too_large"):
        assert said in large.problem.message
    (tmp_path / "gone.mp4").unlink()
    with pytest.raises(UserError, match=r"3 have fewer bytes than corpus\.min_video_bytes=51"):
        names(tmp_path, min_video_bytes=51)


def test_the_runs_own_output_is_not_listed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    for skip in (folder / "deep", f"file://{folder}/deep", tmp_path / "link" / "deep", f"{folder}/deep/"):
        listed = list(list_videos(CorpusConfig(uri=str(folder)), skip=(str(skip), "s3://b/x")))
        assert len(listed) == 4, skip
    assert len(list(list_videos(CorpusConfig(uri=str(folder)), skip=(str(folder), str(tmp_path))))) == 5


def test_a_folder_that_goes_away_while_listing_is_no_error(folder: Path) -> None:
    listed = list_videos(CorpusConfig(uri=str(folder)))
    first = next(listed)
    (folder / "deep" / "er" / "c.mkv").unlink()
    (folder / "deep" / "er").rmdir()
    (folder / "deep").rmdir()
    assert [Path(ref.uri).name for ref in (first, *listed)] == ["a.MP4", "b.mp4", "empty.mp4", "d.mp4"]


def test_folders_nested_deeper_than_pythons_stack(tmp_path: Path) -> None:
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("a.mp4").write_bytes(b"x")
        assert names(tmp_path) == ["a.mp4"]
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest's own way would recurse


def test_a_plain_glob_does_not_go_into_folders(folder: Path) -> None:
    entered = []

    def is_pruned(relative: str) -> bool:
        entered.append(relative)
        return False

    for pattern, expected in (("*.mp4", []), ("**/*.mp4", ["deep", "deep/er", "trash"])):
        entered.clear()
        list(open_listing(str(folder / pattern), is_pruned).entries(lambda name: True))
        assert entered == expected


def test_the_same_id_twice_names_both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "derived_id", lambda address: "one")
    with pytest.raises(UserError, match=r"a\.MP4' and '.*/b\.mp4' have the same id 'one'"):
        names(folder)


def test_ids_that_only_share_a_hash_are_both_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "id_hash", lambda video_id: 5)
    assert len(names(folder)) == 5


def test_an_id_set_tells_every_number_apart() -> None:
    rng = random.Random(0)
    numbers = [rng.getrandbits(64) for _ in range(5000)]
    dense = [0, *range(2**63, 2**63 + 5000), 2**64 - 1]
    ids, known = IdSet(), set[int]()
    for number in (*numbers, *dense, *numbers[:50], *dense[:50]):
        assert ids.add(number) == (number not in known)
        known.add(number)
    assert len(ids) == len(known)


def test_the_hash_of_an_id_is_the_same_for_ever() -> None:
    assert id_hash("a-0123456789abcdef") == 4128078952455439232
    assert video_id_for("s3://b/a.mp4") == "a-ccb6ee9883834347"
    assert identity.derived_id("s3://b/a.mp4", 0.0, 2.5) == "a-ba9edd94faf4c152"


def test_map_ahead_keeps_the_order_and_does_not_run_far_ahead() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            begun.append(number)
            yield number

    results = map_ahead(lambda number: number * 2, items(), 4)
    assert next(results) == 0
    assert begun == [0]
    assert list(results) == [2 * number for number in range(1, 100)]
    begun.clear()
    results = map_ahead(lambda number: number * 2, items(), 4)
    assert [next(results) for _ in range(20)] == list(range(0, 40, 2))
    assert len(begun) <= 28
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda number: 1 // number, items(), 4))


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    with served_folder(folder) as address:
        yield address


def test_a_web_server_gives_single_files_and_manifests(web: str, folder: Path) -> None:
    (ref,) = list_videos(CorpusConfig(uri=f"{web}/b.mp4?key=a/b"))
    assert (ref.uri, ref.size_bytes) == (f"{web}/b.mp4?key=a/b", 5)
    assert ref.video_id.startswith("b-")
    assert ref.version != "5-0"
    with pytest.raises(UserError, match="there is nothing there"):
        names(f"{web}/absent.mp4")
    (folder / "list.csv").write_text("uri\nb.mp4\ndeep/er/../er/c.mkv\nabsent.mp4\n")
    found = list(list_videos(CorpusConfig(uri=f"{web}/list.csv?key=1")))
    assert [ref.uri for ref in found] == [f"{web}/b.mp4", f"{web}/deep/er/c.mkv", f"{web}/absent.mp4"]
    assert [ref.size_bytes for ref in found] == [5, 13, 0]
    assert found[2].version == "0-0"


def test_a_store_that_is_walked_enters_only_what_is_asked_for(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    listed: list[str] = []
    ls = type(memory).ls

    def spying(self: Any, path: str, **named: Any) -> Any:
        listed.append(path)
        return ls(self, path, **named)

    monkeypatch.setattr(type(memory), "ls", spying)
    for below, expected in (
        ("/vid/*.mp4", ["/bucket/vid"]),
        ("/oth", ["/bucket", "/bucket/other"]),
        ("/vid/**/*.webm", ["/bucket/vid", "/bucket/vid/sub"]),
    ):
        listed.clear()
        assert names(store + below)
        assert listed == expected
    listed.clear()
    assert names(store, exclude=["vid"]) == ["d.mp4"]
    assert list(list_videos(CorpusConfig(uri=store), skip=("memory://bucket/vid",)))
    assert "/bucket/vid" not in listed


APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4000)
MAC: dict[str, bytes] = {
    "._a.mp4": APPLE,
    "._real.mp4": b"ftyp, say",
    "._tiny.mp4": b"\x00\x05",
    "__MACOSX/._b.mp4": APPLE,
    "__MACOSX/c.mp4": APPLE,
    "__MACOSX/real.mp4": b"0123",
    "a.mp4": b"0123",
    "deep/._d.MOV": APPLE,
    "notes/._e.txt": APPLE,
}
MAC_VIDEOS = ["._real.mp4", "._tiny.mp4", "__MACOSX/real.mp4", "a.mp4"]


@pytest.fixture
def mac(tmp_path: Path) -> Path:
    for name, body in MAC.items():
        (tmp_path / "mac" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mac" / name).write_bytes(body)
    return tmp_path / "mac"


def test_apple_double_files_are_passed_over_in_folders(mac: Path) -> None:
    passed = PassedOver()
    found = list_videos(CorpusConfig(uri=str(mac)), passed_over=passed)
    assert sorted(ref.uri.removeprefix(f"{mac}/") for ref in found) == MAC_VIDEOS
    assert passed == PassedOver(not_videos=4)


def test_apple_double_files_are_passed_over_on_a_store(mac: Path) -> None:
    with served_folder(mac) as address:
        passed = PassedOver()
        found = list_videos(CorpusConfig(uri=f"{address}/"), passed_over=passed)
        assert sorted(ref.uri.removeprefix(f"{address}/") for ref in found) == MAC_VIDEOS
        assert passed == PassedOver(not_videos=4)
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/mac/{name}": body for name, body in MAC.items()})
    try:
        passed = PassedOver()
        found = list_videos(CorpusConfig(uri="memory://mac"), passed_over=passed)
        assert sorted(ref.uri.removeprefix("memory:///mac/") for ref in found) == MAC_VIDEOS
        assert passed == PassedOver(not_videos=4)
    finally:
        memory.rm("/mac", recursive=True)


def test_an_apple_double_manifest_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "._a.csv").write_bytes(APPLE)
    (tmp_path / "a.csv").write_text("uri\nb.mp4\n._a.mp4\n")
    (tmp_path / "._a.mp4").write_bytes(APPLE)
    passed = PassedOver()
    listed = list_videos(CorpusConfig(uri=str(tmp_path), format="manifest"), passed_over=passed)
    assert [ref.uri.rsplit("/", 1)[-1] for ref in listed] == ["b.mp4", "._a.mp4"], "what a row names is meant"
    assert passed == PassedOver(not_videos=1)


def test_nothing_but_apple_double_files_is_explained(tmp_path: Path) -> None:
    (tmp_path / "._a.mp4").write_bytes(APPLE)
    for uri in (tmp_path, tmp_path / "._a.mp4"):
        with pytest.raises(UserError, match="1 files, of which 1 are AppleDouble files"):
            next(list_videos(CorpusConfig(uri=str(uri))))
