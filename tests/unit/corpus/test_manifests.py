"""Manifests: every row is a video or a failure that says what is wrong with it; a broken file is refused."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.sections import CorpusConfig
from pipeline.corpus.listing import list_videos, video_id_for
from pipeline.corpus.manifest_files import MAX_COLUMNS, MAX_LINE_BYTES
from pipeline.corpus.parquet_cells import MAX_CELL_BYTES, read_cells
from pipeline.errors import Reason, UserError
from pipeline.output.schemas import video_schema
from pipeline.records import Question, VideoRef

Rows = Sequence[Mapping[str, Any]]
KINDS = ("parquet", "csv", "csv.gz", "csv.zst", "jsonl", "jsonl.gz", "jsonl.zst", "ndjson")


def write(path: Path, rows: Rows) -> Path:
    """The same rows in the format of the suffix."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)
        return path
    if ".csv" in path.name:
        lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
        text = "".join(",".join(line) + "\r\n" for line in lines)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    pack = {".gz": gzip.compress, ".zst": packed}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))
    return path


def packed(data: bytes) -> bytes:
    """zstd."""
    target = pa.BufferOutputStream()
    with pa.CompressedOutputStream(target, "zstd") as stream:
        stream.write(data)
    return bytes(target.getvalue().to_pybytes())


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return '"' + text.replace('"', '""') + '"'


def refs(path: Path | str, **options: Any) -> list[VideoRef]:
    return list(list_videos(CorpusConfig(uri=str(path), **options)))


def problem(ref: VideoRef) -> str:
    assert ref.problem is not None
    assert ref.problem.reason is Reason.INVALID_INPUT
    return ref.problem.message


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "🎬\n.mp4"):
        (tmp_path / "videos" / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_says_the_same(videos: Path, kind: str) -> None:
    rows = [
        {"uri": "videos/a.mp4", "questions": ["Who?", "Where?"], "end_seconds": 2.5, "score": 3, "x": 1},
        {"uri": str(videos / "videos" / "b.mp4"), "video_id": "b", "start_seconds": 1.0, "score": None},
        {"uri": "videos/🎬\n.mp4", "video_id": "c, \"quoted\"", "questions": []},
        {"uri": "videos/gone.mp4", "version": "v7"},
    ]  # fmt: skip
    first, second, third, fourth = refs(write(videos / f"m.{kind}", rows), columns={"score": "int64"})
    path = videos / "videos" / "a.mp4"
    assert first.uri == os.path.realpath(path)
    assert first.questions == (Question("own1", "Who?"), Question("own2", "Where?"))
    assert (first.start_seconds, first.end_seconds, first.extra) == (None, 2.5, (("score", 3),))
    assert first.size_bytes == 5
    assert first.version.startswith(f"5-{path.stat().st_mtime_ns}~")
    assert (second.video_id, second.start_seconds, second.extra) == ("b", 1.0, (("score", None),))
    assert (third.video_id, third.uri[-7:], third.questions) == ('c, "quoted"', "/🎬\n.mp4", ())
    assert (fourth.version, fourth.size_bytes, fourth.problem) == ("v7", 0, None)


def test_a_bare_row_is_the_file_that_a_folder_lists(videos: Path) -> None:
    manifest = write(videos / "m.csv", [{"uri": "videos/a.mp4"}, {"uri": "./videos/../videos/b.mp4"}])
    assert refs(manifest) == refs(videos / "videos" / "[ab].mp4")


def test_clips_of_one_file_have_ids_and_versions_of_their_own(videos: Path) -> None:
    clips = [(None, None), (0.0, None), (0.0, 5.0), (5.0, None), (5.0, 10.0)]
    rows = [{"uri": "videos/a.mp4", "start_seconds": start, "end_seconds": end} for start, end in clips]
    found = refs(write(videos / "m.jsonl", rows))
    assert len({ref.video_id for ref in found}) == len({ref.version for ref in found}) == 5
    assert found[0].video_id == video_id_for(str(videos / "videos" / "a.mp4"))
    assert refs(write(videos / "n.csv", rows)) == found, "5 and 5.0 are the same second"


def test_other_questions_are_another_version_of_the_same_video(videos: Path) -> None:
    versions, ids = set(), set()
    for questions in (
        None,
        "Who?",
        "Where?",
        [{"id": "own1", "text": "Where?"}],
        [{"id": 2, "text": "Where?"}],
    ):
        (ref,) = refs(write(videos / "m.jsonl", [{"uri": "videos/a.mp4", "questions": questions}]))
        versions.add(ref.version)
        ids.add(ref.video_id)
    assert (len(versions), len(ids)) == (4, 1), "a question named as it would be named anyway is the same"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("empty", [None, "", "  \n", "[]", " [ ]"])
def test_an_empty_cell_of_questions_is_none(videos: Path, kind: str, empty: str | None) -> None:
    rows = [{"uri": "videos/a.mp4", "questions": empty}, {"uri": "videos/b.mp4", "questions": "Who?"}]
    first, second = refs(write(videos / f"m.{kind}", rows))
    assert (first.problem, first.questions) == (None, ())
    assert second.questions == (Question("own1", "Who?"),)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_nan_is_no_text(videos: Path, kind: str) -> None:
    """Of pandas, and of JSON that is made from its rows."""
    nan = float("nan")
    (ref,) = refs(
        write(videos / f"m.{kind}", [{"uri": "videos/a.mp4", "questions": nan, "version": nan, "x": nan}]),
        columns={"x": "string"},
    )
    assert (ref.problem, ref.questions, ref.extra) == (None, (), (("x", None),))
    assert ref.version.startswith("5-")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        "{what} is this?",
        "[1] what is this?",
        "{ 1 } or",
        "[music] who sings?",
        " {x",
        "[x]",
        "[1, 2] or 3?",
        "[None of them]",
        "None?",
    ],
)
def test_a_question_may_begin_with_a_bracket(videos: Path, kind: str, text: str) -> None:
    (ref,) = refs(write(videos / f"m.{kind}", [{"uri": "videos/a.mp4", "questions": text}]))
    assert (ref.problem, ref.questions) == (None, (Question("own1", text),))


