"""Settings of the whole suite."""

from __future__ import annotations

import os
from functools import cache

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests import ROOT

# No time limit per example: machines are shared, and slow is not wrong. In CI the same examples each time.
settings.register_profile("suite", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("suite")


@cache
def _starts_ray(file: str) -> bool:
    return "pytest.mark.ray" in (ROOT / file).read_text(encoding="utf-8")


class _ByFile(LoadScopeScheduling):
    """A file's tests share a process, and so do all files in which a Ray is started: never two at once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if _starts_ray(file) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Not by xdist's groups: it writes them into the names of tests, which pytest 9.2 does not let it."""
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a Ray comes first: it takes longest, and waits most of the time."""
    items.sort(key=lambda item: not _starts_ray(item.nodeid.partition("::")[0]))
