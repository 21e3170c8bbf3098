"""Files that appear whole or not at all: what the machine says when they cannot."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.stores.local_files import create_file, write_file


@pytest.mark.parametrize("write", [write_file, create_file])
def test_a_full_disk_is_told_with_the_place(tmp_path: Path, write: Callable[[str, bytes], object]) -> None:
    """A limit on the size of files stands for it: the system answers in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=rf"File too large: '{tmp_path}/\.lock\.json"):
            write(str(tmp_path / "lock.json"), b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