def test_the_length_of_a_question_is_a_setting(videos: Path) -> None:
    rows = [{"uri": "videos/a.mp4", "questions": "x" * 20}, {"uri": "videos/b.mp4", "questions": "x" * 21}]
    first, second = refs(write(videos / "m.jsonl", rows), max_question_chars=20)
    assert len(first.questions[0].text) == 20
    assert "row 2: questions='xxxxxxxxxxxxxxxxxxxxx…': has 21 characters" in problem(second)
    assert not any(ref.problem for ref in refs(videos / "m.jsonl"))


@pytest.mark.parametrize("others", [[], ["Who?"], ["Who?"] * 2000])
@pytest.mark.parametrize("is_list", [False, True])
def test_a_cell_that_inflates_is_its_rows_failure(videos: Path, others: list[str], is_list: bool) -> None:
    texts: list[Any] = ["x" * (MAX_CELL_BYTES + 1), *others]
    table = pa.table(
        {
            "uri": [f"{number}.mp4" for number in range(len(texts))],
            "questions": [[text] for text in texts] if is_list else texts,
        }
    )
    pq.write_table(table, videos / "m.parquet", compression="zstd")
    assert (videos / "m.parquet").stat().st_size < 100_000
    first, *rest = refs(videos / "m.parquet")
    assert f"row 1: the cell in 'questions' has more than {MAX_CELL_BYTES} bytes" in problem(first)
    assert first.uri.endswith("/0.mp4")
    assert [ref.questions for ref in rest] == [(Question("own1", text),) for text in others]


def test_a_text_of_the_dictionary_is_not_unpacked_for_a_thousand_rows_at_once(tmp_path: Path) -> None:
    """Here 400 rows of 3 MB each, 1.2 GB that take some kB in the file."""
    table = pa.table({"uri": pa.array(["x" * 3_000_000]).take(pa.array([0] * 50))})
    with pq.ParquetWriter(tmp_path / "m.parquet", table.schema, compression="zstd") as writer:
        writer.write_table(pa.concat_tables([table] * 8), row_group_size=1000)
    with (tmp_path / "m.parquet").open("rb") as file:
        before = pa.total_allocated_bytes()
        values, large = next(read_cells(file, pq.ParquetFile(file), ["uri"]))
        assert (len(values["uri"]), large) == (3_000_000, None)
        assert pa.total_allocated_bytes() - before < 600 * 2**20


