"""S3 objects whose keys end in "/": s3fs takes the slash off an address, and then means another object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.stores.filesystems import RangeFile

__all__ = ["SlashedKey", "trailing_slashes"]


def trailing_slashes(uri: str, path: str) -> str:
    """What s3fs took off the end of an address to get its path: a part of a key, unless there is none."""
    slashes = uri[len(uri.rstrip("/")) :]
    return slashes if "/" in path or len(slashes) > 1 else ""


class SlashedKey:
    """An S3 filesystem on which ``path``, as given, is one object; all else is the filesystem's own."""

    def __init__(self, store: Any, path: str) -> None:
        self._store, self._path = store, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def info(self, path: str) -> Mapping[str, Any]:
        """As fsspec's; raises FileNotFoundError where there is no such key, and none below it."""
        if path != self._path:
            found: Mapping[str, Any] = self._store.info(path)
            return found
        bucket, _, key = path.partition("/")
        try:
            head = self._store.call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            below = self._store.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
            if not below.get("Contents"):
                raise
            return {"name": path, "size": 0, "type": "directory"}
        times = {name: head[name] for name in ("ETag", "LastModified") if name in head}
        return {"name": path, "size": head["ContentLength"], "type": "file", **times}

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """As fsspec's, for reading; nothing is read ahead."""
        if path != self._path:
            return self._store.open(path, mode, **options)
        size = int(self.info(path)["size"])
        return RangeFile(lambda start, end: bytes(self._store.cat_file(path, start=start, end=end)), size)
