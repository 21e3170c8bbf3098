"""What an address is: local or not, one spelling per file, patterns in it, and what is not taken for one."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote_to_bytes

from fsspec.utils import glob_translate

from pipeline.errors import UserError

__all__ = [
    "NO_VERSION",
    "TAR_URI",
    "canonical_uri",
    "glob_pattern",
    "has_wildcard",
    "is_layered",
    "local_path_of",
    "remote_uri",
    "split_glob",
    "text_of_path",
    "without_query",
]

TAR_URI = "tar://"  # tar://member::archive
NO_VERSION = "0-0"  # of what is not there, or may not be looked at: it ends as a failure when it is read

_GLOB = re.compile(r"[*?\[]")

# Filesystems upon filesystems: copies that nobody bounds, or members without an address of their own.
_LAYERS = frozenset(
    {
        "blockcache",
        "cached",
        "dir",
        "filecache",
        "generic",
        "libarchive",
        "reference",
        "simplecache",
        "tar",
        "zip",
    }
)

_SAME_SCHEME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


def local_path_of(uri: str) -> str | None:
    """The path of a local uri (plain, or ``file://`` percent-encoded), else None."""
    if uri.startswith("file://"):
        path = uri.removeprefix("file://localhost" if uri.startswith("file://localhost/") else "file://")
        return os.fsdecode(unquote_to_bytes(path))
    if uri.startswith("/") or not ("://" in uri or is_layered(uri)):
        return uri
    return None


def is_layered(uri: str) -> bool:
    """Whether a uri names one filesystem upon another, as ``simplecache::s3://…`` and ``zip://…::…`` do."""
    scheme, mark, _ = uri.partition("://")
    first, layers, _ = scheme.partition("::")
    return bool((mark or layers) and first in _LAYERS) or bool(mark and layers)


def canonical_uri(uri: str) -> str:
    """One spelling per file. Local: an absolute path, its folder's links resolved; else a scheme per store.

    A local name that is not UTF-8 becomes a percent-encoded ``file://`` uri, because rows hold text.
    """
    path = local_path_of(uri)
    if path is None:
        return remote_uri(uri)
    folder, name = os.path.split(os.path.expanduser(path))
    return text_of_path(os.path.join(os.path.realpath(folder or "."), name))


def remote_uri(uri: str) -> str:
    """A uri that is not local, with one scheme per store: ``s3a://`` is ``s3://``, ``abfs://`` is ``az://``."""
    scheme, mark, rest = uri.partition("://")
    return f"{_SAME_SCHEME.get(scheme, scheme)}{mark}{rest}"


def without_query(uri: str) -> str:
    """The uri up to a web server's "?": in other stores that is a part of the name."""
    return uri.partition("?")[0] if uri.startswith(("http://", "https://")) else uri


def text_of_path(path: str) -> str:
    """An absolute path as a uri that is text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def has_wildcard(path: str) -> bool:
    """Whether a path has one of ``* ? [``."""
    return _GLOB.search(path) is not None


def split_glob(path: str) -> tuple[str, str]:
    """The folder above the first part with a wildcard, and the rest."""
    parts = path.split("/")
    at = next(number for number, part in enumerate(parts) if has_wildcard(part))
    return "/".join(parts[:at]) or "/", "/".join(parts[at:])


def glob_pattern(path: str) -> tuple[re.Pattern[str], int | None]:
    """What a whole path must match, and how many folders below ``split_glob``'s can match; None: any number.

    Raises UserError for a pattern that is none.
    """
    _, rest = split_glob(path)
    try:
        return re.compile(glob_translate(path)), None if "**" in rest else rest.count("/")
    except ValueError as error:
        raise UserError(f"corpus.uri: {path!r} is no pattern: {error}") from None
