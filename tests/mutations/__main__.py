"""Plants one bug at a time in a copy of the package and expects its tests to fail.

`python -m tests.mutations [part of a name ...]`; exits with 1 where a bug survives, where its text is gone
from the file, or where the tests are red without any bug.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import hypothesis.strategies  # noqa: F401  (loaded once, for all forks)
import numpy as np  # noqa: F401
import pytest
import torch

from tests import ROOT
from tests.mutations.planted import Planted
from tests.mutations.table import PLANTED

_COPIED = ("flashvid", "tests", "pyproject.toml")
_RED, _GREEN, _NOT_THE_COPY = 1, 0, 99  # exit codes of pytest for failed and passed, and one of our own
_SECONDS = 600
_OPTIONS = [
    "-x",
    "--assert=plain",
    "-p",
    "tests.mutations.quick",
    "-p",
    "no:cacheprovider",
    "--hypothesis-profile=planted",
]


def main(wanted: Sequence[str]) -> int:
    """Run the planted bugs whose name holds one of the words; all of them without words."""
    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    some = [bug for bug in PLANTED if not wanted or any(word in bug.name for word in wanted)]
    if not some:
        print(f"no planted bug has any of {list(wanted)} in its name; these are there:")
        print(*(f"  {bug.name}" for bug in PLANTED), sep="\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Path(folder)
        _copy_to(copy)
        if not _is_sound(copy, {path for bug in some for path in bug.tests}):
            return 1
        outcomes = [_outcome(copy, bug) for bug in some]
    failed = [bug.name for bug, outcome in zip(some, outcomes, strict=True) if outcome != "caught"]
    print(f"\n{len(some) - len(failed)} of {len(some)} planted bugs were caught")
    for name in failed:
        print(f"not caught: {name}")
    return int(bool(failed))


def _copy_to(folder: Path) -> None:
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)


def _is_sound(folder: Path, tests: Iterable[str]) -> bool:
    """Without a bug the tests pass: otherwise red would mean nothing."""
    started = time.monotonic()
    code = _pytest(folder, sorted(tests))
    print(f"{'without any bug':64} {_said(code, 'RED', 'green')} {_since(started)}", flush=True)
    return code == _GREEN


def _outcome(folder: Path, bug: Planted) -> str:
    started = time.monotonic()
    path = folder / bug.file
    sound = path.read_text(encoding="utf-8")
    if sound.count(bug.old) != 1:
        outcome = f"text found {sound.count(bug.old)} times in {bug.file}"
    else:
        path.write_text(sound.replace(bug.old, bug.new), encoding="utf-8")
        try:
            code = _pytest(folder, bug.tests)
        finally:
            path.write_text(sound, encoding="utf-8")
        outcome = _said(code, "caught", "SURVIVED")
    print(f"{bug.name:64} {outcome:10} {_since(started)}", flush=True)
    return outcome


def _said(code: int | None, red: str, green: str) -> str:
    known = {_RED: red, _GREEN: green, None: f"not done after {_SECONDS} s"}
    return known.get(code, f"exit code {code}")


def _pytest(folder: Path, tests: Iterable[str]) -> int | None:
    """Exit code, None where it took too long. A fork has torch loaded: most of a small run's time."""
    process = multiprocessing.get_context("fork").Process(target=_run_there, args=(folder, list(tests)))
    process.start()
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def _run_there(folder: Path, tests: list[str]) -> None:
    """In the fork: what is imported from here on comes from the copy."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("flashvid", "tests"):
            del sys.modules[name]
    os.chdir(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.dont_write_bytecode = True
    code = pytest.main([*_OPTIONS, *tests])
    package = Path(sys.modules["flashvid"].__file__ or "")
    sys.exit(int(code) if package.resolve().is_relative_to(folder.resolve()) else _NOT_THE_COPY)


def _since(started: float) -> str:
    return f"{time.monotonic() - started:5.1f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
