"""The pages do not lie: the code on them runs with the demo model, and what they link to exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
PAGES += [ROOT / "demo" / "model" / "README.md"]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS = {"AutoProcessor": "torchvision"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_links_are_found_at_all() -> None:
    assert "docs/BUDGET.md" in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def snippets(page: str) -> Iterator[str]:
    """The code of a page, without what needs a package that is not there."""
    for code in PYTHON.findall((ROOT / page).read_text(encoding="utf-8")):
        if all(find_spec(package) for word, package in NEEDS.items() if word in code):
            yield code


def run(page: str) -> dict[str, object]:
    names: dict[str, object] = {}
    for code in snippets(page):
        exec(compile(code, page, "exec"), names)  # in one namespace: a page is read from top to bottom
    return names


@pytest.mark.slow
def test_the_library_page_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    names = run("docs/LIBRARY.md")
    printed = capsys.readouterr().out
    page = (ROOT / "docs" / "LIBRARY.md").read_text(encoding="utf-8")
    promised = page.split("```\na red circle", 1)[1].split("```", 1)[0]
    assert printed.startswith(f"a red circle{promised}")
    used = re.search(r"(\d+) of at most 960", printed)
    assert used is not None
    assert abs(int(used[1]) - 706) < 20, "the page says 706; another machine may round a novelty otherwise"
    video, encoded = names["video"], names["encoded"]
    assert torch.equal(video.group_sizes.sum(), torch.tensor(encoded.features[..., 0].numel()))  # type: ignore[attr-defined]


def test_the_budget_page_runs() -> None:
    names = run("docs/BUDGET.md")
    assert names["costs"].visual_tokens_after == 2560  # type: ignore[attr-defined]
