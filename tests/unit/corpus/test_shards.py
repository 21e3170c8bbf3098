"""Tar shards: members found by their headers alone, whoever wrote them, and however they are damaged."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.sections import CorpusConfig
from pipeline.corpus.entries import PassedOver
from pipeline.corpus.listing import list_videos, video_id_for
from pipeline.corpus.shard_index import build_index
from pipeline.corpus.shards import member_uri
from pipeline.corpus.tar_headers import RangeReader, read_members
from pipeline.errors import Reason, UserError
from pipeline.records import Question, VideoRef
from tests.web_server import served

BODY = b"0123456789" * 70  # neither a block nor a multiple of one


def tar(members: Mapping[str, bytes | tarfile.TarInfo], format: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format) as archive:
        for name, body in members.items():
            if isinstance(body, tarfile.TarInfo):
                archive.addfile(body)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return target.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.devmajor, info.devminor = kind, target, 1, 3
    return info


def refs(uri: Path | str, **options: Any) -> list[VideoRef]:
    return list(list_videos(CorpusConfig(uri=str(uri), **options)))


def names(found: list[VideoRef]) -> list[str]:
    return [ref.uri.removeprefix("tar://").partition("::")[0] for ref in found if ref.archive]


def reasons(found: list[VideoRef]) -> list[Reason | None]:
    return [ref.problem and ref.problem.reason for ref in found]


def body(ref: VideoRef) -> bytes:
    assert ref.archive is not None
    assert ref.offset is not None
    assert ref.num_bytes is not None
    return Path(ref.archive).read_bytes()[ref.offset : ref.offset + ref.num_bytes]


LONG = "a long folder name/" * 12


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_where_they_are(tmp_path: Path, format: int) -> None:
    wanted = {
        "a.mp4": BODY,
        "empty.mp4": b"",
        "deep/er/b.MKV": BODY[:512],
        "new\nline 🎬.mp4": BODY[1:],
        ("folder/" * 20 if format == tarfile.USTAR_FORMAT else LONG) + "c.webm": BODY[2:],
    }
    (tmp_path / "0.tar").write_bytes(tar({"readme.txt": BODY, **wanted, "z.json": b"{}"}, format))
    found = refs(tmp_path / "0.tar")
    assert [body(ref) for ref in found] == list(wanted.values())
    assert names(found) == [name.replace("\n", "%0A") for name in wanted]
    assert [ref.size_bytes for ref in found] == [len(each) for each in wanted.values()]
    assert all(ref.video_id == video_id_for(ref.uri) and ref.problem is None for ref in found)
    assert found[2].video_id.startswith("b-")
    path = os.path.realpath(tmp_path / "0.tar")
    assert {ref.archive for ref in found} == {path}
    assert {ref.version for ref in found} == {f"{os.path.getsize(path)}-{os.stat(path).st_mtime_ns}"}


def test_what_the_tar_command_writes_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.mp4", "x" * 180 + ".mp4", "b.mp4"):
        (folder / name).write_bytes(name.encode() * 40)
    os.link(folder / "a.mp4", folder / "zz.mp4")
    for format in ("gnu", "pax", "ustar", "v7"):
        inputs = sorted(os.listdir(folder))[: None if format in ("gnu", "pax") else 2]
        path = tmp_path / f"{format}.tar"
        subprocess.run(["tar", f"--format={format}", "-cf", path, *inputs], cwd=folder, check=True)
        found = refs(path)
        assert names(found) == [name for name in inputs if name != "zz.mp4"]
        assert all(body(ref) == name.encode() * 40 for ref, name in zip(found, names(found), strict=True))


def test_only_headers_are_read() -> None:
    data = tar({f"{number}.mp4": bytes(20_000) for number in range(50)})
    asked: list[int] = []

    def fetch(offset: int, length: int) -> bytes:
        asked.append(length)
        return data[offset : offset + length]

    assert len(list(read_members(RangeReader(fetch, len(data))))) == 50
    assert sum(asked) <= 51 * 2048 + 20_480


def test_links_folders_and_devices_are_no_videos(tmp_path: Path) -> None:
    kinds = {"l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "d": tarfile.DIRTYPE, "c": tarfile.CHRTYPE}
    members = {f"{name}.mp4": special(f"{name}.mp4", kind, "/etc/passwd") for name, kind in kinds.items()}
    (tmp_path / "0.tar").write_bytes(tar({**members, "a.mp4": BODY}))
    (ref,) = refs(tmp_path / "0.tar")
    assert body(ref) == BODY


def test_names_that_lead_elsewhere_are_labels(tmp_path: Path) -> None:
    odd = ["../../evil.mp4", "/etc/passwd.mp4", "a::b:.mp4", "50%.mp4", "x\x7f.mp4"]
    (tmp_path / "0.tar").write_bytes(tar(dict.fromkeys(odd, BODY)))
    before = sorted(os.listdir(tmp_path.parent))
    found = refs(tmp_path / "0.tar")
    assert names(found) == ["../../evil.mp4", "/etc/passwd.mp4", "a%3A:b:.mp4", "50%25.mp4", "x%7F.mp4"]
    assert len({ref.video_id for ref in found}) == 5
    assert all(body(ref) == BODY for ref in found)
    assert sorted(os.listdir(tmp_path.parent)) == before


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    data = tar({"caf?.mp4": BODY}, tarfile.USTAR_FORMAT)
    header = bytearray(data[:512])
    header[3] = 0xE9
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    (tmp_path / "0.tar").write_bytes(bytes(header) + data[512:])
    (ref,) = refs(tmp_path / "0.tar")
    assert ref.uri.startswith("tar://caf%E9.mp4::")
    assert body(ref) == BODY


def test_of_members_with_one_name_the_last_counts(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar({"a.mp4": BODY, "b.mp4": b"b"}))
    with tarfile.open(tmp_path / "0.tar", "a") as archive:
        info = tarfile.TarInfo("a.mp4")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"new"))
    assert [(name, body(ref)) for ref in refs(tmp_path / "0.tar") for name in names([ref])] == [
        ("b.mp4", b"b"),
        ("a.mp4", b"new"),
    ]


def test_archives_joined_by_cat_are_read_on(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar({"a.mp4": BODY}) + tar({"b.mp4": BODY}))
    found = refs(tmp_path / "0.tar")
    assert [body(ref) for ref in found] == [BODY, BODY]
    assert reasons(found) == [None, None]


THREE = tar({"a.mp4": BODY, "b.mp4": BODY, "c.mp4": BODY})
MEMBER = 512 + 1024


HUGE = tarfile.TarInfo("a.mp4")
HUGE.size = 2**72


def pax(*records: bytes) -> bytes:
    data = b"".join(records)
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(data)
    return info.tobuf() + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    ("data", "listed", "said"),
    [
        (THREE[: 2 * MEMBER + 300], 2, "cut short: no mark of its end"),
        (THREE[: 2 * MEMBER], 2, "cut short: no mark of its end"),
        (THREE[: 2 * MEMBER - 600], 2, "cut short: 2472 bytes of at least 3072"),
        (THREE[:MEMBER] + b"\xff" * 512 + THREE[MEMBER:], 1, "damaged: no tar header at byte 1536"),
        (THREE + b"not a header" * 100, 3, "after the mark of its end"),
        (pax(b"99 size=7\n") + THREE, 0, "the extended header at byte 512 is malformed"),
        (pax(b"0 size=7\n") + THREE, 0, "malformed"),
        (pax(b"10 size=-\n") + THREE, 0, "malformed"),
        (pax(b"x") + THREE, 0, "malformed"),
        (pax(b"26 size=99999999999999999\n") + THREE, 1, "cut short"),
        (pax(b"28 size=9999999999999999999\n") + THREE, 0, "says 9999999999999999999 bytes"),
        (HUGE.tobuf(tarfile.GNU_FORMAT) + THREE, 0, "says 4722366482869645213696 bytes"),
    ],
)
def test_damage_is_a_failure_of_the_shard_after_what_came_before(
    tmp_path: Path, data: bytes, listed: int, said: str
) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    found = refs(tmp_path / "0.tar")
    assert len(found) == listed + 1
    shard = found[-1]
    assert (shard.uri, shard.archive) == (os.path.realpath(tmp_path / "0.tar"), None)
    assert shard.problem is not None
    assert shard.problem.reason is Reason.CORRUPT
    assert said in shard.problem.message


def test_a_member_that_ends_beyond_the_shard_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(THREE[: 2 * MEMBER - 600])
    assert reasons(refs(tmp_path / "0.tar")) == [None, Reason.CORRUPT, Reason.CORRUPT]


def test_a_huge_name_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    (tmp_path / "0.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    (shard,) = refs(tmp_path / "0.tar")
    assert shard.problem is not None
    assert "at most 1048576 are read" in shard.problem.message


def test_the_uri_of_a_member_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar({"a.mp4": b"a", "b.mp4": b"b"}))
    (member, _) = refs(tmp_path / "s.tar")
    with pytest.raises(UserError, match=r"is a member of a tar shard.*corpus\.include"):
        refs(member.uri)
    assert [ref.uri for ref in refs(tmp_path / "s.tar", include=["a.mp4"])] == [member.uri]


def test_shards_that_cannot_be_read_do_not_end_the_listing(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "1.tar").symlink_to(tmp_path / "nowhere.tar")
    (tmp_path / "2.tar").write_bytes(gzip.compress(THREE))
    (tmp_path / "3.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "4.tar").write_bytes(tar({}))
    (tmp_path / "5.tar").write_bytes(THREE)
    (tmp_path / "6.tgz").write_bytes(gzip.compress(THREE))
    found = refs(tmp_path, format="tar")
    expected = [Reason.EMPTY_FILE, Reason.NOT_FOUND, Reason.INVALID_INPUT, Reason.CORRUPT, None, None, None]
    assert reasons(found) == [*expected, Reason.INVALID_INPUT]
    assert found[2].problem is not None
    assert "compressed with gzip, so no member can be read on its own: decompress" in found[2].problem.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_shard_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(THREE)
    (tmp_path / "0.tar").chmod(0)
    assert reasons(refs(tmp_path / "0.tar")) == [Reason.ACCESS_DENIED]


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_a_sparse_member_says_how_to_store_it(tmp_path: Path, format: str) -> None:
    for name, size in (("a.mp4", 5 * 2**20), ("b.mp4", 30 * 2**20)):
        with (tmp_path / name).open("wb") as file:
            for place in range(0, size, 2**20):
                file.seek(place)
                file.write(b"x" * 4096)
            file.truncate(size + 2**20)
    (tmp_path / "c.mp4").write_bytes(BODY)
    command = ["tar", "--sparse", f"--format={format}", "-cf", "0.tar", "a.mp4", "b.mp4", "c.mp4"]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = refs(tmp_path / "0.tar")
    assert names(found) == ["a.mp4", "b.mp4", "c.mp4"]
    assert reasons(found) == [Reason.INVALID_INPUT, Reason.INVALID_INPUT, None]
    assert body(found[2]) == BODY


def test_patterns_and_limits_hold_for_members(tmp_path: Path) -> None:
    members = {"a.mp4": BODY, "b.avi": BODY[:99], "trash/c.mp4": BODY, "note.txt": BODY}
    (tmp_path / "0.tar").write_bytes(tar(members))
    assert names(refs(tmp_path / "0.tar", exclude="trash")) == ["a.mp4", "b.avi"]
    assert names(refs(tmp_path / "0.tar", include="*.txt")) == ["note.txt"]
    assert names(refs(tmp_path / "0.tar", min_video_bytes=100)) == ["a.mp4", "trash/c.mp4"]
    assert reasons(refs(tmp_path / "0.tar", max_video_bytes=100)) == [
        Reason.TOO_LARGE,
        None,
        Reason.TOO_LARGE,
    ]
    assert names(refs(tmp_path / "0.tar", limit=2)) == ["a.mp4", "b.avi"]
    with pytest.raises(UserError, match=r"4 members, of which 4 match none of"):
        refs(tmp_path / "0.tar", include="*.mov")
    with pytest.raises(UserError, match=r"no tar shard among 1 files"):
        refs(tmp_path, format="tar", exclude="0.tar")


SAMPLES: dict[str, bytes] = {
    "001.mp4": BODY,
    "001.json": json.dumps({"title": "One", "questions": ["Who?"], "end_seconds": 2, "id": 7}).encode(),
    "001.cls": b"5",
    "002.json": json.dumps({"title": None, "version": "x", "video_id": "y"}).encode(),
    "002.left.mp4": BODY,
    "002.right.mp4": BODY,
    "003.mp4": BODY,
    "003.json": b"{",
    "004.mp4": BODY,
    "004.json": json.dumps({"start_seconds": -1}).encode(),
    "005.mp4": BODY,
    "a.b/006.mp4": BODY,
    "a.b/006.json": json.dumps({"title": 6}).encode(),
}


def test_the_json_of_a_sample_is_its_row(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar(SAMPLES))
    one, left, right, broken, bad, alone, six = refs(tmp_path / "0.tar", columns=["title"])
    assert (one.extra, one.questions, one.end_seconds) == (
        (("title", "One"),),
        (Question("own1", "Who?"),),
        2.0,
    )
    assert one.version.startswith(f"{left.version}~")
    assert left.extra == right.extra == alone.extra == (("title", None),)
    assert left.version == alone.version, "a sample's JSON names neither versions nor ids, unless asked to"
    assert six.extra == (("title", "6"),)
    assert broken.problem is not None
    assert "'003.json' is not JSON" in broken.problem.message
    assert bad.problem is not None
    assert "'004.json' in " in bad.problem.message
    assert "start_seconds=-1" in bad.problem.message
    named = refs(tmp_path / "0.tar", manifest={"id_column": "id"})
    assert named[0].video_id == "7"
    plain = refs(tmp_path / "0.tar")
    assert all(ref.problem is None and not ref.questions and not ref.extra for ref in plain)


def titled(title: str) -> bytes:
    return json.dumps({"title": title}).encode()


@pytest.mark.parametrize("json_first", [True, False])
@pytest.mark.parametrize(
    ("members", "titles", "num_unused"),
    [
        ({"clip.v1.2.mp4": "", "clip.v1.2.json": "own"}, ["own"], 0),
        ({"./2024.05.01_x.mp4": "", "./2024.05.01_x.json": "own"}, ["own"], 0),
        ({"a.mp4": "", "a.json": "a", "a.b.mp4": ""}, ["a", "a"], 0),
        ({"a.mp4": "", "a.json": "a", "a.b.mp4": "", "a.b.json": "b"}, ["a", "b"], 0),
        ({"a.b.mp4": "", "a.b.json": "b", "a.json": "a"}, ["b"], 1),
        ({"v1.mp4": "", "v1.2.mp4": "", "v1.2.3.mp4": "", "v1.2.json": "1.2"}, [None, "1.2", None], 0),
        ({"a.mp4": "", "a.mp4.json": "x", "b.json": "b", "d/a.json": "d"}, [None], 3),
        ({"a.mp4": "", "a.info.json": "x"}, [None], 1),
        ({"a.mp4": "", "text.json": "x", "text.jpg": ""}, [None], 1),
        ({"a.mp4": "", "left.out.MKV": "", "left.out.json": "x"}, [None], 0),
        ({".mp4": "", ".json": "x"}, ["x"], 0),
        ({"A.MP4": "", "A.JSON": "A", "b.mp4": "", "b.Json": "b"}, ["A", "b"], 0),
        ({"a.b.MP4": "", "a.b.JSON": "own", "c.JSON": "x"}, ["own"], 1),
        ({"a.mp4": "", "a.JSON": "large", "a.json": "small"}, ["small"], 1),
        ({"x/a.b.mp4": "", "a.b.json": "x", "x.y/a.mp4": "", "x.y/a.json": "y"}, [None, "y"], 1),
    ],
)
def test_the_json_of_a_name_with_dots_is_its_own(
    tmp_path: Path, json_first: bool, members: dict[str, str], titles: list[str | None], num_unused: int
) -> None:
    order = sorted(members, key=lambda name: name.lower().endswith(".json") != json_first)
    bodies = {name: titled(members[name]) if name.lower().endswith(".json") else BODY for name in order}
    (tmp_path / "0.tar").write_bytes(tar(bodies))
    cache = Cache()
    for columns in (["title"], ["title"], []):  # made, kept, and where nothing is read of it
        passed = PassedOver()
        config = CorpusConfig(uri=str(tmp_path / "0.tar"), columns=columns, include="*.mp4")
        found = list(list_videos(config, index_cache=cache, passed_over=passed))
        assert passed == PassedOver(unused_metadata=num_unused)
        assert [dict(ref.extra).get("title") for ref in found] == (titles if columns else [None] * len(found))
        assert not any(ref.problem for ref in found)


def test_json_of_dotted_names_is_read_only_where_it_belongs_to_something() -> None:
    """Annotations beside a video may be many and large."""
    data = tar({"a.mp4": BODY, "a.boxes.json": bytes(200_000), "b.c.mp4": BODY, "b.c.json": titled("c")})
    asked: list[int] = []

    def fetch(offset: int, length: int) -> bytes:
        asked.append(length)
        return data[offset : offset + length]

    index = build_index(RangeReader(fetch, len(data)), frozenset({"title"}))
    assert [one.fields for one in index.members] == [None, None, None, {"title": "c"}]
    assert sum(asked) < 20_000


APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4000)


def test_apple_double_members_are_passed_over(tmp_path: Path) -> None:
    members = {
        "./._a.mp4": APPLE,
        "./a.mp4": BODY,
        "._b.mp4": BODY,
        "._empty.mp4": b"",
        "._a.json": APPLE,
        "._notes.txt": APPLE,
        "__MACOSX/d/._c.mp4": APPLE,
        "__MACOSX/real.mp4": BODY,
        "plain.mp4": APPLE,
    }
    (tmp_path / "0.tar").write_bytes(tar(members))
    for cache in (None, Cache()):
        passed = PassedOver()
        config = CorpusConfig(uri=str(tmp_path / "0.tar"), columns=["title"])
        for _ in range(2):
            found = list(list_videos(config, index_cache=cache, passed_over=passed))
            assert names(found) == ["./a.mp4", "._b.mp4", "._empty.mp4", "__MACOSX/real.mp4", "plain.mp4"]
        assert passed == PassedOver(not_videos=2 * 2)


def test_an_apple_double_file_of_a_shard_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar({"a.mp4": BODY}))
    (tmp_path / "._a.tar").write_bytes(APPLE)
    passed = PassedOver()
    (ref,) = list_videos(CorpusConfig(uri=str(tmp_path), format="tar"), passed_over=passed)
    assert (ref.problem, passed.not_videos) == (None, 1)


def test_a_huge_json_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar({"1.json": b" " * (2**20 + 1), "1.mp4": BODY}))
    (ref,) = refs(tmp_path / "0.tar", columns=["title"])
    assert ref.problem is not None
    assert "'1.json' has 1048577 bytes, at most 1048576 are read" in ref.problem.message


class Cache:
    """An IndexCache in memory that counts; ``damage`` is done to what it gives out."""

    def __init__(self, damage: bytes | None = None) -> None:
        self.kept: dict[str, bytes] = {}
        self.num_puts = 0
        self.damage = damage

    def get(self, name: str) -> bytes | None:
        return self.damage if self.damage is not None and name in self.kept else self.kept.get(name)

    def put(self, name: str, data: bytes) -> None:
        self.num_puts += 1
        self.kept[name] = data


class BrokenCache:
    """An IndexCache on a disk that fails."""

    def get(self, name: str) -> bytes | None:
        raise OSError("no disk")

    def put(self, name: str, data: bytes) -> None:
        raise OSError("no disk")


@pytest.mark.parametrize("data", [tar(SAMPLES), THREE[: 2 * MEMBER + 300], gzip.compress(THREE, mtime=0)])
def test_a_kept_index_says_what_the_shard_said(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    cache = Cache()
    config = CorpusConfig(uri=str(tmp_path / "0.tar"), columns=["title"])  # type: ignore[arg-type]
    first = list(list_videos(config, index_cache=cache))
    status = os.stat(tmp_path / "0.tar")
    (tmp_path / "0.tar").write_bytes(b"\xff" * len(data))
    os.utime(tmp_path / "0.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert list(list_videos(config, index_cache=cache)) == first, "the shard itself was not looked at"
    assert cache.num_puts == 1
    list(list_videos(config.model_copy(update={"columns": {}}), index_cache=cache))
    assert cache.num_puts == 2, "without columns no JSON is read: that is another index"


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"x" * 1000])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(THREE)
    cache = Cache(damage)
    config = CorpusConfig(uri=str(tmp_path / "0.tar"))
    assert [len(list(list_videos(config, index_cache=cache))) for _ in range(2)] == [3, 3]
    assert cache.num_puts == 2


def test_an_index_with_a_flipped_bit_is_made_again_or_says_the_same(tmp_path: Path) -> None:
    """Offsets into the shard: a wrong one would be another video under this name."""
    (tmp_path / "0.tar").write_bytes(THREE)
    config, cache = CorpusConfig(uri=str(tmp_path / "0.tar")), Cache()
    first = list(list_videos(config, index_cache=cache))
    ((_, data),) = cache.kept.items()
    places = random.Random(14).sample(range(8 * len(data)), 300)
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        cache.damage = bytes(changed)
        assert list(list_videos(config, index_cache=cache)) == first
    assert 1 < cache.num_puts < len(places)


def test_a_cache_that_fails_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(THREE)
    assert len(list(list_videos(CorpusConfig(uri=f"{tmp_path}/0.tar"), index_cache=BrokenCache()))) == 3


class _Server(BaseHTTPRequestHandler):
    """One shard over HTTP, by range or, if ``knows_ranges`` is false, whole."""

    data = THREE
    knows_ranges = True
    num_bytes = 0

    def do_HEAD(self) -> None:
        self._answer(b"", 200, len(self.data))

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        if not self.knows_ranges or len(wanted) < 2:
            self._answer(self.data, 200, len(self.data))
            return
        part = self.data[int(wanted[0]) : int(wanted[1]) + 1]
        self._answer(part, 206, len(part))

    def _answer(self, part: bytes, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(part)


@pytest.mark.parametrize(("knows_ranges", "expected"), [(True, [None] * 3), (False, [Reason.READ_ERROR])])
def test_a_shard_on_a_web_server(
    monkeypatch: pytest.MonkeyPatch, knows_ranges: bool, expected: list[Reason | None]
) -> None:
    monkeypatch.setattr(_Server, "knows_ranges", knows_ranges)
    with served(_Server) as address:
        found = refs(f"{address}/0.tar?key=1")
    assert reasons(found) == expected


def test_a_member_has_one_uri_whatever_its_name() -> None:
    assert member_uri("a/b.mp4", "s3://c/0.tar") == "tar://a/b.mp4::s3://c/0.tar"
    assert member_uri("a::::b:", "x") == "tar://a%3A%3A%3A:b%3A::x"
    assert member_uri("%41", "x") != member_uri("A", "x")
