"""What stores answer, and what is made of it: reasons, versions, names, contents that change while read."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import tarfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from pipeline.config.sections import CorpusConfig
from pipeline.corpus.listing import list_videos, video_id_for
from pipeline.corpus.remote import _account_in
from pipeline.errors import Reason, UserError, VideoError
from pipeline.records import VideoRef
from pipeline.stores import downloads, inputs
from pipeline.stores.addresses import canonical_uri, local_path_of
from pipeline.stores.inputs import Hosts, content_version, open_store, plain_error, reason_of
from pipeline.stores.retrying import is_passing
from pipeline.stores.spooling import Spool
from tests.web_server import served


def refs(uri: Path | str, **options: Any) -> list[VideoRef]:
    return list(list_videos(CorpusConfig(uri=str(uri), **options)))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(str(tmp_path / "cache"), 10.0, 2**30)
    yield made
    made.close()


def read(spool: Spool, ref: VideoRef) -> bytes:
    with spool.local_file(ref) as path:
        return Path(path).read_bytes()


class _Server(BaseHTTPRequestHandler):
    """/STATUS/name has that status; /busy/name none at all as often as ``busy`` says."""

    protocol_version = "HTTP/1.1"
    body: ClassVar[bytes] = b"video"
    etag: ClassVar[str | None] = '"first"'
    busy: ClassVar[int] = 0
    then: ClassVar[bytes | None] = None  # what the body is from the second range on

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        how = self.path.split("/")[1]
        status = int(how) if how.isdigit() else 200
        if how == "busy" and _Server.busy > 0:
            _Server.busy -= 1
            self.close_connection = True
            return
        body = self.body if status == 200 else b""
        wanted = self.headers.get("Range")
        if wanted and status == 200:
            first, last = wanted.removeprefix("bytes=").split("-")
            status, body = 206, body[int(first) : int(last) + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.etag is not None:
            self.send_header("ETag", self.etag)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if with_body:
            self.wfile.write(body)
            if _Server.then is not None:
                _Server.body, _Server.etag, _Server.then = _Server.then, '"second"', None


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("body", "etag", "busy", "then"):
        monkeypatch.setattr(_Server, name, getattr(_Server, name))
    with served(_Server) as address:
        yield address


def manifest(folder: Path, *uris: str) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join(["uri", *uris]) + "\n")
    return path


@pytest.mark.parametrize("status", [401, 403])
def test_a_web_server_that_refuses_is_not_said_to_have_nothing(web: str, status: int) -> None:
    with pytest.raises(UserError, match=f"may not be listed: .*{status}.*credentials"):
        refs(f"{web}/{status}/a.mp4")


def test_a_web_server_that_hangs_up_is_asked_again(web: str) -> None:
    _Server.busy = 5
    (ref,) = refs(f"{web}/busy/a.mp4")
    assert (ref.version, ref.size_bytes, _Server.busy) == ("first", 5, 0)


def test_a_row_whose_server_is_down_fails_and_is_not_taken_for_a_version(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_LOOK_UP_SECONDS", 0.0)
    urls = [f"{web}/200/a.mp4", f"{web}/503/a.mp4", "http://127.0.0.1:9/a.mp4", f"{web}/404/a.mp4"]
    found = refs(manifest(tmp_path, *urls))
    down = Reason.READ_ERROR
    assert [ref.problem and ref.problem.reason for ref in found] == [None, down, down, None]
    assert [ref.version for ref in found] == ["first", "0-0", "0-0", "0-0"]


def test_rows_of_a_dead_host_cost_a_few_tries_however_many_they_are(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    begin = inputs._is_unreached
    monkeypatch.setattr(inputs, "_is_unreached", lambda error: tries.append(error) or begin(error))
    dead = [f"http://127.0.0.1:9/{number}.mp4" for number in range(2000)]
    found = refs(manifest(tmp_path, *dead, f"{web}/200/a.mp4"))
    assert {ref.problem and ref.problem.reason for ref in found[:-1]} == {Reason.READ_ERROR}
    assert {ref.version for ref in found[:-1]} == {"0-0"}
    assert (found[-1].version, found[-1].problem) == ("first", None)
    assert len(tries) < 100


def test_a_host_that_is_back_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_FIRST_PAUSE_SECONDS", 0.0)
    calls: list[str] = []

    def info(path: str) -> str:
        calls.append(path)
        if len(calls) <= 5:
            raise ConnectionRefusedError("nobody")
        return "here"

    hosts = Hosts()
    answer = None
    while answer is None:
        with contextlib.suppress(ConnectionError):
            answer = hosts.ask("http://a/x.mp4", info, "x")
        time.sleep(0.001)
    assert (answer, len(calls)) == ("here", 6)


def test_a_host_with_many_broken_files_is_retried_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[float] = []

    def ask_store(method: Any, *arguments: Any, seconds: float) -> Any:
        allowed.append(seconds)
        return method(*arguments)

    def info(path: str) -> str:
        raise _StatusCodeError(503)

    monkeypatch.setattr(inputs, "ask_store", ask_store)
    hosts = Hosts()
    for number in range(100):
        with pytest.raises(_StatusCodeError):
            hosts.ask("http://a/x.mp4", info, str(number))
    assert allowed[0] == 20.0
    assert sum(allowed) < 120.0


def test_a_row_that_may_not_be_looked_at_is_left_to_who_reads_it(
    web: str, tmp_path: Path, spool: Spool
) -> None:
    (ref,) = refs(manifest(tmp_path, f"{web}/403/a.mp4"))
    assert ref.problem is None
    with pytest.raises(VideoError, match="403") as refused:
        read(spool, ref)
    assert refused.value.reason is Reason.ACCESS_DENIED


class _CodeError(Exception):
    """As gcsfs' errors are."""

    def __init__(self, code: int) -> None:
        super().__init__("no")
        self.code = code


