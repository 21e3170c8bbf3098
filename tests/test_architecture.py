"""The rooms of docs/ARCHITECTURE.md, what each may import, its face, and the size limits: held true."""

from __future__ import annotations

import ast
import importlib
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("flashvid", "pipeline", "jobs", "demo", "benchmarks")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 10

_PLAIN = {"pipeline.errors", "pipeline.records"}  # what travels: everybody may know it
_BELOW_MODELS = {"flashvid.config", "flashvid.arithmetic"}

# Room -> the rooms it imports, exactly. A room is a folder, or a file beside the folders; files of one may
# import each other. An arrow that is not here is refused, and so is one that the code no longer has.
ARROWS: dict[str, set[str]] = {
    "flashvid.config": set(),
    "flashvid.resizing": set(),
    "flashvid.arithmetic": {"flashvid.config"},
    "flashvid.profiles": {"flashvid.config"},
    "flashvid.settings": {"flashvid.config"},
    "flashvid.frames": {"flashvid.arithmetic", "flashvid.resizing"},
    "flashvid.compression": _BELOW_MODELS,
    "flashvid.budget": _BELOW_MODELS,
    "flashvid.inside": {"flashvid.budget"},
    "flashvid.models": {
        "flashvid.budget",
        "flashvid.compression",
        "flashvid.config",
        "flashvid.frames",
        "flashvid.inside",
    },
    "flashvid.generation": {
        *_BELOW_MODELS,
        "flashvid.budget",
        "flashvid.compression",
        "flashvid.frames",
        "flashvid.inside",
        "flashvid.models",
        "flashvid.settings",
    },
    "flashvid.engine": {"flashvid.generation"},  # hands on what documents promise under this name
    "pipeline": set(),
    "pipeline.errors": set(),
    "pipeline.records": {"pipeline.errors"},
    "pipeline.config": {*_PLAIN, "flashvid.config", "flashvid.profiles"},
    "pipeline.stores": _PLAIN,
    "pipeline.corpus": {*_PLAIN, "pipeline.config", "pipeline.stores"},
    "pipeline.decoding": {*_PLAIN, "flashvid.resizing", "pipeline", "pipeline.config", "pipeline.stores"},
    "pipeline.indexing": {
        *_PLAIN,
        "flashvid.compression",
        "flashvid.generation",
        "flashvid.models",
        "flashvid.resizing",
        "pipeline.config",
        "pipeline.decoding",
    },
    "pipeline.output": {*_PLAIN, "pipeline.stores"},
    "pipeline.cluster": {
        *_PLAIN,
        "pipeline",
        "pipeline.config",
        "pipeline.corpus",
        "pipeline.decoding",
        "pipeline.indexing",
        "pipeline.output",
        "pipeline.stores",
    },
    "pipeline.picture": {*_PLAIN, "flashvid.compression", "pipeline.config", "pipeline.indexing"},
    "pipeline.cli": {
        *_PLAIN,
        "demo",
        "pipeline",
        "pipeline.cluster",
        "pipeline.config",
        "pipeline.corpus",
        "pipeline.decoding",
        "pipeline.indexing",
        "pipeline.output",
        "pipeline.picture",
        "pipeline.stores",
    },
    "jobs": {"pipeline.cli"},
    "demo": {
        "flashvid.compression",
        "flashvid.config",
        "flashvid.generation",
        "pipeline.cli",
        "pipeline.config",
        "pipeline.corpus",
        "pipeline.errors",
        "pipeline.indexing",
        "pipeline.output",
    },
    "benchmarks": {
        *_PLAIN,
        "flashvid.compression",
        "flashvid.config",
        "flashvid.frames",
        "flashvid.generation",
        "flashvid.inside",
        "flashvid.models",
        "pipeline.cluster",
        "pipeline.config",
        "pipeline.corpus",
        "pipeline.decoding",
        "pipeline.indexing",
        "pipeline.output",
    },
}

# Imported from their files by documents, though they lie in a room with a face.
PROMISED = {"flashvid.models.shapes"}
INSIDERS = {"benchmarks.phases"}  # times the stages of a file where they stand

