"""Listing on S3: in pages, by range, and with no request more than is needed. The server counts."""

from __future__ import annotations

import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import fsspec
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from pipeline.config.sections import CorpusConfig
from pipeline.corpus.listing import list_videos
from pipeline.errors import Reason, UserError, VideoError
from pipeline.records import VideoRef
from pipeline.stores.inputs import open_store
from pipeline.stores.spooling import Spool

BUCKET = "films"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class Traffic:
    """What the server was asked for, and how many bytes of bodies it sent."""

    num_bytes: int = 0
    requests: list[str] = field(default_factory=list)

    def forget(self) -> None:
        self.num_bytes, self.requests = 0, []

    def count(self, pattern: str) -> int:
        return sum(re.search(pattern, request) is not None for request in self.requests)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Traffic]]:
    traffic = Traffic()
    app = DomainDispatcherApplication(create_backend_app)

    def counting(environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes]:
        traffic.requests.append(
            f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        )
        for part in app(environ, start):
            traffic.num_bytes += len(part)
            yield part

    running = make_server("127.0.0.1", 0, counting, threaded=True)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", traffic
    running.shutdown()
    thread.join()


@pytest.fixture
def s3(server: tuple[str, Traffic], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client, on a fresh bucket; s3fs finds the server by the usual environment."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server[0]}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    urlopen(Request(f"{server[0]}/moto-api/reset", method="POST")).close()
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    server[1].forget()
    return client


def put(s3: Any, *keys: str, body: bytes = b"x") -> None:
    for key in keys:
        s3.put_object(Bucket=BUCKET, Key=key, Body=body)


def refs(uri: str, **options: Any) -> list[VideoRef]:
    return list(list_videos(CorpusConfig(uri=uri, **options)))


def names(uri: str, **options: Any) -> list[str]:
    return [ref.uri.removeprefix("s3://films/") for ref in refs(uri, **options)]


def test_a_prefix_is_listed_page_by_page(
    s3: Any, server: tuple[str, Traffic], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, *(f"v/{number:02}/a.mp4" for number in range(12)), "v/notes.txt", "w/a.mp4")
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    server[1].forget()
    assert names("s3://films/v") == [f"v/{number:02}/a.mp4" for number in range(12)]
    assert server[1].count("continuation-token") == 2, "13 keys in pages of 5, whatever the folders"
    assert not any(store.dircache for store in type(fsspec.filesystem("s3"))._cache.values())


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ("", ["v/a.mp4", "v/deep/c.mkv", "v/🎬 é.mp4", "video.mp4"]),
        ("/v/", ["v/a.mp4", "v/deep/c.mkv", "v/🎬 é.mp4"]),
        ("/v", ["v/a.mp4", "v/deep/c.mkv", "v/🎬 é.mp4"]),
        ("/vi", ["video.mp4"]),
        ("/v/a.mp4", ["v/a.mp4"]),
        ("/v/*.mp4", ["v/a.mp4", "v/🎬 é.mp4"]),
        ("/v/**/*.mkv", ["v/deep/c.mkv"]),
        ("/v*/[a-c].m*", ["v/a.mp4"]),
    ],
)
def test_folders_prefixes_files_and_globs(s3: Any, below: str, expected: list[str]) -> None:
    put(s3, "v/a.mp4", "v/deep/c.mkv", "v/🎬 é.mp4", "v/x.txt", "video.mp4")
    put(s3, "v/", body=b"")  # what consoles make for a folder
    assert names(f"s3://films{below}") == expected


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ("/v/", ["v//a.mp4", "v//deep/b.mp4", "v/c.mp4"]),
        ("/v//", ["v//a.mp4", "v//deep/b.mp4"]),
        ("/v///", []),
        ("//", ["/d.mp4"]),
        ("/v//*.mp4", ["v//a.mp4"]),
        ("/v//**/*.mp4", ["v//a.mp4", "v//deep/b.mp4"]),
    ],
)
def test_a_slash_more_is_another_prefix(s3: Any, below: str, expected: list[str]) -> None:
    put(s3, "v//a.mp4", "v//deep/b.mp4", "v/c.mp4", "/d.mp4")
    if not expected:
        with pytest.raises(UserError, match="there is no file at all"):
            names(f"s3://films{below}")
        return
    assert names(f"s3://films{below}") == expected
    assert names(f"s3://films{below}", exclude=["deep"]) == [key for key in expected if "deep" not in key]