def test_questions_as_json_text_and_as_structs(videos: Path) -> None:
    asked = [{"id": "who", "text": "Who?"}, {"id": "what", "text": "What, \"exactly\"?"}]  # fmt: skip
    expected = (Question("who", "Who?"), Question("what", 'What, "exactly"?'))
    for kind in KINDS:
        for value in (asked, json.dumps(asked)):
            (ref,) = refs(write(videos / f"m.{kind}", [{"uri": "videos/a.mp4", "questions": value}]))
            assert ref.questions == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"uri": None}, "uri=None: a row must name its video"),
        ({"uri": "  "}, "a row must name its video"),
        ({"uri": "a\0b.mp4"}, r"uri='a\x00b.mp4': must have at most"),
        ({"uri": "x" * 9000}, "must have at most 8192"),
        ({"uri": 7}, "uri=7: must be text"),
        ({"uri": "\ud800.mp4"}, r"uri='\ud800.mp4': must be UTF-8"),
        ({"uri": "a.mp4", "start_seconds": 5, "end_seconds": 5}, "end_seconds=5.0: must be greater"),
        ({"uri": "a.mp4", "end_seconds": 0}, "must be greater than the start, 0"),
        ({"uri": "a.mp4", "start_seconds": -1}, "start_seconds=-1: must be seconds"),
        ({"uri": "a.mp4", "start_seconds": float("nan")}, "finite, not negative"),
        ({"uri": "a.mp4", "end_seconds": "inf"}, "end_seconds='inf'"),
        ({"uri": "a.mp4", "start_seconds": "one"}, "start_seconds='one': must be a number of seconds"),
        ({"uri": "a.mp4", "end_seconds": "1_0"}, "end_seconds='1_0': must be a number of seconds"),
        ({"uri": "a.mp4", "start_seconds": True}, "start_seconds=True: must be a number"),
        ({"uri": "a.mp4", "video_id": ""}, "must have 1 to 512 characters"),
        ({"uri": "a.mp4", "video_id": "x" * 600}, "must have 1 to 512 characters"),
        ({"uri": "a.mp4", "video_id": 1.5}, "video_id=1.5: must be text"),
        ({"uri": "a.mp4", "size_bytes": -3}, "size_bytes=-3: must be a number of bytes"),
        ({"uri": "a.mp4", "size_bytes": "big"}, "must be a whole number"),
        ({"uri": "a.mp4", "questions": 5}, "questions=5: must be a text or a list"),
        ({"uri": "a.mp4", "questions": ["", "x"]}, "questions='': a question is a text"),
        ({"uri": "a.mp4", "questions": [{"id": "a"}]}, "a question is a text or {id, text}"),
        ({"uri": "a.mp4", "questions": [{"text": "x", "by": 1}]}, "a question is a text or {id, text}"),
        ({"uri": "a.mp4", "questions": '["x"'}, "begins as JSON does, and is none"),
        ({"uri": "a.mp4", "questions": "['x', 'y']"}, "to ask just this, put it into a list"),
        ({"uri": "a.mp4", "questions": "{'text': 'x'}"}, "begins as JSON does, and is none"),
        ({"uri": "a.mp4", "questions": ["x", "y" * 16_385]}, "has 16385 characters, more than corpus.max_"),
        ({"uri": "a.mp4", "questions": [{"id": "i" * 513, "text": "x"}]}, "must have at most 512 characters"),
        ({"uri": "a.mp4", "questions": "[1, 2]"}, "questions=1: a question is a text"),
        ({"uri": "a.mp4", "questions": " [true]"}, "questions=True: a question is a text"),
        ({"uri": "a.mp4", "questions": '["x", 1]'}, "questions=1: a question is a text"),
        ({"uri": "a.mp4", "questions": "[None]"}, "begins as JSON does, and is none"),
        ({"uri": "a.mp4", "questions": "[nan, 'x']"}, "begins as JSON does, and is none"),
        ({"uri": "a.mp4", "questions": '\ufeff["x"]'}, "begins as JSON does, and is none"),
        ({"uri": "a.mp4", "questions": "NaN"}, "says that there is no value; leave the field empty"),
        ({"uri": "a.mp4", "questions": "None "}, "says that there is no value; leave the field empty"),
        ({"uri": "a.mp4", "questions": "[" * 100_000}, "begins as JSON does, and is none"),
        ({"uri": "a.mp4", "questions": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}, "must differ"),
        ({"uri": "a.mp4", "n": "1.5"}, "n='1.5': must be a whole number of 64 bits"),
        ({"uri": "a.mp4", "n": 2**63}, "must be a whole number of 64 bits"),
        ({"uri": "a.mp4", "f": "0x"}, "f='0x': must be a number"),
        ({"uri": "a.mp4", "b": "maybe"}, "b='maybe': must be one of true, yes"),
        ({"uri": "a.mp4", "t": "yesterday"}, "t='yesterday': must be a time as in"),
        ({"uri": "a.mp4", "t": 5}, "t=5: must be a time"),
    ],
)  # fmt: skip
def test_a_bad_value_is_a_failure_that_says_so(videos: Path, row: Mapping[str, Any], said: str) -> None:
    full = {"n": 1, "f": 1, "b": True, "t": "2026-01-01", **row}
    manifest = write(
        videos / "m.jsonl", [{**full, "uri": "good.mp4", **dict.fromkeys(set(row) - {"uri"})}, full]
    )
    columns = {"n": "int64", "f": "float64", "b": "bool", "t": "timestamp"}
    good, bad = refs(manifest, columns=columns)
    assert good.problem is None
    assert said in problem(bad)
    assert problem(bad).startswith(f"{manifest} row 2: ")
    problem(bad).encode()
    bad.uri.encode()
    assert bad.version == "0-0"