# Library -> the only files that may import it, by prefix of their path. "Tensors in, tensors out" is the
# flashvid half: it knows torch, and transformers only in its model adapters.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "ray": (
        "pipeline/cluster/job.py",
        "pipeline/cluster/session.py",
        "pipeline/cluster/submitting.py",
        "benchmarks/coordination_ray.py",
    ),
    "prometheus_client": ("pipeline/cluster/metrics.py",),
    "typer": ("pipeline/cli/",),
    "rich": ("pipeline/cli/", "demo/"),
    "decord": ("pipeline/decoding/decoders.py",),
    "av": (
        "pipeline/decoding/colours.py",
        "pipeline/decoding/containers.py",
        "pipeline/decoding/decoder_log.py",
        "demo/",
        "benchmarks/decoding.py",
        "benchmarks/long_video.py",
    ),
    "transformers": ("flashvid/models/", "demo/", "benchmarks/random_model.py"),
    "torch": (
        "flashvid/",
        "pipeline/indexing/indexer.py",
        "pipeline/cluster/worker.py",
        "demo/",
        "benchmarks/",
    ),
    "pyarrow": ("pipeline/output/", "pipeline/corpus/", "pipeline/stores/", "demo/", "benchmarks/"),
    "fsspec": ("pipeline/stores/", "benchmarks/listing.py"),
    "pydantic": ("pipeline/config/",),
    "PIL": ("pipeline/picture/drawing.py",),
}
NO_INPUT_OUTPUT = (
    "pipeline/cluster/ledger.py",
    "pipeline/cluster/backlog.py",
    "pipeline/cluster/coordination.py",
    "pipeline/records.py",
)
INPUT_OUTPUT = {"fsspec", "pathlib", "os", "subprocess", "socket", "tempfile", "shutil"}


@dataclass(frozen=True)
class Import:
    """``from module import name`` (name "" for ``import module``) and where it stands."""

    module: str
    name: str
    line: int


class House:
    """The packages below a root, read as text: files, rooms, faces, imports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        found = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
        self.files = {self.module(path): path for path in found}

    def module(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def is_face(self, module: str) -> bool:
        return self.files[module].name == "__init__.py"

    def room(self, module: str) -> str:
        """Folders of flashvid and pipeline, and the files beside them; other packages are one room each."""
        package, *rest = module.split(".")
        return ".".join((package, *rest[:1])) if package in ("flashvid", "pipeline") else package

    def is_room_with_face(self, room: str) -> bool:
        return "." in room and self.is_face(room)

    def imports(self, module: str) -> list[Import]:
        """Every import, those inside functions and for the type checker included."""
        found = []
        for node in ast.walk(ast.parse(self.files[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [Import(alias.name, "", node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                found += [Import(origin, alias.name, node.lineno) for alias in node.names]
        return found

    @cached_property
    def homes(self) -> dict[tuple[str, str], str]:
        """(face, name) -> the module that the face has it from."""
        return {
            (face, one.name): one.module
            for face in filter(self.is_face, self.files)
            for one in self.imports(face)
            if one.module in self.files and one.name
        }

    def target(self, one: Import) -> str | None:
        """The file in which an imported thing is made, by way of faces; None for other libraries."""
        if f"{one.module}.{one.name}" in self.files:
            return f"{one.module}.{one.name}"
        home = self.homes.get((one.module, one.name))
        if home is not None:
            return self.target(Import(home, one.name, one.line))
        return one.module if one.module in self.files else None

    def arrows(self) -> Iterator[tuple[str, Import, str]]:
        """(file, import, file that it leads to), of all files but faces."""
        for module in self.files:
            if module != "flashvid" and not self.is_room_with_face(module):
                for one in self.imports(module):
                    if (target := self.target(one)) is not None:
                        yield module, one, target

    def rooms_imported(self) -> dict[str, set[str]]:
        rooms: dict[str, set[str]] = {self.room(module): set() for module in self.files}
        for module, _, target in self.arrows():
            rooms[self.room(module)].add(self.room(target))
        return {room: others - {room} for room, others in rooms.items() if room != "flashvid"}

    def past_the_face(self) -> list[str]:
        """Imports from a file of another room, where its face should be named."""
        return [
            f"{module}:{one.line} imports from {one.module}; say: from {self.room(target)} import {one.name}"
            for module, one, target in self.arrows()
            if self.room(module) != self.room(target)
            and self.is_room_with_face(self.room(target))
            and (not self.is_face(one.module) or f"{one.module}.{one.name}" == target)
            and target not in PROMISED
            and module not in INSIDERS
        ]

    def circles(self) -> list[list[str]]:
        """Files that import each other in a loop."""
        graph: dict[str, set[str]] = {module: set() for module in self.files}
        for module, _, target in self.arrows():
            graph[module].add(target)
        return circles_of(graph)


def circles_of(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of nodes from each of which all others of the group are reached."""
    reach = {node: set(after) for node, after in graph.items()}
    for middle, beyond in reach.items():
        for after in reach.values():
            if middle in after:
                after.update(beyond)
    looped = {node for node, after in reach.items() if node in after}
    groups = {frozenset({other for other in looped & reach[node] if node in reach[other]}) for node in looped}
    return sorted(sorted(group) for group in groups)


HOUSE = House(ROOT)
FILES = sorted(HOUSE.files.values())
FACES = sorted(filter(HOUSE.is_room_with_face, {HOUSE.room(module) for module in HOUSE.files}))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_arrow_between_rooms_is_in_the_table() -> None:
    assert HOUSE.rooms_imported() == ARROWS


def test_the_arrows_run_one_way() -> None:
    assert (
        circles_of({room: others - {"demo"} for room, others in ARROWS.items()}) == []
    )  # the cli runs the demo


