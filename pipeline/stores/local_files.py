"""Files and folders of this machine that appear whole or not at all, and survive a power cut."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import uuid
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from pipeline.errors import UserError

__all__ = [
    "Staged",
    "create_file",
    "exchange",
    "exchange_folders",
    "is_temporary",
    "make_folder",
    "stage",
    "sync_folder",
    "temporary_beside",
    "temporary_name",
    "write_file",
]

_TEMPORARY_SUFFIX = ".tmp"
_HERE = -100  # AT_FDCWD
_RENAME_EXCHANGE = 2


def write_file(target: str, data: bytes, ready: Callable[[], None] | None = None) -> None:
    """Write a file in place of one of that name: temporary name, fsync, rename, fsync of the folder.

    ready: called before the rename; nothing is written where it raises.
    """
    with temporary_beside(target, data) as temporary:
        if ready is not None:
            ready()
        os.replace(temporary, target)
    sync_folder(os.path.dirname(target))


def create_file(target: str, data: bytes) -> bool:
    """Write a file unless there is one of that name; False if there is. Exactly one of many callers wins.

    ``data`` must differ between callers.
    """
    with temporary_beside(target, data) as temporary:
        try:
            os.link(temporary, target)
        except FileExistsError:
            return _holds(target, data)  # NFS: made, but the answer got lost
        except OSError:  # no hard links here (FAT, some network mounts)
            return _create_plainly(target, data)
    sync_folder(os.path.dirname(target))
    return True


def _holds(path: str, data: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == data
    except FileNotFoundError:  # and gone again
        return False


def is_temporary(name: str) -> bool:
    """Whether a base name is that of a file that is still being written, or was when its writer died."""
    return name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX)


def temporary_name(target: str) -> str:
    """A fresh path beside the target that readers ignore; its folder is there afterwards."""
    folder, base = os.path.split(target)
    make_folder(folder)
    return os.path.join(folder, f".{base}.{uuid.uuid4().hex[:8]}{_TEMPORARY_SUFFIX}")


@contextlib.contextmanager
def temporary_beside(target: str, data: bytes) -> Iterator[str]:
    """A complete, synced file under a name that readers ignore; gone afterwards, moved or not."""
    temporary = temporary_name(target)
    try:
        _create_plainly(temporary, data)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _create_plainly(path: str, data: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError as error:
        error.filename = error.filename or path  # a full disk does not say which
        raise
    return True


def make_folder(folder: str) -> None:
    """Make a folder and those above it, each synced; UserError where that cannot be."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    make_folder(parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise UserError(f"{folder!r} must be a folder to write to, but it is a file") from None
        return
    except PermissionError:
        raise UserError(
            f"cannot create the folder {folder!r}: permission denied; choose another output"
        ) from None
    sync_folder(parent)


def sync_folder(folder: str) -> None:
    """Make names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange_folders(left: str, right: str) -> bool:
    """Let two folders of one file system swap names in one step; False where that cannot be done.

    Linux only (renameat2), and not every file system.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_HERE, os.fsencode(left), _HERE, os.fsencode(right), _RENAME_EXCHANGE) != 0:
        return False
    sync_folder(os.path.dirname(left))
    sync_folder(os.path.dirname(right))
    return True


@dataclass(frozen=True)
class Staged:
    """A folder, and at ``path`` what is to take its place. ``seen``: names in the folder when copied."""

    folder: str
    path: str
    seen: frozenset[str]


def stage(folder: str, path: str, without: Container[str]) -> Staged | None:
    """Link the files of a folder into a new one at ``path``, but for those in ``without``.

    None where that cannot be done: subfolders, no hard links, another file system.
    """
    if os.path.islink(folder) or os.path.ismount(folder):
        return None
    make_folder(path)
    seen = set()
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            return None
        seen.add(entry.name)
        if entry.name in without or is_temporary(entry.name):
            continue
        try:
            os.link(entry.path, os.path.join(path, entry.name), follow_symlinks=False)
        except OSError:
            return None
    with contextlib.suppress(OSError):
        shutil.copystat(folder, path)
        os.chown(path, os.stat(folder).st_uid, os.stat(folder).st_gid)
    return Staged(folder, path, frozenset(seen))


def exchange(staged: Staged, ready: Callable[[], None]) -> bool:
    """Let the staged content take the folder's place in one step; the old content is at ``path`` then.

    ready: called right before; nothing is exchanged where it raises.
    False where the kernel or the file system cannot do it, or where files went from the folder since it was
    staged: nothing has changed then.
    """
    sync_folder(staged.path)
    ready()
    if not exchange_folders(staged.folder, staged.path):
        return False
    if not staged.seen <= set(os.listdir(staged.path)):
        exchange_folders(staged.folder, staged.path)
        return False
    for name in set(os.listdir(staged.path)) - staged.seen:  # somebody else put it there meanwhile
        if not os.path.exists(os.path.join(staged.folder, name)):
            os.replace(os.path.join(staged.path, name), os.path.join(staged.folder, name))
    return True
