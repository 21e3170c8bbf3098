"""The Parquet schemas of the output, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

__all__ = ["COLUMN_TYPES", "FAILURE_SCHEMA", "VIDEO_SCHEMA", "video_schema"]


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_ANSWER = pa.struct(
    [
        _required("question_id", pa.string()),
        _required("question", pa.string()),
        _required("answer", pa.string()),
        _required("finish_reason", pa.string()),
        _required("output_tokens", pa.int32()),
    ]
)
_ANSWERS = pa.list_(pa.field("item", _ANSWER, nullable=False))
_SEGMENT = pa.struct(
    [
        _required("start_seconds", pa.float64()),
        _required("end_seconds", pa.float64()),
        _required("caption", pa.string()),
        _required("answers", _ANSWERS),
    ]
)
_TIMESTAMP = pa.timestamp("us", tz="UTC")

VIDEO_SCHEMA = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("uri", pa.string()),
        _required("version", pa.string()),
        _required("caption", pa.string()),
        _required("caption_finish_reason", pa.string()),
        _required("answers", _ANSWERS),
        _required("segments", pa.list_(pa.field("item", _SEGMENT, nullable=False))),
        _required("duration_seconds", pa.float64()),
        _required("width", pa.int32()),
        _required("height", pa.int32()),
        _required("fps", pa.float64()),
        _required("codec", pa.string()),
        _required("decoder", pa.string()),
        _required("num_frames", pa.int32()),
        _required("baseline_frames", pa.int32()),
        _required("baseline_visual_tokens", pa.int64()),
        _required("visual_tokens_before", pa.int64()),
        _required("visual_tokens_budget", pa.int64()),
        _required("visual_tokens_after", pa.int64()),
        _required("visual_tokens_mean", pa.float64()),
        _required("retention_ratio", pa.float64()),
        _required("output_tokens", pa.int32()),
        pa.field("degraded", pa.string()),
        _required("decode_seconds", pa.float64()),
        _required("encode_seconds", pa.float64()),
        _required("compress_seconds", pa.float64()),
        _required("prefill_seconds", pa.float64()),
        _required("text_decode_seconds", pa.float64()),
        _required("model", pa.string()),
        _required("model_revision", pa.string()),
        _required("fingerprint", pa.string()),
        _required("run_id", pa.string()),
        _required("attempt", pa.int32()),
        _required("indexed_at", _TIMESTAMP),
    ]
)

FAILURE_SCHEMA = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("uri", pa.string()),
        _required("version", pa.string()),
        _required("stage", pa.string()),
        _required("reason", pa.string()),
        _required("message", pa.string()),
        _required("attempt", pa.int32()),
        _required("is_final", pa.bool_()),
        _required("fingerprint", pa.string()),
        _required("run_id", pa.string()),
        _required("failed_at", _TIMESTAMP),
        _required("worker_id", pa.string()),
        _required("details", pa.map_(pa.string(), pa.string())),
    ]
)

COLUMN_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": _TIMESTAMP,
}


def video_schema(columns: Mapping[str, str] = MappingProxyType({})) -> pa.Schema:
    """VIDEO_SCHEMA, and after it the columns carried over from a manifest: name -> a name in COLUMN_TYPES."""
    return pa.schema([*VIDEO_SCHEMA, *(pa.field(name, COLUMN_TYPES[kind]) for name, kind in columns.items())])
