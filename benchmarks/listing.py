"""How fast a large corpus is listed, and how much memory that takes: `python -m benchmarks.listing`.

Cases: S3 in pages of 1000 keys, made up in the process (the network is not in it: a real store answers some
ten pages a second); one row per video in a Parquet and in a CSV manifest; one flat local folder of empty
files; tar shards of 1000 members, with and without a kept index. Each runs in a process of its own. Seconds
are the processor's, because others may use the machine; memory is what the process grows by from its first
video to the end, with the references thrown away as they come (the names of the local folder are there before
that: `first_seconds` and some 80 bytes a name).
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import itertools
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.memory import forget_peak, status_bytes
from benchmarks.tables import markdown, save
from pipeline.config import CorpusConfig
from pipeline.corpus import IndexCache, list_videos

__all__ = ["CASES", "PagedStore", "listing_table", "main", "measure_listing"]

PAGE = 1000
MEMBERS = 1000
_ROOT = Path(__file__).resolve().parent.parent


class PagedStore(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A bucket of made-up videos in folders of 500 that knows what s3fs is asked for when listing.

    ``num_videos`` is read when a page is asked for; nothing is kept.
    """

    protocol = ("s3", "s3a")
    cachable = False
    num_videos = 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Nothing but the prefix ``videos`` is there."""
        raise FileNotFoundError(path)

    def call_s3(self, method: str, **named: Any) -> dict[str, Any]:
        """A page of ``list_objects_v2``; only that method, and only the whole of ``videos/``."""
        assert method == "list_objects_v2"
        assert named["Prefix"] == "videos/"
        start = int(named.get("ContinuationToken", 0))
        end = min(start + int(named.get("MaxKeys", PAGE)), type(self).num_videos)
        page: dict[str, Any] = {"Contents": [_item(number) for number in range(start, end)]}
        if end < type(self).num_videos:
            page |= {"IsTruncated": True, "NextContinuationToken": str(end)}
        return page


def _item(number: int) -> dict[str, Any]:
    key = f"videos/{number // 500:06}/{number:09}.mp4"
    return {"Key": key, "Size": 10**6 + number, "ETag": f'"{number:032x}"', "LastModified": None}


class _Kept:
    """An IndexCache in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        return self._kept.get(name)

    def put(self, name: str, data: bytes) -> None:
        self._kept[name] = data


Made = tuple[CorpusConfig, IndexCache | None]


def _paged(num_videos: int, _: Path) -> Made:
    fsspec.register_implementation("s3", PagedStore, clobber=True)
    PagedStore.num_videos = num_videos
    return CorpusConfig(uri="s3://bucket/videos"), None


def _rows(num_videos: int) -> Iterator[tuple[str, str, int]]:
    return ((f"s3://bucket/{_item(number)['Key']}", f"{number:032x}", 10**6) for number in range(num_videos))


def _parquet(num_videos: int, folder: Path) -> Made:
    names = ["uri", "version", "size_bytes"]
    rows = _rows(num_videos)
    schema = pa.schema([("uri", pa.string()), ("version", pa.string()), ("size_bytes", pa.int64())])
    with pq.ParquetWriter(folder / "list.parquet", schema) as writer:
        while block := list(itertools.islice(rows, 100_000)):
            columns = [pa.array(column) for column in zip(*block, strict=True)]
            writer.write_table(pa.table(columns, names=names))
    return CorpusConfig(uri=str(folder / "list.parquet")), None


def _csv(num_videos: int, folder: Path) -> Made:
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("uri", "version", "size_bytes"), *_rows(num_videos)])
    return CorpusConfig(uri=str(folder / "list.csv")), None


def _local(num_videos: int, folder: Path) -> Made:
    for number in range(num_videos):
        (folder / f"{number:09}.mp4").touch()
    return CorpusConfig(uri=str(folder)), None


def _shards(num_videos: int, folder: Path) -> Made:
    for shard in range(num_videos // MEMBERS):
        with tarfile.open(folder / f"{shard:04}.tar", "w") as archive:
            for number in range(MEMBERS):
                info = tarfile.TarInfo(f"{shard:04}/{number:06}.mp4")
                info.size = 5000
                archive.addfile(info, io.BytesIO(bytes(5000)))
    return CorpusConfig(uri=str(folder / "*.tar")), None


def _kept_shards(num_videos: int, folder: Path) -> Made:
    config, _ = _shards(num_videos, folder)
    kept = _Kept()
    for _ in list_videos(config, index_cache=kept):
        pass
    return config, kept


# Name -> what makes the corpus, and how many videos it has by default.
CASES: dict[str, tuple[Callable[[int, Path], Made], int]] = {
    "s3 pages": (_paged, 1_000_000),
    "parquet manifest": (_parquet, 1_000_000),
    "csv manifest": (_csv, 1_000_000),
    "local folder": (_local, 100_000),
    "tar shards": (_shards, 50_000),
    "tar shards, kept index": (_kept_shards, 50_000),
}


def measure_listing(name: str, num_videos: int) -> dict[str, Any]:
    """Seconds and growth in bytes of listing one case of so many videos, in this process."""
    with tempfile.TemporaryDirectory() as folder, _collected():
        config, cache = CASES[name][0](num_videos, Path(folder))
        gc.collect()
        start, processor = time.perf_counter(), time.process_time()
        listing = list_videos(config, index_cache=cache)
        next(listing)
        first_seconds = time.perf_counter() - start
        forget_peak()
        before = status_bytes("VmRSS")
        num_listed = 1 + sum(1 for _ in listing)
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        grown = max(status_bytes("VmHWM"), status_bytes("VmRSS")) - before
    return {
        "case": name,
        "videos": num_listed,
        "seconds": seconds,
        "processor_seconds": processor,
        "first_seconds": first_seconds,
        "videos_per_processor_second": num_listed / processor,
        "growth_bytes": grown,
    }


@contextmanager
def _collected() -> Iterator[None]:
    """What making the corpus left behind is collected before, and not looked at again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def listing_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line per case; memory in MB of 10^6 bytes."""
    rows = [
        {
            "corpus": case["case"],
            "videos": case["videos"],
            "processor s": f"{case['processor_seconds']:.1f}",
            "elapsed s": f"{case['seconds']:.1f}",
            "first after s": f"{case['first_seconds']:.3f}",
            "videos per processor s": f"{case['videos_per_processor_second']:.0f}",
            "grows MB": f"{case['growth_bytes'] / 1e6:.0f}",
        }
        for case in cases
    ]
    return markdown(rows)


def _in_own_process(name: str, num_videos: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.listing", "--only", name, "--videos", str(num_videos)],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every case, or the one asked for, and prints or writes what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listing", description=__doc__)
    parser.add_argument("--only", choices=CASES, help="one case, in this process; prints JSON")
    parser.add_argument("--videos", type=int, help="instead of each case's own number")
    parser.add_argument("-o", "--output", type=Path, help="JSON file; a table goes beside it")
    wanted = parser.parse_args(arguments)
    if wanted.only:
        print(json.dumps(measure_listing(wanted.only, wanted.videos or CASES[wanted.only][1])))
        return
    import torch

    from benchmarks.machine import machine_facts

    cases = [_in_own_process(name, wanted.videos or number) for name, (_, number) in CASES.items()]
    result = {"benchmark": "listing", "machine": machine_facts(torch.device("cpu")), "cases": cases}
    save(result, listing_table(cases), wanted.output)


if __name__ == "__main__":
    main()