@pytest.mark.parametrize("line", [b"{", b"[]", b"7", b'"x"', b"{}", b"\xff\xfe{}", b"[" * 100_000, b"nul"])
def test_a_line_that_is_no_object_is_a_failure(videos: Path, line: bytes) -> None:
    (videos / "m.jsonl").write_bytes(b'{"uri": "a.mp4"}\n\n' + line + b'\n{"uri": "b.mp4"}')
    first, bad, last = refs(videos / "m.jsonl")
    assert (first.problem, last.problem) == (None, None)
    assert "row 2" in problem(bad)
    assert bad.video_id.startswith("m-")


def test_two_bad_rows_are_two_failures(videos: Path) -> None:
    (videos / "m.csv").write_text("uri,start_seconds\na.mp4,x\na.mp4,y\n,\nb.mp4,1,2\nb.mp4\nc.mp4,1\n")
    found = refs(videos / "m.csv")
    assert len({ref.video_id for ref in found}) == len(found) == 6
    assert [ref.problem is None for ref in found] == [False] * 5 + [True]
    assert "3 fields where the header has 2" in problem(found[3])


def test_a_bad_row_keeps_the_id_it_has(videos: Path) -> None:
    rows = [{"uri": "a.mp4", "video_id": "mine", "start_seconds": -1}, {"uri": "a.mp4", "questions": 5}]
    first, second = refs(write(videos / "m.jsonl", rows))
    assert first.video_id == "mine"
    assert second.video_id == video_id_for(str(videos / "a.mp4"))


def test_a_store_that_cannot_be_made_fails_the_row_and_not_the_run(videos: Path) -> None:
    odd = ["zip://a.mp4::/nowhere.zip", "github://nobody"]
    found = refs(write(videos / "m.jsonl", [{"uri": uri} for uri in [*odd, "a.mp4"]]))
    reasons = [ref.problem and ref.problem.reason for ref in found]
    assert reasons == [Reason.INVALID_INPUT, Reason.INVALID_INPUT, None]
    assert "filesystems upon filesystems ('::') are not used" in problem(found[0])
    assert "'github://nobody' cannot be opened" in problem(found[1])


def test_two_bad_ids_of_one_video_are_two_failures(videos: Path) -> None:
    rows = [{"uri": "a.mp4", "video_id": one} for one in (1.0, 2.0, None)]
    found = refs(write(videos / "m.jsonl", rows))
    assert [ref.problem is None for ref in found] == [False, False, True]
    assert len({ref.video_id for ref in found}) == 3


def test_a_long_text_in_a_csv_file_is_no_reason_to_refuse_it(videos: Path) -> None:
    (videos / "m.csv").write_text(f"uri,transcript\na.mp4,{'x' * 200_000}\nb.mp4,\n")
    assert [Path(ref.uri).name for ref in refs(videos / "m.csv")] == ["a.mp4", "b.mp4"]


