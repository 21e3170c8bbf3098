"""Local folders that change in one step: the new content is put beside the old, then the two swap names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass

from pipeline.local_files import exchange_folders, is_temporary, make_folder, sync_folder

__all__ = ["Staged", "exchange", "stage"]


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
    with suppress(OSError):
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
