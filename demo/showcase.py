"""What ``flashvid demo`` does: write the world, index it twice, hold what was said against the truth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from demo.corpus import corpus_scenes, write_corpus
from demo.scoreboard import print_claim, print_next_steps, print_scores, print_videos
from pipeline.cli import index_corpus, print_plan, print_report, print_verify
from pipeline.config import JobConfig, load_config
from pipeline.corpus import list_videos
from pipeline.errors import PipelineError, UserError
from pipeline.indexing import resolve_revision
from pipeline.output import OutputStore, verify_output

__all__ = ["run_showcase"]

_ROOT = Path(__file__).resolve().parent.parent
_BASELINE = ("compression.retention_ratio=1", "output.table=baseline")


@dataclass(frozen=True)
class _Pass:
    """One way of looking at the corpus: its title, its job, the fingerprint of its rows."""

    title: str
    config: JobConfig
    revision: str

    @property
    def fingerprint(self) -> str:
        return self.config.fingerprint(self.revision)

    @property
    def store(self) -> OutputStore:
        return OutputStore(self.config.output.uri, self.config.output.table)


def run_showcase(
    console: Console, overrides: Sequence[str], *, output: Path, num_videos: int, seed: int
) -> None:
    """Run the demo into a folder; resumes what is there. PipelineError where a video is not indexed."""
    videos, index = output / "videos", output / "index"
    passes = (
        _load("160 frames at a tenth", videos, index, *overrides),
        _load("16 frames, uncompressed", videos, index, *overrides, *_BASELINE),
    )
    _write_world(console, videos, num_videos, seed)
    _clear_stale(console, index, passes)
    rows = tuple(_index(console, one) for one in passes)
    truth: dict[str, Any] = json.loads((videos / "truth.json").read_text(encoding="utf-8"))
    titles = tuple(one.title for one in passes)
    _check(console, passes, rows, truth)
    print_videos(console, rows[0], truth)
    print_scores(console, titles, rows, truth)
    print_claim(console, titles, rows, truth)
    print_next_steps(console, index)


def _load(title: str, videos: Path, index: Path, *more: str) -> _Pass:
    overrides = {"corpus.uri": videos, "output.uri": index, "model.name": _shown(_ROOT / "demo" / "model")}
    texts = [f"{key}={json.dumps(str(value))}" for key, value in overrides.items()]
    config = load_config(_ROOT / "configs" / "demo.yaml", [*texts, *more])
    return _Pass(title, config, resolve_revision(config.model))


def _shown(path: Path) -> Path:
    """As short as it can be said from here, so that a folder that moves keeps its index."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _write_world(console: Console, videos: Path, num_videos: int, seed: int) -> None:
    """Write the videos where they are not there yet; truth.json comes last, so it stands for all of them."""
    truth = videos / "truth.json"
    index = videos.parent / "index"
    if index.exists() and not truth.is_file():  # the demo starts its index afresh when the model has changed
        raise UserError(f"{index} was not written by the demo; give another --output")
    if not truth.is_file():
        console.print(f"writing {num_videos} made-up videos to {videos} …", soft_wrap=True)
        write_corpus(videos, num_videos, seed)
        return
    there = [entry["seed"] for entry in json.loads(truth.read_text(encoding="utf-8")).values()]
    if there != [scene.seed for scene in corpus_scenes(num_videos, seed)]:
        raise UserError(
            f"{videos} holds {len(there)} videos of another number or seed than --videos {num_videos} "
            f"--seed {seed}; give another --output, or delete that folder"
        )


def _clear_stale(console: Console, index: Path, passes: tuple[_Pass, ...]) -> None:
    """Remove what an earlier demo wrote with another model or other settings; nothing else writes there."""
    for one in passes:
        bound = one.store.binding()
        if bound is not None and bound["fingerprint"] != one.fingerprint:
            console.print(
                f"the model or its settings have changed since {index} was written: starting afresh"
            )
            shutil.rmtree(index)
            return


def _index(console: Console, one: _Pass) -> list[dict[str, Any]]:
    """Index in one of the two ways, unless that is done; the rows in the order of the videos."""
    console.rule(one.title, align="left", style="dim")
    wanted = {ref.key for ref in list_videos(one.config.corpus)}
    committed = one.store.committed(one.fingerprint)
    if all(key in committed for key in wanted):
        console.print(f"all {len(wanted)} videos are already indexed")
    else:
        print_plan(console, one.config, one.revision)
        report = index_corpus(console, one.config)
        print_report(console, report, [])
        if report.exit_status:
            raise PipelineError(
                f"the run ended with status {report.exit_status}: {report.error or 'see above'}"
            )
    print_verify(console, checked := verify_output(one.config.output.uri, one.config.output.table))
    if not checked.ok:
        raise PipelineError(f"{one.config.output.uri} did not pass its check; see above")
    return sorted(one.store.iter_rows(), key=lambda row: str(row["uri"]))


def _check(
    console: Console,
    passes: tuple[_Pass, ...],
    rows: tuple[list[dict[str, Any]], ...],
    truth: Mapping[str, Any],
) -> None:
    """Every video of the world must have a row, or the tables below would flatter."""
    for one, found in zip(passes, rows, strict=True):
        missing = truth.keys() - {Path(str(row["uri"])).name for row in found}
        if missing:
            for failure in one.store.iter_failures(("uri", "reason", "message")):
                console.print(f"{failure['uri']}: {failure['reason']}: {failure['message']}", soft_wrap=True)
            raise PipelineError(
                f"{len(missing)} videos have no row ({', '.join(sorted(missing))}): {one.title}"
            )
