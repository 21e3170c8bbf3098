"""What a tar shard holds, as a small table: made from its headers once, then kept beside the output."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.apple_double import MAGIC_BYTES, is_apple_double, may_be_apple_double
from pipeline.corpus.entries import Entry
from pipeline.corpus.tar_headers import Member, RangeReader, TarError, read_members
from pipeline.errors import Reason
from pipeline.records import Problem

__all__ = [
    "IndexCache",
    "Indexed",
    "ShardIndex",
    "build_index",
    "cache_name",
    "from_bytes",
    "is_json",
    "json_members",
    "metadata_of",
    "to_bytes",
]

MAX_MEMBERS = 200_000
MAX_JSON_BYTES = 2**20
_FORMAT = "2"
_JSON = ".json"
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.binary(), nullable=False),  # names need not be text
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("is_sparse", pa.bool_(), nullable=False),
        pa.field("fields", pa.string()),  # of a .json member: the fields asked for, as JSON
        pa.field("fault", pa.string()),  # why it has none
        pa.field("is_apple_double", pa.bool_(), nullable=False),
    ]
)


class IndexCache(Protocol):
    """Where indexes are kept between runs. Several threads may ``get`` at once, one will ``put``."""

    def get(self, name: str) -> bytes | None:
        """What was put under the name; None where nothing was."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Keep the bytes under the name, whole or not at all."""
        ...


@dataclass(frozen=True)
class Indexed:
    """One member, and what it says, if it is a video's JSON."""

    member: Member
    fields: Mapping[str, Any] | None = None
    fault: str | None = None
    is_apple_double: bool = False


@dataclass(frozen=True)
class ShardIndex:
    """The regular files of one shard, and what is wrong with the shard, if anything is."""

    members: Sequence[Indexed]
    problem: Problem | None = None


def json_members(names: Collection[str]) -> dict[str, str]:
    """The .json members among some by what is before that suffix; of two, the one in small letters."""
    found = {name[: -len(_JSON)]: name for name in names if is_json(name) and not name.endswith(_JSON)}
    return found | {name[: -len(_JSON)]: name for name in names if name.endswith(_JSON)}


def is_json(name: str) -> bool:
    """Whether a member is named as JSON is, in letters of either size, as videos may be."""
    return name.lower().endswith(_JSON)


def metadata_of(name: str, among: Mapping[str, str]) -> str | None:
    """The .json that belongs to a member: of its own stem, else of its WebDataset sample.

    ``2024.05.01_x.mp4`` has ``2024.05.01_x.json``. A sample is named up to the first dot of the base name, so
    without a JSON of their own ``a.mp4`` and ``a.low.mp4`` have ``a.json``. ``among``: of ``json_members``.
    """
    beside = (among.get(stem, name) for stem in (_stem(name), _sample(name)))
    return next((one for one in beside if one != name), None)


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)


