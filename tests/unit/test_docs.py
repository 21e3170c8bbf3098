"""The pages do not lie: the code on them runs with the demo model, and what they link to or name exists."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
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

FOLDERS = ("benchmarks", "configs", "demo", "docs", "flashvid", "jobs", "pipeline", "tests")
FILES = [*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))]
NAMES = {path.name for path in FILES}
SPEAKING = sorted(path for path in FILES if re.search(r"\.(md|yaml|toml|svg|py)$|^Makefile$", path.name))
ADDRESS = re.compile(r"\w+://\S+")
FILE = re.compile(r"(?<![\w<>*/.-])[\w./-]*\w\.(?:py|md|yaml|svg)\b(?![\w(])")
MODULE = re.compile(r"(?<![\w./-])(?:flashvid|pipeline|jobs|demo|benchmarks|tests)(?:\.[A-Za-z_]\w*)+")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_links_are_found_at_all() -> None:
    assert "docs/BUDGET.md" in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def names_gone(text: str, folder: Path) -> list[str]:
    """Files and modules that a text names and that are not there; files from the root, from one of the two
    packages, or from the folder of what names them; by their mere name wherever they are.
    """
    text = ADDRESS.sub("", text)
    roots = (ROOT, ROOT / "flashvid", ROOT / "pipeline", folder)
    files = [name for name in FILE.findall(text) if not name.startswith(("/", "~", "out/"))]
    gone = [
        name
        for name in files
        if not any((root / name).exists() for root in roots) and ("/" in name or not is_known(name))
    ]
    return gone + [
        name for name in MODULE.findall(text) if FILE.fullmatch(name) is None and not leads_to(name)
    ]


def is_known(name: str) -> bool:
    """Whether a mere file name is one of ours, or what a library's module is called."""
    return name in NAMES or (name.endswith(".py") and find_spec(name.removesuffix(".py")) is not None)


def leads_to(name: str) -> bool:
    """Whether a dotted name is that of a module, or of something in one."""
    parts = name.split(".")
    path = ROOT.joinpath(*parts)
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    owner, _, last = name.rpartition(".")
    return bool(owner) and leads_to(owner) and hasattr(importlib.import_module(owner), last)


def told(path: Path) -> str:
    """What a file says to people: of code, its comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, owners)]
    return "\n".join(comments + docs)


@pytest.mark.parametrize("path", SPEAKING, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_modules_that_are_named_exist(path: Path) -> None:
    assert names_gone(told(path), path.parent) == []


def test_stale_names_are_found() -> None:
    gone = ["pipeline/cluster.py", "desk.py", "old.yaml", "flashvid.wrapper", "flashvid.engine.Motor"]
    there = [
        "pipeline/cluster/job.py",
        "cluster/job.py",
        "job.py",
        "demo.yaml",
        "queue.py",
        "flashvid.engine.Engine",
    ]
    ignored = ["https://example.com/x.py", "flashvid/models/<family>.py", "tests/x/*.py", "out/new.md"]
    assert names_gone("; ".join(f"`{name}`, {name}" for name in gone + there + ignored), ROOT) == [
        name for name in gone for _ in range(2)
    ]


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
