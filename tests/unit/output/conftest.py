"""Where the tests of outputs write: on the local disk, and in the memory of fsspec."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest


@pytest.fixture
def memory_uri() -> Iterator[str]:
    root = f"memory://output-{uuid.uuid4().hex}"
    yield root
    filesystem, path = fsspec.core.url_to_fs(root)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    where: str = request.getfixturevalue("memory_uri") if request.param == "memory" else f"{tmp_path}/out"
    return where