class _StatusCodeError(Exception):
    """As azure's errors are."""

    def __init__(self, status_code: int) -> None:
        super().__init__("no")
        self.status_code = status_code


class _AnswerError(OSError):
    """As the hub's errors are."""

    def __init__(self, status_code: int) -> None:
        super().__init__("no")
        self.response = _StatusCodeError(status_code)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (_CodeError(429), True),
        (_StatusCodeError(503), True),
        (_AnswerError(503), True),
        (_AnswerError(403), False),
        (OSError("Forbidden: b/films/o/a.mp4"), False),
    ],
)
def test_every_clients_error_is_tried_again_by_its_status(error: Exception, passes: bool) -> None:
    assert is_passing(error) is passes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (_AnswerError(404), Reason.NOT_FOUND),
        (_CodeError(401), Reason.ACCESS_DENIED),
        (_CodeError(410), Reason.NOT_FOUND),
        (_CodeError(503), Reason.READ_ERROR),
        (_StatusCodeError(403), Reason.ACCESS_DENIED),
        (_StatusCodeError(404), Reason.NOT_FOUND),
        (OSError("Forbidden: b/films/o/a.mp4"), Reason.ACCESS_DENIED),
        (OSError("Forbidden fruit.mp4"), Reason.READ_ERROR),
        (FileNotFoundError("a"), Reason.NOT_FOUND),
        (PermissionError("a"), Reason.ACCESS_DENIED),
        (TimeoutError("a"), Reason.READ_ERROR),
    ],
)
def test_every_clients_error_has_its_reason(error: Exception, reason: Reason) -> None:
    assert reason_of(error) is reason
    kind = {Reason.NOT_FOUND: FileNotFoundError, Reason.ACCESS_DENIED: PermissionError}.get(reason)
    plain = plain_error(error)
    assert plain is error or (kind is not None and type(plain) is kind and plain.__cause__ is error)


def test_a_file_of_the_hub_has_another_version_once_its_content_differs() -> None:
    versions = [content_version({"size": 5, "lfs": None, "blob_id": blob}, 5) for blob in ("aa", "bb")]
    assert versions == ["aa", "bb"]


def test_an_index_is_not_kept_where_the_store_tells_no_versions(web: str) -> None:
    _Server.etag, _Server.body = None, tar("a.mp4")
    kept: dict[str, bytes] = {}

    class Cache:
        get = staticmethod(kept.get)
        put = staticmethod(kept.__setitem__)

    config = CorpusConfig(uri=f"{web}/200/0.tar")
    assert len(list(list_videos(config, index_cache=Cache()))) == 1
    assert not kept
    _Server.etag = '"now"'
    assert len(list(list_videos(config, index_cache=Cache()))) == 1
    assert len(kept) == 1