def test_text_that_is_not_utf_8(videos: Path) -> None:
    (videos / "m.csv").write_bytes(b"uri\ncaf\xe9.mp4\nok.mp4\n")
    bad, good = refs(videos / "m.csv")
    assert good.problem is None
    assert "must be UTF-8" in problem(bad)
    array = pa.array([b"caf\xe9.mp4", b"ok.mp4"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"uri": array}), videos / "m.parquet")
    bad, good = refs(videos / "m.parquet")
    assert good.problem is None
    assert "must be UTF-8" in problem(bad)


def test_columns_are_converted_and_fit_the_table(videos: Path) -> None:
    columns = {"s": "string", "n": "int64", "f": "float64", "b": "bool", "t": "timestamp"}
    moment = datetime(2026, 5, 1, 12, 30, tzinfo=timezone.utc)
    expected = {"s": "5", "n": 12, "f": 0.5, "b": True, "t": moment}
    text = {"uri": "a.mp4", "s": "5", "n": "12", "f": "0.5", "b": "Yes", "t": "2026-05-01T14:30:00+02:00"}
    typed = {"uri": "a.mp4", "s": 5, "n": 12.0, "f": 0.5, "b": True, "t": moment}
    pq.write_table(pa.Table.from_pylist([typed]), videos / "typed.parquet")
    nanoseconds = pa.array([moment.timestamp() * 10**9]).cast(pa.int64()).cast(pa.timestamp("ns"))
    naive = pa.Table.from_pylist([typed]).set_column(5, "t", nanoseconds)
    pq.write_table(naive, videos / "naive.parquet")
    for path in (write(videos / "m.csv", [text]), videos / "typed.parquet", videos / "naive.parquet"):
        (ref,) = refs(path, columns=columns)
        assert dict(ref.extra) == expected
    schema = pa.schema([video_schema(columns).field(name) for name in columns])
    assert pa.Table.from_pylist([dict(ref.extra)], schema).to_pylist() == [expected]
    (empty,) = refs(write(videos / "m.csv", [{**dict.fromkeys(text), "uri": "a.mp4"}]), columns=columns)
    assert dict(empty.extra) == dict.fromkeys(columns)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "+02:00", "No/Where"])
def test_a_time_with_a_zone_is_carried_over_in_utc(videos: Path, zone: str) -> None:
    moment = datetime(2020, 1, 1, tzinfo=timezone.utc)
    for unit in ("s", "ms", "us", "ns"):
        times = pa.array([int(moment.timestamp()), None], pa.timestamp("s"))
        times = times.cast(pa.timestamp(unit)).cast(pa.int64()).cast(pa.timestamp(unit, tz=zone))
        pq.write_table(pa.table({"uri": ["a.mp4", "b.mp4"], "t": times}), videos / "m.parquet")
        for kind, expected in (("string", "2020-01-01 00:00:00+00:00"), ("timestamp", moment)):
            found = refs(videos / "m.parquet", columns={"t": kind})
            assert [dict(ref.extra)["t"] for ref in found] == [expected, None]


def test_a_moment_beyond_all_calendars_fails_its_row_only(videos: Path) -> None:
    for kind, beyond in ((pa.timestamp("us"), 2**62), (pa.date32(), 2**30)):
        table = pa.table({"uri": ["a.mp4", "b.mp4"], "t": pa.array([0, beyond], kind)})
        pq.write_table(table, videos / "m.parquet")
        good, bad = refs(videos / "m.parquet", columns={"t": "timestamp"})
        assert good.problem is None
        assert "must be a time as in" in problem(bad)


def test_a_manifest_that_changes_while_it_is_read_is_refused(videos: Path) -> None:
    rows = [{"uri": f"{number}.mp4", "version": "v"} for number in range(3000)]
    for kind in ("csv", "jsonl", "parquet"):
        path = write(videos / f"m.{kind}", rows)
        listed = list_videos(CorpusConfig(uri=str(path)))
        next(listed)
        os.utime(path, ns=(1, 1))
        with pytest.raises(UserError, match=r"changed while it was read: run again"):
            list(listed)
        listed = list_videos(CorpusConfig(uri=str(path)))
        next(listed)
        os.replace(write(videos / f"new.{kind}", rows[:1]), path)
        assert len(list(listed)) == 2999, "a new list in its place leaves the old one as it was"