def test_a_key_that_ends_in_a_slash_is_itself(s3: Any, tmp_path: Path) -> None:
    """Not the object without the slash, whatever the client makes of it."""
    put(s3, "v/a.mp4", body=b"without")
    put(s3, "v/a.mp4/", "v/a.mp4//", body=b"with a slash")
    put(s3, "v/empty/", "v/full/b.mp4", body=b"")
    keys = ["v/a.mp4/", "v/a.mp4//", "v/a.mp4", "v/none.mp4/", "v/full/", "v/empty/"]
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"s3://films/{key}\n" for key in keys))
    slashed, twice, plain, gone, folder, marker = refs(str(tmp_path / "m.csv"))
    assert [slashed.size_bytes, twice.size_bytes, plain.size_bytes] == [12, 12, 7]
    assert len({slashed.version, plain.version}) == len({slashed.video_id, plain.video_id}) == 2
    assert (gone.version, gone.problem) == ("0-0", None)
    assert folder.problem is not None
    assert "is a folder" in folder.problem.message
    assert (marker.size_bytes, marker.problem) == (0, None), "who names it means it"
    with closing(Spool(str(tmp_path), 10.0, 2**30)) as spool:
        for ref, wanted in ((slashed, b"with a slash"), (plain, b"without")):
            with spool.local_file(ref) as path:
                assert Path(path).read_bytes() == wanted
        with pytest.raises(VideoError) as error, spool.local_file(gone):
            pass
    assert error.value.reason is Reason.NOT_FOUND
    assert names("s3://films/v/") == ["v/a.mp4", "v/a.mp4/", "v/a.mp4//", "v/full/b.mp4"]
    assert names("s3://films/v/a.mp4/") == ["v/a.mp4/", "v/a.mp4//"], "the key itself, and what is below it"
    assert names("s3://films/v/a.mp4") == ["v/a.mp4"]


def test_a_glob_asks_for_no_more_than_its_beginning(s3: Any, server: tuple[str, Traffic]) -> None:
    put(s3, "v/clip_1.mp4", "v/clip_2/deep.mp4", "v/other.mp4")
    server[1].forget()
    assert names("s3://films/v/clip_*.mp4") == ["v/clip_1.mp4"]
    assert server[1].count("prefix=v%2Fclip_&delimiter=%2F&enc") == 1


def test_the_runs_own_output_is_not_listed(s3: Any) -> None:
    put(s3, "v/a.mp4", "v/out/videos/b.mp4", "v/outer.mp4")
    config = CorpusConfig(uri="s3://films/v")
    listed = list_videos(config, skip=("s3://films/v/out", "s3://elsewhere/v", "/v"))
    assert [ref.uri for ref in listed] == ["s3://films/v/a.mp4", "s3://films/v/outer.mp4"]
    whole = list_videos(config, skip=("s3://films/v/",))
    assert len(list(whole)) == 3, "a corpus that is the output folder is listed all the same"


def test_nothing_there_is_the_users_mistake(s3: Any) -> None:
    put(s3, "v/a.txt")
    with pytest.raises(UserError, match="there is no file at all"):
        refs("s3://films/absent")
    with pytest.raises(UserError, match=r"1 match none of corpus\.include"):
        refs("s3://films/v")
    with pytest.raises(UserError, match="there is nothing there"):
        refs("s3://nosuchbucket/v")
    with pytest.raises(UserError, match="name one bucket"):
        refs("s3://fil*/v")


def test_a_manifest_gives_the_ids_and_versions_that_the_listing_gives(
    s3: Any, server: tuple[str, Traffic]
) -> None:
    put(s3, *(f"v/{number}.mp4" for number in range(40)), body=b"video")
    rows = [f"{number}.mp4" for number in range(40)] + ["../v/../w/gone.mp4", "s3://denied-bucket/x.mp4"]
    put(s3, "v/list.csv", body="\n".join(["uri", *rows]).encode())
    server[1].forget()
    found = refs("s3://films/v/list.csv")
    assert server[1].count("^HEAD /films/v/[0-9]+") == 40
    assert sorted(found[:40], key=lambda ref: ref.uri) == refs("s3://films/v")
    assert [ref.uri for ref in found[:40]] == [f"s3://films/v/{number}.mp4" for number in range(40)]
    gone, denied = found[40:]
    assert (gone.uri, gone.version, gone.problem) == ("s3://films/w/gone.mp4", "0-0", None)
    assert (denied.version, denied.problem) == ("0-0", None)


