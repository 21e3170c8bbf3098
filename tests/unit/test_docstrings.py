"""Every public name says what it is: shapes and dtypes of its tensors, what it raises, its paper section."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import flashvid

MODULES = sorted(
    name for _, name, _ in pkgutil.walk_packages(flashvid.__path__, "flashvid.") if "._" not in name
)
SHAPE = re.compile(r"\((?:\.\.\., )?[A-Za-z0-9_*+/ -]+(?:, ?[A-Za-z0-9_*+/ .-]*)+\)|\(\.\.\., [A-Z]\)")
DTYPE = re.compile(r"\b(?:float32|bfloat16|float16|float64|int64|uint8|bool|dtype)\b")
RAISES = re.compile(r"\b[Rr]aise[sd]?\b")

# Where the paper (arXiv 2602.08024) defines what these do; each docstring says so.
SECTIONS = {
    "flashvid.compression.segments.segment_lengths": "3.2",
    "flashvid.compression.selection.select_tokens": "3.3",
    "flashvid.compression.selection.select_by_saliency": "3.3",
    "flashvid.compression.selection.select_by_diversity": "3.3",
    "flashvid.compression.selection.event_relevance": "3.3",
    "flashvid.compression.merging.grow_trees": "3.4",
    "flashvid.compression.merging.tree_weights": "3.4",
    "flashvid.compression.clustering.cluster_units": "3.4",
    "flashvid.compression.filling.cluster_trees": "3.4",
    "flashvid.compression.plan.compress": "3.2-3.4",
    "flashvid.compression.plan.plan_compression": "3.2-3.4",
    "flashvid.inside.pruning.prune_inside": "3.5",
    "flashvid.inside.pruning.select_tokens": "3.5",
    "flashvid.budget.schedule.pruning_schedule": "3.5",
}


@dataclass(frozen=True)
class Public:
    """A public function, class or method; context is what a reader of its docstring has read before."""

    path: str
    value: Any
    context: str = ""

    @property
    def doc(self) -> str:
        return self.value.__doc__ or ""

    @property
    def read(self) -> str:
        return f"{self.context}\n{self.doc}"


def public_names(module: types.ModuleType) -> Iterator[Public]:
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if getattr(value, "__module__", None) != module.__name__:
            continue  # a constant, a type alias, or told of where it is defined
        if inspect.isclass(value):
            yield Public(f"{module.__name__}.{name}", value)
            yield from methods(f"{module.__name__}.{name}", value)
        elif inspect.isfunction(value):
            yield Public(f"{module.__name__}.{name}", value)


def methods(path: str, owner: type) -> Iterator[Public]:
    for name, member in vars(owner).items():
        value = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(value) and value.__module__ == owner.__module__:
            yield Public(f"{path}.{name}", value, owner.__doc__ or "")


def kinds(public: Public) -> dict[str, str]:
    """As written; of a class, its fields."""
    return {name: str(kind) for name, kind in getattr(public.value, "__annotations__", {}).items()}


def raising(module: types.ModuleType) -> set[str]:
    """Functions and classes of the module that raise something, themselves or through others in it."""
    tree = ast.parse(inspect.getsource(module))
    bodies: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            bodies[node.name] = node
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    is_made_with = part.name in ("__init__", "__post_init__")
                    bodies[node.name if is_made_with else f"{node.name}.{part.name}"] = part
    found = {name for name, body in bodies.items() if any(isinstance(n, ast.Raise) for n in ast.walk(body))}
    while more := {name for name, body in bodies.items() if calls(body, name) & found} - found:
        found |= more
    return found


def calls(body: ast.AST, name: str) -> set[str]:
    """Names of functions called, those on `self` with their class before them."""
    found = set()
    for node in ast.walk(body):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            found.add(f"{name.partition('.')[0]}.{node.attr}")
    return found


def problems(module: types.ModuleType) -> list[str]:
    may_raise = raising(module)
    found = []
    for public in public_names(module):
        if not public.doc.strip():
            found.append(f"{public.path} has no docstring")
            continue
        tensors = [name for name, kind in kinds(public).items() if re.search(r"\bTensor\b", kind)]
        if tensors and not SHAPE.search(public.read):
            found.append(f"{public.path} names no shape, such as (T, N)")
        if tensors and not DTYPE.search(public.read):
            found.append(f"{public.path} names no dtype")
        if inspect.isclass(public.value):
            found += [
                f"{public.path} leaves out its field {name}" for name in tensors if name not in public.doc
            ]
        if public.path.removeprefix(f"{module.__name__}.") in may_raise and not RAISES.search(public.read):
            found.append(f"{public.path} does not say what it raises")
    return found


@pytest.mark.parametrize("name", ["flashvid", *MODULES])
def test_public_names_say_what_they_are(name: str) -> None:
    assert problems(importlib.import_module(name)) == []


@pytest.mark.parametrize(("path", "section"), SECTIONS.items())
def test_the_paper_section_is_named(path: str, section: str) -> None:
    module, _, name = path.rpartition(".")
    doc = getattr(importlib.import_module(module), name).__doc__
    assert re.search(rf"[Ss]ections?\s+{re.escape(section)}\b", doc), doc


def test_every_stage_is_looked_at() -> None:
    assert {"flashvid.compression.segments", "flashvid.compression", "flashvid.models.qwen2_5_vl"} <= set(
        MODULES
    )


POOR = '''
from torch import Tensor
__all__ = ["Pair", "bare", "half", "quiet"]
def bare(): pass
def half(rows: Tensor) -> Tensor:
    """Turns rows round."""
def quiet(count: int) -> None:
    """Counts."""
    _check(count)
def _check(count): raise ValueError(count)
class Pair:
    """Two of them; left: (T, N) int64."""
    left: Tensor
    right: Tensor
    def swap(self) -> "Tensor": pass
'''


def test_poor_docstrings_are_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "poor_docs.py").write_text(POOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert problems(importlib.import_module("poor_docs")) == [
        "poor_docs.Pair leaves out its field right",
        "poor_docs.Pair.swap has no docstring",
        "poor_docs.bare has no docstring",
        "poor_docs.half names no shape, such as (T, N)",
        "poor_docs.half names no dtype",
        "poor_docs.quiet does not say what it raises",
    ]
