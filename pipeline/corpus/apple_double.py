"""Files that macOS puts beside others on foreign disks and in archives: named as videos, and none.

RFC 1740, appendix B: an AppleDouble header file holds a file's resource fork and Finder notes.
"""

from __future__ import annotations

__all__ = ["MAGIC_BYTES", "is_apple_double", "may_be_apple_double"]

MAGIC_BYTES = 4
_MAGIC = b"\x00\x05\x16\x07"
_FOLDER = "__MACOSX"  # where zip archives have them


def may_be_apple_double(name: str) -> bool:
    """Whether a name, with the folders before it, is worth a look at the first bytes; most are not."""
    *folders, base = name.split("/")
    return base.startswith("._") or _FOLDER in folders


def is_apple_double(head: bytes) -> bool:
    """Whether a file that begins so is one. No container of videos begins with these four bytes."""
    return head[:MAGIC_BYTES] == _MAGIC
