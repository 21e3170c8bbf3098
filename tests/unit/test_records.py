"""Records agree with the Parquet schemas written by hand, and cross processes whole."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import Reason, Stage, VideoError
from pipeline.output.schemas import FAILURE_SCHEMA, VIDEO_SCHEMA
from pipeline.records import VIDEO_COLUMNS, Answer, Failure, Frames, Segment, VideoRow
from tests.unit.samples import make_failure, make_ref, make_row

TIMES = {"indexed_at_us": "indexed_at", "failed_at_us": "failed_at"}


def names(kind: type) -> list[str]:
    return [TIMES.get(item.name, item.name) for item in fields(kind)]


def struct_names(schema: pa.Schema, name: str) -> list[str]:
    struct = schema.field(name).type.value_type
    return [struct.field(number).name for number in range(struct.num_fields)]


def test_schemas_and_records_have_the_same_fields_in_the_same_order() -> None:
    assert [*VIDEO_SCHEMA.names, "extra"] == names(VideoRow)
    assert VIDEO_SCHEMA.names == list(VIDEO_COLUMNS)
    assert FAILURE_SCHEMA.names == names(Failure)
    assert struct_names(VIDEO_SCHEMA, "answers") == names(Answer)
    assert struct_names(VIDEO_SCHEMA, "segments") == names(Segment)


def test_to_record_has_exactly_the_fields_of_the_schema() -> None:
    """from_pylist drops what it does not know and fills what is missing, so neither may happen."""
    assert sorted(make_row().to_record()) == sorted(VIDEO_SCHEMA.names)
    assert sorted(make_failure().to_record()) == sorted(FAILURE_SCHEMA.names)


@pytest.mark.parametrize("row", [make_row(), make_row(answers=(), segments=(), degraded="8 frames")])
def test_a_row_becomes_a_table_and_back(row: VideoRow) -> None:
    record = row.to_record()
    (back,) = pa.Table.from_pylist([record], schema=VIDEO_SCHEMA).to_pylist()
    assert int(back.pop("indexed_at").timestamp() * 1e6) == pytest.approx(record.pop("indexed_at"), abs=2)
    assert back == record


def test_a_failure_becomes_a_table_and_back() -> None:
    record = make_failure(reason=Reason.NO_FRAMES, details={}).to_record()
    (back,) = pa.Table.from_pylist([record], schema=FAILURE_SCHEMA).to_pylist()
    assert back["reason"] == "no_frames"
    assert back["details"] == []
    assert (back["is_final"], back["attempt"]) == (True, 1)


def test_only_what_may_be_absent_is_nullable() -> None:
    assert [item.name for item in VIDEO_SCHEMA if item.nullable] == ["degraded"]
    assert [item.name for item in FAILURE_SCHEMA if item.nullable] == []


def test_to_record_leaves_the_row_alone() -> None:
    row = make_row()
    before = pickle.dumps(row)
    row.to_record()["answers"].clear()
    assert pickle.dumps(row) == before


@pytest.mark.parametrize("value", [make_ref(questions=()), make_row(), make_failure()])
def test_values_are_frozen_and_pickle(value: object) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    with pytest.raises(FrozenInstanceError):
        value.video_id = "other"  # type: ignore[attr-defined]


def test_keys_agree() -> None:
    assert make_ref(3).key == make_row(3).key == make_failure(3).key == ("video-3", "v3")


def test_a_video_error_crosses_processes_with_its_class() -> None:
    error = VideoError(Stage.DECODING, Reason.DECODE_TIMEOUT, "no frame within 120 s")
    back = pickle.loads(pickle.dumps(error))
    assert (back.stage, back.reason, back.message) == (error.stage, error.reason, error.message)
    assert str(back) == "decode_timeout during decoding: no frame within 120 s"


def test_what_the_file_itself_causes_is_not_tried_again() -> None:
    permanent = {
        Reason.EMPTY_FILE,
        Reason.CORRUPT,
        Reason.UNSUPPORTED_CODEC,
        Reason.NO_FRAMES,
        Reason.TOO_LARGE,
    }
    assert not any(reason.is_transient for reason in permanent)
    assert Reason.READ_ERROR.is_transient
    assert Reason.CRASHED_WORKER.is_transient


def make_frames(pts_seconds: list[float], source_fps: float = 25.0) -> Frames:
    num = len(pts_seconds)
    return Frames(
        data=np.zeros((num, 28, 56, 3), np.uint8),
        pts_seconds=np.array(pts_seconds),
        source_fps=source_fps,
        source_num_frames=100,
        duration_seconds=4.0 if num else 0.0,
        width=56,
        height=28,
        codec="h264",
        decoder="decord",
        decode_seconds=0.1,
    )


@pytest.mark.parametrize(
    ("pts_seconds", "source_fps", "expected"),
    [
        ([0.0, 2.0, 4.0], 25.0, 2.0),
        ([1.0, 1.5, 4.0], 25.0, 1.5),
        ([2.0], 25.0, 4.0),
        ([], 25.0, 1 / 25),
        ([], 0.0, 1.0),
    ],
)
def test_seconds_per_frame_come_from_timestamps(
    pts_seconds: list[float], source_fps: float, expected: float
) -> None:
    frames = make_frames(pts_seconds, source_fps)
    assert frames.seconds_per_frame == pytest.approx(expected)
    assert frames.num_bytes == len(pts_seconds) * 28 * 56 * 3
