"""Folders and globs on a web server, by way of its directory pages."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.config.sections import CorpusConfig
from pipeline.corpus.listing import list_videos
from pipeline.errors import Reason, UserError
from pipeline.records import VideoRef
from pipeline.stores import inputs
from tests.web_server import served, served_folder

FILES = ("a.MP4", "b.mp4", "notes.txt", "deep/er/c.mkv", "trash/d.mp4", "odd/é & 50%#[1] ?.mp4")


def refs(uri: str, **options: Any) -> list[VideoRef]:
    return list(list_videos(CorpusConfig(uri=uri, **options)))


class _Page(BaseHTTPRequestHandler):
    """One page for every folder, with the links that servers put there; every file has 3 bytes."""

    page = ""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        is_page = self.path.endswith("/")
        body = self.page.encode() if is_page else b"abc"
        self.send_response(500 if "broken" in self.path else 200)
        self.send_header("Content-Type", "text/html" if is_page else "video/mp4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    with served_folder(tmp_path) as address:
        yield address


@pytest.fixture
def page() -> Iterator[str]:
    with served(_Page) as address:
        yield address


@pytest.mark.parametrize(
    ("below", "options", "expected"),
    [
        ("", {}, [0, 1, 3, 5, 4]),
        ("/", {}, [0, 1, 3, 5, 4]),
        ("/deep", {}, [3]),
        ("/deep/er/", {}, [3]),
        ("/*.mp4", {}, [1]),
        ("/**/*.mp4", {}, [1, 5, 4]),
        ("/*/[a-d].mp4", {}, [4]),
        ("/", {"exclude": ["trash", "*50%*"]}, [0, 1, 3]),
        ("/", {"include": ["*.txt"]}, [2]),
        ("/", {"limit": 2}, [0, 1]),
    ],
)
def test_folders_and_globs(web: str, below: str, options: dict[str, Any], expected: list[int]) -> None:
    found = refs(f"{web}{below}", **options)
    bodies = [fsspec.open(ref.uri, "rb").open().read().decode() for ref in found]
    assert bodies == [FILES[number] for number in expected]
    assert [ref.size_bytes for ref in found] == [len(body.encode()) for body in bodies]
    assert all(ref.version.endswith("GMT") for ref in found)


def test_ids_are_those_of_the_single_files(web: str) -> None:
    for ref in refs(web):
        assert refs(ref.uri) == [ref]


def test_other_links_of_a_page_are_passed_over(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    links = ("?C=N;O=D", "../", "/", "/up/x.mp4", "http://127.0.0.1:9/y.mp4", "a.mp4?raw", "#top", "b.mp4")
    monkeypatch.setattr(_Page, "page", "".join(f'<a href="{link}">x</a>' for link in (*links, "b.mp4")))
    assert [ref.uri for ref in refs(f"{page}/v/")] == [f"{page}/v/b.mp4"]


def test_a_file_that_the_server_fails_at_is_one_failure(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_LOOK_UP_SECONDS", 0.0)
    for suffix in ("mp4", "tar"):
        names = [f"{name}.{suffix}" for name in ("a", "broken", "c")]
        links = "".join(f'<a href="{name}">x</a>' for name in names)
        monkeypatch.setattr(_Page, "page", links)
        found = refs(f"{page}/v/", format="tar" if suffix == "tar" else "auto")
        assert [ref.uri for ref in found] == [f"{page}/v/{name}" for name in names]
        problem = found[1].problem
        assert problem is not None
        assert (problem.reason, found[1].version) == (Reason.READ_ERROR, "0-0")
        assert "cannot be looked up" in problem.message


def test_a_page_without_files_says_what_to_do(page: str) -> None:
    with pytest.raises(UserError, match=r"shows no list of its files there; .*give a manifest"):
        refs(f"{page}/v/")


def test_folders_without_end_are_refused(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Page, "page", '<a href="again/">x</a>')
    monkeypatch.setattr("pipeline.corpus.web.MAX_DEPTH", 5)
    with pytest.raises(UserError, match=r"again/' is too deep; does a link lead back\?"):
        refs(f"{page}/v/")