def _sample(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def build_index(reader: RangeReader, wanted: frozenset[str]) -> ShardIndex:
    """The index of a shard, from its headers, and from its .json members where fields are wanted.

    Of members with one name the last counts, as for tar. Raises what reading raises.
    """
    found: dict[str, Indexed] = {}
    problem = None
    try:
        for member in read_members(reader):
            found.pop(member.name, None)
            found[member.name] = _indexed(reader, member, wanted)
            if len(found) > MAX_MEMBERS:
                rule = f"has more than {MAX_MEMBERS} members: split it"
                return ShardIndex((), Problem(Reason.TOO_LARGE, rule))
    except TarError as broken:
        reason = Reason.INVALID_INPUT if broken.is_compressed else Reason.CORRUPT
        problem = Problem(reason, f"is {broken}")
    if wanted:
        _read_dotted(reader, found, wanted)
    return ShardIndex(list(found.values()), problem)


def _indexed(reader: RangeReader, member: Member, wanted: frozenset[str]) -> Indexed:
    """With what it says where it is a sample's JSON: mostly that came with the header."""
    is_marked = may_be_apple_double(member.name) and not member.is_sparse
    if is_marked and is_apple_double(reader.read(member.offset, min(MAGIC_BYTES, member.num_bytes))):
        return Indexed(member, is_apple_double=True)
    if not wanted or not _is_sample_json(member.name):
        return Indexed(member)
    return _read_json(reader, member, wanted)


def _read_dotted(reader: RangeReader, found: dict[str, Indexed], wanted: frozenset[str]) -> None:
    """Read what has dots in its name only where a member has it for its own: others may be anything."""
    stems = {_stem(name) for name in found if not is_json(name)}
    for name in [name for name in found if is_json(name) and name[: -len(_JSON)] in stems]:
        if not _is_sample_json(name) and not found[name].is_apple_double:
            found[name] = _read_json(reader, found[name].member, wanted)


def _is_sample_json(name: str) -> bool:
    return is_json(name) and name[: -len(_JSON)] == _sample(name)


def _read_json(reader: RangeReader, member: Member, wanted: frozenset[str]) -> Indexed:
    if member.num_bytes > MAX_JSON_BYTES or member.is_sparse:
        return Indexed(
            member, fault=f"{member.name!r} has {member.num_bytes} bytes, at most {MAX_JSON_BYTES} are read"
        )
    data = reader.read(member.offset, member.num_bytes)
    try:
        values = json.loads(data.decode("utf-8", "surrogateescape")) if data else None
    except (ValueError, RecursionError) as error:
        return Indexed(member, fault=f"{member.name!r} is not JSON: {error}")
    if not isinstance(values, dict):
        return Indexed(member, fault=f"{member.name!r} is no JSON object")
    return Indexed(member, {name: values[name] for name in wanted if values.get(name) is not None})


def cache_name(shard: Entry, wanted: frozenset[str]) -> str:
    """The name of a shard's index: a hash of its uri, its version and the fields wanted of it."""
    text = json.dumps([_FORMAT, shard.uri, shard.version, shard.size_bytes, sorted(wanted)])
    return f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.parquet"


def to_bytes(index: ShardIndex) -> bytes:
    """The index as a Parquet file."""
    rows = [
        {
            **one.member._asdict(),
            "name": os.fsencode(one.member.name),
            "fields": None if one.fields is None else json.dumps(one.fields),
            "fault": None if one.fault is None else one.fault.encode("utf-8", "backslashreplace").decode(),
            "is_apple_double": one.is_apple_double,
        }
        for one in index.members
    ]
    problem = index.problem and {"reason": index.problem.reason.value, "message": index.problem.message}
    metadata = {"flashvid.shard": json.dumps({"format": _FORMAT, "num": len(rows), "problem": problem})}
    target = io.BytesIO()
    table = pa.Table.from_pylist(rows, _SCHEMA.with_metadata(metadata))
    pq.write_table(table, target, compression="zstd", write_page_checksum=True)
    return target.getvalue()


def from_bytes(data: bytes, num_bytes: int) -> ShardIndex | None:
    """The index that ``to_bytes`` wrote of a shard of so many bytes; None for anything else."""
    try:
        table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
        about = json.loads((table.schema.metadata or {})[b"flashvid.shard"])
        if not table.schema.equals(_SCHEMA) or about["format"] != _FORMAT or about["num"] != len(table):
            return None
        members = [_from_row(row) for row in table.to_pylist()]
        problem = about["problem"] and Problem(
            Reason(about["problem"]["reason"]), about["problem"]["message"]
        )
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    is_within = all(0 <= one.member.offset <= num_bytes and one.member.num_bytes >= 0 for one in members)
    return ShardIndex(members, problem) if is_within else None


def _from_row(row: Mapping[str, Any]) -> Indexed:
    member = Member(os.fsdecode(row["name"]), row["offset"], row["num_bytes"], row["is_sparse"])
    fields = None if row["fields"] is None else json.loads(row["fields"])
    return Indexed(member, fields, row["fault"], row["is_apple_double"])