def test_versions_in_the_manifest_save_every_look(s3: Any, server: tuple[str, Traffic]) -> None:
    put(s3, "list.jsonl", body=b'{"uri": "a.mp4", "version": 7}\n{"uri": "b.mp4", "version": "x"}\n')
    server[1].forget()
    assert [(ref.uri, ref.version) for ref in refs("s3://films/list.jsonl")] == [
        ("s3://films/a.mp4", "7"),
        ("s3://films/b.mp4", "x"),
    ]
    assert server[1].count("mp4") == 0


def test_two_colons_are_a_part_of_a_key(s3: Any) -> None:
    put(s3, "v/a", body=b"wrong")
    put(s3, "v/a::b.mp4", body=b"right")
    (ref,) = refs("s3a://films/v")
    assert (ref.uri, refs("s3://films/v/a::b.mp4")) == ("s3://films/v/a::b.mp4", [ref])
    store, path = open_store(ref.uri)
    assert store.cat_file(path) == b"right"


def test_a_question_mark_is_a_part_of_a_key(s3: Any) -> None:
    put(s3, "what?/list.csv", body=b"uri\n../v/a.mp4\n")
    put(s3, "v/a.mp4")
    assert names("s3://films/what?/list.csv") == ["v/a.mp4"]


def test_a_member_of_a_shard_that_was_replaced_is_not_read(s3: Any, tmp_path: Path) -> None:
    put(s3, "0.tar", body=shard(2, 1000))
    first, second = refs("s3://films/0.tar")
    spool = Spool(str(tmp_path), 10.0, 2**30)
    with spool.local_file(first) as path:
        assert Path(path).read_bytes() == bytes(1000)
    put(s3, "0.tar", body=shard(2, 1001))
    with pytest.raises(VideoError, match="changed since it was listed"), spool.local_file(second):
        pass
    spool.close()


class Cache:
    """An IndexCache in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def put(self, name: str, data: bytes) -> None:
        self.kept[name] = data


def shard(num_members: int, num_bytes: int) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(num_members):
            name = f"{number:03}.mp4" if number % 2 else f"{'long/' * 30}{number:03}é.mp4"
            member = tarfile.TarInfo(name)
            member.size = num_bytes + number
            archive.addfile(member, io.BytesIO(bytes([number]) * member.size))
    return target.getvalue()


def test_a_shard_is_read_by_range_and_hardly_more_than_its_members(
    s3: Any, server: tuple[str, Traffic]
) -> None:
    put(s3, "shards/0.tar", body=shard(40, 50_000))
    server[1].forget()
    found = refs("s3://films/shards/*.tar")
    index_bytes = server[1].num_bytes
    assert len(found) == 40
    store = fsspec.filesystem("s3")
    for number, ref in enumerate(found):
        assert ref.offset is not None
        assert ref.num_bytes is not None
        body = store.cat_file(ref.archive, start=ref.offset, end=ref.offset + ref.num_bytes)
        assert body == bytes([number]) * (50_000 + number)
    members = sum(ref.size_bytes for ref in found)
    assert server[1].num_bytes <= 1.2 * members
    assert index_bytes <= 0.08 * members
    assert server[1].count(r"^GET /films/shards/0\.tar") >= 80


def test_a_kept_index_saves_every_byte_of_the_shard(s3: Any, server: tuple[str, Traffic]) -> None:
    put(s3, "0.tar", "1.tar", body=shard(3, 100))
    cache = Cache()
    config = CorpusConfig(uri="s3://films/", format="tar")
    first = list(list_videos(config, index_cache=cache))
    assert (len(first), len(cache.kept)) == (6, 2)
    server[1].forget()
    assert list(list_videos(config, index_cache=cache)) == first
    assert server[1].count(r"\.tar") == 0
    put(s3, "1.tar", body=shard(2, 100))
    assert len(list(list_videos(config, index_cache=cache))) == 5, "another version has another index"


def test_a_shard_that_went_away_is_one_failure(s3: Any) -> None:
    put(s3, "0.tar", "1.tar", "2.tar", body=shard(2, 100))
    listed = list_videos(CorpusConfig(uri="s3://films/*.tar"))
    first = next(listed)
    s3.delete_object(Bucket=BUCKET, Key="1.tar")
    rest = list(listed)
    assert [ref.uri.rpartition("::")[2] for ref in (first, *rest)] == [
        *["s3://films/0.tar"] * 2,
        "s3://films/1.tar",
        *["s3://films/2.tar"] * 2,
    ]
    assert [ref.problem and ref.problem.reason for ref in rest] == [None, Reason.NOT_FOUND, None, None]