def test_no_circle_between_files() -> None:
    assert HOUSE.circles() == []


def test_other_rooms_are_entered_by_their_face() -> None:
    assert HOUSE.past_the_face() == []


@pytest.mark.parametrize("module", FACES)
def test_a_face_says_what_the_room_is_and_hands_on_what_it_says(module: str) -> None:
    face = importlib.import_module(module)
    question, _, rest = (face.__doc__ or "").strip().partition("\n\n")
    assert question.endswith("?")
    assert 3 <= len((face.__doc__ or "").strip().splitlines()) <= 7
    begin = re.search(r"Start with\s+(\w+\.py)", rest)
    folder = HOUSE.files[module].parent
    assert begin is not None
    assert (folder / begin.group(1)).is_file()
    homes = {name: home for (of, name), home in HOUSE.homes.items() if of == module}
    assert list(face.__all__) == sorted(homes, key=_order)
    assert set(dir(face)) <= homes.keys(), "what is handed on is what the type checker sees"
    for name, home in homes.items():
        assert getattr(face, name) is getattr(importlib.import_module(home), name)
        assert not (folder / f"{name}.py").exists(), "whichever was imported first would win"


def _order(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_faces_import_nothing_by_themselves() -> None:
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {FACES!r}]\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'transformers', 'ray', 'pyarrow', 'numpy', 'pydantic', 'fsspec'}))\n"
        f"print(sorted(name for name in sys.modules if name.rpartition('.')[0] in {FACES!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["[]", "[]"]


def test_no_file_lies_beside_the_rooms() -> None:
    beside = {
        "flashvid": {"config", "profiles", "settings", "frames", "resizing", "arithmetic", "engine"},
        "pipeline": {"records", "errors"},
    }
    for package, names in beside.items():
        assert {path.stem for path in (ROOT / package).glob("*.py")} == {"__init__", *names}


def violations(path: Path, house: House = HOUSE) -> list[str]:
    """Libraries that are imported where they have no place."""
    name, found = path.relative_to(house.root).as_posix(), []
    for one in house.imports(house.module(path)):
        library = one.module.partition(".")[0]
        if not library:
            found.append(
                f"{name}:{one.line} imports {one.name} relatively; say from where, or the rules are blind"
            )
        allowed = ONLY_IN.get(library)
        if allowed is not None and not name.startswith(allowed):
            found.append(f"{name}:{one.line} imports {library}; only {', '.join(allowed)} may")
        if name in NO_INPUT_OUTPUT and library in INPUT_OUTPUT:
            found.append(f"{name}:{one.line} imports {library}; this file is pure bookkeeping")
    return found


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_import_rules(path: Path) -> None:
    assert violations(path) == []


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function and method."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    assert [
        f"{name} has {lines} lines" for name, lines in functions_of(path) if lines > MAX_FUNCTION_LINES
    ] == []


def test_the_median_function_is_short() -> None:
    assert statistics.median(lines for path in FILES for _, lines in functions_of(path)) < MAX_MEDIAN_LINES


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


def test_the_rules_can_be_broken(tmp_path: Path) -> None:
    """Positive control: a house with every fault, and each is found."""
    for name, text in {
        "flashvid/config.py": "import ray\nfrom pipeline.records import Frames\n",
        "pipeline/records.py": "class Frames: ...\nimport os\n",
        "pipeline/stores/__init__.py": "from pipeline.stores.inputs import read\n",
        "pipeline/stores/inputs.py": "def read():\n    from pipeline.corpus.listing import found\n",
        "pipeline/corpus/__init__.py": "",
        "pipeline/corpus/listing.py": "from pipeline.stores import read\ndef found(): ...\n",
        "pipeline/corpus/local.py": "from . import listing\nfrom pipeline.stores import inputs\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    house = House(tmp_path)
    assert house.circles() == [["pipeline.corpus.listing", "pipeline.stores.inputs"]]
    assert house.rooms_imported()["pipeline.stores"] == {"pipeline.corpus"}
    assert house.rooms_imported()["flashvid.config"] == {"pipeline.records"}
    assert [text.partition(" ")[0] for text in house.past_the_face()] == [
        "pipeline.corpus.local:2",
        "pipeline.stores.inputs:2",
    ]
    assert len(violations(tmp_path / "pipeline" / "corpus" / "local.py", house)) == 1
    assert len(violations(tmp_path / "flashvid" / "config.py", house)) == 1
    assert len(violations(tmp_path / "pipeline" / "records.py", house)) == 1


def test_there_is_something_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)
    assert len(FACES) >= 14


def test_unit_tests_lie_in_folders_named_as_the_rooms() -> None:
    folders = {path.parent.name for path in (ROOT / "tests" / "unit").glob("*/__init__.py")}
    assert folders <= {room.partition(".")[2] for room in FACES} | {"demo"}