def tar(*names: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3000
            archive.addfile(info, io.BytesIO(name.encode() * 600))
    return target.getvalue()


def test_a_member_of_a_shard_that_was_replaced_is_not_read(tmp_path: Path, spool: Spool) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(tar("1.mp4", "2.mp4"))
    first, second = refs(path, manifest={"id_column": "id"})
    assert read(spool, first) == b"1.mp4" * 600
    path.write_bytes(tar("x.mp4", "y.mp4"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(VideoError, match="changed since it was listed") as refused:
        read(spool, second)
    assert refused.value.reason is Reason.READ_ERROR


def test_a_member_of_a_remote_shard_that_was_replaced_is_not_read(web: str, spool: Spool) -> None:
    _Server.body = tar("1.mp4")
    (ref,) = refs(f"{web}/200/0.tar")
    assert read(spool, ref) == b"1.mp4" * 600
    _Server.body, _Server.etag = tar("x.mp4"), '"second"'
    with pytest.raises(VideoError, match="changed since it was listed"):
        read(spool, ref)


def test_a_copy_is_not_put_together_from_two_contents(
    web: str, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 1000)
    _Server.body = b"a" * 3000
    (ref,) = refs(f"{web}/200/a.mp4")
    assert read(spool, ref) == b"a" * 3000
    _Server.then = b"b" * 3000
    with pytest.raises(VideoError, match="changed since it was listed"):
        read(spool, ref)


@pytest.mark.parametrize("name", ["ETag", "Last-Modified"])
def test_a_server_that_names_another_version_each_time_is_read_without_them(
    web: str, spool: Spool, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 1000)
    number = itertools.count()
    send = _Server.send_header

    def send_header(self: Any, keyword: str, value: str) -> None:
        if keyword == "ETag":
            keyword, value = name, f'"{next(number)}"'
        send(self, keyword, value)

    monkeypatch.setattr(_Server, "send_header", send_header)
    _Server.body = b"a" * 3000
    (whole,) = refs(f"{web}/200/a.mp4")
    assert read(spool, whole) == b"a" * 3000
    _Server.body = tar("1.mp4")
    (member,) = refs(f"{web}/200/0.tar")
    assert read(spool, member) == b"1.mp4" * 600


@pytest.fixture
def memory() -> Any:
    store = fsspec.filesystem("memory")
    store.store.clear()
    return store


def test_two_colons_are_a_part_of_a_name(memory: Any, spool: Spool) -> None:
    memory.pipe("/bucket/a", b"wrong")
    memory.pipe("/bucket/a::b.mp4", b"right")
    (ref,) = refs("memory://bucket/")
    assert read(spool, ref) == b"right"


def test_two_colons_in_a_local_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a::b.mp4", "b.mp4"):
        Path(name).write_bytes(b"x")
    (ref,) = refs("a::b.mp4")
    assert ref.uri == os.path.realpath("a::b.mp4")


@pytest.mark.parametrize(
    "uri",
    ["simplecache::memory://bucket/v", "filecache::/videos", "zip://*.mp4::/x.zip.d", "a::memory://bucket/v"],
)
def test_a_store_upon_a_store_is_refused(uri: str) -> None:
    assert local_path_of(uri) is None
    with pytest.raises(ValueError, match="name the store itself"):
        open_store(uri)
    with pytest.raises(UserError, match=r"cannot be opened: .*name the store itself"):
        refs(uri)


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="the filesystem is there")
def test_a_filesystem_that_is_not_installed_is_named_with_its_extra() -> None:
    with pytest.raises(UserError, match=r'cannot be opened: .*pip install -e "\.\[gcs\]" in the clone'):
        refs("gs://bucket/videos")


@pytest.mark.parametrize(
    ("spelling", "usual"),
    [
        ("s3a://b/a.mp4", "s3://b/a.mp4"),
        ("gcs://b/a.mp4", "gs://b/a.mp4"),
        ("abfs://c/a.mp4", "az://c/a.mp4"),
        ("abfss://c@n.dfs.core.windows.net/a.mp4", "az://c@n.dfs.core.windows.net/a.mp4"),
    ],
)
def test_a_store_with_two_names_gives_one_id(spelling: str, usual: str, tmp_path: Path) -> None:
    assert canonical_uri(spelling) == canonical_uri(usual) == usual
    assert video_id_for(spelling) == video_id_for(usual)
    path = tmp_path / "list.csv"
    path.write_text(f"uri,version\n{spelling},1\n")
    (ref,) = refs(path)
    assert (ref.uri, ref.video_id) == (usual, video_id_for(usual))


def test_a_place_with_a_nul_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="no place has a NUL"):
        refs("videos\0")


def test_this_machine_may_be_named_in_a_file_uri(tmp_path: Path) -> None:
    (tmp_path / "50%.mp4").write_bytes(b"x")
    assert refs(f"file://localhost{tmp_path}") == refs(tmp_path)


def test_an_account_named_in_the_address_stays_in_it() -> None:
    known = _account_in("abfss://films@name.dfs.core.windows.net/v")
    assert known == ("az://films/", "az://films@name.dfs.core.windows.net/")
    assert _account_in("az://films/v@2") is _account_in("hf://datasets/a/b@main/v") is None
