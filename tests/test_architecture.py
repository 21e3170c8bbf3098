"""The import rules and size limits of docs/ARCHITECTURE.md, held true."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flashvid", "pipeline", "jobs", "demo", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

# Import root -> the only files that may import it, by prefix of their path. "Tensors in, tensors out" is
# the flashvid half: it may not know any of these but torch, and transformers only in its model adapters.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "ray": ("pipeline/cluster.py", "pipeline/cluster_session.py", "jobs/", "benchmarks/coordination_ray.py"),
    "prometheus_client": ("pipeline/metrics.py",),
    "typer": ("pipeline/cli.py", "pipeline/cli_outputs.py", "pipeline/cli_options.py"),
    "rich": ("pipeline/cli.py", "pipeline/console.py", "demo/"),
    "decord": ("pipeline/decoders.py",),
    "av": ("pipeline/containers.py", "demo/", "benchmarks/long_video.py"),
    "transformers": ("flashvid/models/", "demo/", "benchmarks/random_model.py"),
    "torch": ("flashvid/", "pipeline/indexer.py", "pipeline/worker.py", "demo/", "benchmarks/"),
    "pyarrow": ("pipeline/", "demo/", "benchmarks/"),
    "fsspec": ("pipeline/", "benchmarks/listing.py"),
    "pydantic": ("pipeline/config.py", "pipeline/config_sections.py"),
    "PIL": ("pipeline/drawing.py",),
    "pipeline": ("pipeline/", "jobs/", "demo/", "benchmarks/"),
    "demo": ("demo/", "pipeline/cli.py"),
    "jobs": ("jobs/",),
}
NEVER_IN_FLASHVID = {
    "pipeline",
    "jobs",
    "demo",
    "ray",
    "pyarrow",
    "fsspec",
    "prometheus_client",
    "PIL",
    "torchvision",
}
NO_INPUT_OUTPUT = (
    "pipeline/ledger.py",
    "pipeline/desk.py",
    "pipeline/coordination.py",
    "pipeline/records.py",
)
INPUT_OUTPUT = {"fsspec", "pathlib", "os", "subprocess", "socket", "tempfile", "shutil"}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute import as (top-level name, line), those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], node.lineno


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def violations(path: Path) -> list[str]:
    name = relative(path)
    found = []
    for module, line in imports(path):
        allowed = ONLY_IN.get(module)
        if allowed is not None and not name.startswith(allowed):
            found.append(f"{name}:{line} imports {module}; only {', '.join(allowed)} may")
        if name.startswith("flashvid/") and module in NEVER_IN_FLASHVID:
            found.append(f"{name}:{line} imports {module}; flashvid/ is tensors in, tensors out")
        if name in NO_INPUT_OUTPUT and module in INPUT_OUTPUT:
            found.append(f"{name}:{line} imports {module}; this file is pure bookkeeping")
    return found


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_import_rules(path: Path) -> None:
    assert violations(path) == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, functions)
        and node.end_lineno
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_all_is_honest(path: Path) -> None:
    """``__all__`` leaves out no public class or function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    declared = [
        {element.value for element in node.value.elts if isinstance(element, ast.Constant)}
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
        and isinstance(node.value, ast.List)
    ]
    if not declared or path.name == "__init__.py":
        return
    public = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and not node.name.startswith("_")
        and not (
            isinstance(node, ast.FunctionDef) and node.decorator_list
        )  # a command: typer's, not importers'
    }
    assert public - declared[0] == set()


def test_the_rules_can_be_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positive control: a file that breaks the rules is caught."""
    monkeypatch.setattr("tests.test_architecture.ROOT", tmp_path)
    bad = tmp_path / "flashvid" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("def f():\n    import ray\n    from pipeline.records import Frames\n")
    assert len(violations(bad)) == 4


def test_there_is_something_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)