def test_a_folder_may_have_a_question_mark(videos: Path) -> None:
    (videos / "what?").mkdir()
    (ref,) = refs(write(videos / "what?" / "m.csv", [{"uri": "../videos/a.mp4"}]))
    assert ref.size_bytes == 5


def test_columns_may_have_other_names(videos: Path) -> None:
    rows = [{"path": "a.mp4", "clip": "x", "from": 1, "to": 2, "ask": "Who?", "etag": "e", "length": 9}]
    names = {
        "uri_column": "path",
        "id_column": "clip",
        "start_column": "from",
        "end_column": "to",
        "questions_column": "ask",
        "version_column": "etag",
        "size_column": "length",
    }
    (ref,) = refs(write(videos / "m.csv", rows), manifest=names)
    assert (ref.video_id, ref.start_seconds, ref.end_seconds, ref.size_bytes) == ("x", 1.0, 2.0, 9)
    assert ref.version.startswith("e~")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"manifest": {"uri_column": "path"}},
            r"no column 'path'.*it has 'uri'.*corpus\.manifest\.uri_column",
        ),
        ({"manifest": {"id_column": "key"}}, r"no column 'key'.*corpus\.manifest\.id_column"),
        ({"columns": ["title"]}, r"no column 'title'.*corpus\.columns"),
    ],
)
def test_a_column_that_is_not_there(videos: Path, kind: str, options: Any, said: str) -> None:
    manifest = write(videos / f"m.{kind}", [{"uri": "a.mp4", "n": 1}] * 3)
    with pytest.raises(UserError, match=said):
        refs(manifest, **options)


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("m.parquet", b"PAR1", "no Parquet file"),
        ("m.parquet", b"uri\na.mp4\n" * 10, "no Parquet file"),
        ("m.parquet", b"x" * 100 + (2**31).to_bytes(4, "little") + b"PAR1", "bytes of metadata"),
        ("m.parquet", b"x" * 100 + (50).to_bytes(4, "little") + b"PAR1", "cannot be read"),
        ("m.csv", b'uri\n"a.mp4\nb.mp4\n', "no end to the row after row 0"),
        ("m.csv", b'uri\na.mp4\n"' + b"x" * 200_000, "no end to the row after row 1"),
        ("m.csv", b"uri\n" + b"x" * (MAX_LINE_BYTES + 1), "line 2 is longer than"),
        ("m.csv", b"uri,uri\na,b\n", "column 'uri' twice"),
        ("m.csv", b"", "no column 'uri'; it has none"),
        ("m.csv", "uri\na.mp4\n".encode("utf-16"), "UTF-16"),
        ("m.csv", b"uri, video_id\na.mp4,1\n", "a column ' video_id': write 'video_id', without blanks"),
        ("m.csv", b"uri,video_id\ra.mp4,1\r", "lines end in LF or CR LF"),
        ("m.csv.gz", b"uri\na.mp4\n", "cannot be read: BadGzipFile"),
        ("m.csv.gz", gzip.compress(b"uri\na.mp4\n", mtime=0)[:-4], "cannot be read: EOFError"),
        ("m.csv.zst", packed(b"uri\na.mp4\n")[:-4], "cannot be read"),
        ("m.csv.zst", packed(b"uri\na.mp4\n") + b"more than that", "cannot be read"),
        ("m.jsonl", b'{"uri": "' + b"x" * MAX_LINE_BYTES, "line 1 is longer than"),
        ("m.jsonl", b'[{"uri": "a.mp4"}]', r"no column 'uri' in its first 1 rows .*is no JSON object"),
        ("m.csv", ",".join(f"c{number}" for number in range(300_000)).encode(), "300000 columns"),
        ("m.csv", ",".join(f"c{number}" for number in range(1_000_000)).encode(), "line 1 is longer than"),
        ("m.jsonl", json.dumps(dict.fromkeys(map(str, range(MAX_COLUMNS + 1)))).encode(), "columns, more"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_manifest_is_refused(videos: Path, name: str, body: bytes, said: str) -> None:
    (videos / name).write_bytes(body)
    with pytest.raises(UserError, match=said):
        refs(videos / name)


def test_a_parquet_file_of_very_many_columns_is_refused(videos: Path) -> None:
    names = ["uri", *(f"c{number}" for number in range(MAX_COLUMNS))]
    pq.write_table(pa.table([pa.array(["a.mp4"])] * len(names), names=names), videos / "m.parquet")
    with pytest.raises(UserError, match=f"has {MAX_COLUMNS + 1} columns"):
        refs(videos / "m.parquet")


def test_a_parquet_file_with_a_flipped_bit_is_refused_where_its_pages_have_checksums(videos: Path) -> None:
    path = videos / "m.parquet"
    pq.write_table(pa.table({"uri": ["a.mp4", "b.mp4"]}), path, compression="none", write_page_checksum=True)
    data = path.read_bytes()
    assert data.count(b"a.mp4") >= 1
    path.write_bytes(data.replace(b"a.mp4", b"c.mp4", 1))
    with pytest.raises(UserError, match=r"cannot be read: OSError: .*CRC checksum verification failed"):
        refs(path)


def test_a_manifest_that_is_missing_empty_or_of_another_kind(videos: Path) -> None:
    with pytest.raises(UserError, match="there is no file or folder"):
        refs(videos / "absent" / "m.csv")
    (videos / "m.csv").write_text("uri\n")
    with pytest.raises(UserError, match="there are no rows"):
        refs(videos / "m.csv")
    with pytest.raises(UserError, match="is no manifest: its name must end in"):
        refs(videos / "videos" / "a.mp4", format="manifest")
    with pytest.raises(UserError, match="no manifest among 3 files"):
        refs(videos / "videos", format="manifest")


def test_a_folder_or_a_glob_of_manifests(videos: Path) -> None:
    (videos / "lists").mkdir()
    write(videos / "lists" / "2.csv", [{"uri": "../videos/b.mp4"}])
    write(videos / "lists" / "1.jsonl", [{"uri": "../videos/a.mp4"}])
    (videos / "lists" / "readme.txt").write_text("lists")
    both = refs(videos / "lists", format="manifest")
    assert [Path(ref.uri).name for ref in both] == ["a.mp4", "b.mp4"]
    assert refs(videos / "lists" / "*.csv") == both[1:]


def test_ids_that_are_used_twice_are_named_with_their_rows(videos: Path) -> None:
    rows = [{"uri": f"{name}.mp4", "video_id": key} for name, key in (("a", "1"), ("b", "2"), ("c", "1"))]
    manifest = write(videos / "m.csv", rows)
    said = r"m\.csv row 1 \('.*/a\.mp4'\) and .*m\.csv row 3 \('.*/c\.mp4'\) have the same id '1'"
    with pytest.raises(UserError, match=said):
        refs(manifest)
    assert len(refs(manifest, limit=2)) == 2


def test_patterns_hold_for_rows_only_where_they_are_set(videos: Path) -> None:
    manifest = write(videos / "m.csv", [{"uri": "a"}, {"uri": "b.mp4"}, {"uri": "s3x://c/d.avi?q"}])
    assert len(refs(manifest)) == 3
    assert [ref.uri for ref in refs(manifest, include="*.avi*")] == ["s3x://c/d.avi?q"]
    assert len(refs(manifest, exclude="*.mp4")) == 2
    with pytest.raises(UserError, match="3 rows, of which 3 match none of"):
        refs(manifest, include="*.mkv")


def test_an_address_that_no_store_understands_is_a_failure(videos: Path) -> None:
    write(videos / "m.csv", [{"uri": "nosuch://a/b.mp4"}, {"uri": "videos"}, {"uri": "videos/a.mp4"}])
    strange, folder, good = refs(videos / "m.csv")
    assert "'nosuch://a/b.mp4' cannot be opened" in problem(strange)
    assert "is a folder: a manifest names videos one by one" in problem(folder)
    assert good.problem is None


def test_size_limits_and_slices_hold_for_rows(videos: Path) -> None:
    rows = [{"uri": f"{size}.mp4", "size_bytes": size, "version": "v"} for size in (1, 10, 100)]
    manifest = write(videos / "m.parquet", rows)
    small, large = refs(manifest, min_video_bytes=5, max_video_bytes=50)
    assert (small.size_bytes, small.problem) == (10, None)
    assert large.problem is not None
    assert large.problem.reason is Reason.TOO_LARGE
    slices = [refs(manifest, slice=f"{part}/3") for part in range(3)]
    whole = sorted((ref for part in slices for ref in part), key=lambda ref: ref.size_bytes)
    assert whole == refs(manifest)
