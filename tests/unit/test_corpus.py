"""Listing: what is found, under which id and version, and what is said where nothing is."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from pipeline.config import CorpusConfig
from pipeline.corpus import list_videos, video_id_for
from pipeline.corpus_walk import local_path_of
from pipeline.errors import UserError


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
    assert names(f"{store}/", exclude=["vid"]) == ["d.mp4"]
