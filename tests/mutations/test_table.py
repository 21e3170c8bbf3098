"""The table of planted bugs fits the package as it is now."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests import ROOT
from tests.mutations.planted import Planted
from tests.mutations.table import PLANTED, STAGES


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_the_text_is_found_once_and_the_bug_compiles(bug: Planted) -> None:
    text = (ROOT / bug.file).read_text(encoding="utf-8")
    assert text.count(bug.old) == 1, f"{bug.file} has changed: plant {bug.name!r} anew"
    planted = text.replace(bug.old, bug.new)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(text))
    assert all((ROOT / path.partition("::")[0]).is_file() for path in bug.tests)


def test_every_stage_has_two_bugs_at_least() -> None:
    counts = Counter(bug.stage for bug in PLANTED)
    assert set(counts) == set(STAGES)
    assert min(counts.values()) >= 2


def test_names_are_unique() -> None:
    assert len({bug.name for bug in PLANTED}) == len(PLANTED)
