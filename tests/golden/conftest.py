from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.cases import FILES, Case, load


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Case:
    path: Path = request.param
    return load(path)
